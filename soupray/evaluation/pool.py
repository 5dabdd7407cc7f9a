"""The pool of a soup: the plan, intersected with what is in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from soupray.asked import find_stopped, known_trials
from soupray.core.errors import IncompatibleWeights
from soupray.core.records import Basis, Ingredient, Manifest, Tombstone, Trial
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, find_record, read_record


def all_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """The plan of `spec` but for what was stopped, then what was imported, as evaluated by it."""
    imported = [
        read_record(store, path, Trial) for path in sorted(store.list(layout.imports(basis.key)))
    ]
    stopped = find_stopped(store, spec, basis)
    imported.sort(key=lambda trial: (str(trial.hparams["file"]), trial.key))
    known = [t for t in known_trials(store, spec, basis) if t.key not in stopped]
    return [*known, *(t for t in imported if t.setting == spec.setting)]


class Found(NamedTuple):
    """The plan's trials by what the store says of them, each in the plan's order."""

    complete: list[Ingredient]
    diverged: list[Tombstone]
    missing: list[Trial]

    @property
    def over(self) -> list[str]:
        """Keys of the trials that need no training."""
        return [i.trial.key for i in self.complete] + [t.trial.key for t in self.diverged]


def find_trials(store: Store, trials: list[Trial], basis: Basis) -> Found:
    """Look every trial up.

    Raises:
        IncompatibleWeights: an ingredient that did not start from the basis' init.
    """

    def look(trial: Trial) -> Manifest | None:
        manifest: Manifest | None = find_record(store, layout.manifest(trial.key), Manifest)
        return manifest

    with ThreadPoolExecutor(16) as threads:
        manifests = list(threads.map(look, trials))
    found = Found([], [], [])
    for trial, manifest in zip(trials, manifests, strict=True):
        if isinstance(manifest, Ingredient):
            _check_init(manifest, basis)
            found.complete.append(manifest)
        elif manifest is not None:
            found.diverged.append(manifest)
        else:
            found.missing.append(trial)
    return found


def _check_init(ingredient: Ingredient, basis: Basis) -> None:
    if ingredient.init != basis.init.sha256:
        raise IncompatibleWeights(
            f"trial {ingredient.trial.key} started from init {ingredient.init[:12]}, the pool's "
            f"init is {basis.init.sha256[:12]}. Models that share no initialisation do not "
            "average into a good one; remove it, or make a sweep of its own for it."
        )
