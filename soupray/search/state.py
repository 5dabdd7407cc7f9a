"""How a sweep stands: its plan against what is in the store.

Whoever drives the sweep, makes soups of it or looks at it starts from one `SweepState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from soupray.core.errors import IncompatibleWeights
from soupray.core.records import Basis, Ingredient, Manifest, Tombstone, Trial, digest
from soupray.data.cache import DATA_VERSION
from soupray.search.history import find_stopped, find_suggested
from soupray.search.plan import CODE_VERSION, as_trials, trials_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import FileInit, ProbeInit, TrainedInit
from soupray.store import layout
from soupray.store.objects import Store, find_record, read_record
from soupray.tasks import file_digests, local_digests

READERS = 16
"""Records that are read at a time."""


class SweepState(NamedTuple):
    """The trials of a sweep by what the store says of them, each in the plan's order.

    `complete`, `diverged` and `missing` are trials of the plan. `imported` are checkpoints that
    joined the pool, `lost` those of them whose manifest is gone. `stopped`: keys of the trials that
    the scheduler stopped. `unsuggested`: how many trials of an adaptive search have no point yet.
    """

    basis: Basis
    complete: list[Ingredient]
    imported: list[Ingredient]
    diverged: list[Tombstone]
    missing: list[Trial]
    lost: list[Trial]
    stopped: set[str]
    unsuggested: int

    @property
    def ingredients(self) -> list[Ingredient]:
        """What a pool is made of: trained and imported models."""
        return self.complete + self.imported

    @property
    def manifests(self) -> list[Manifest]:
        """All records of trials that are over."""
        return [*self.ingredients, *self.diverged]

    @property
    def over(self) -> list[str]:
        """Keys of the plan's trials that need no training."""
        return [i.trial.key for i in self.complete] + [t.trial.key for t in self.diverged]

    @property
    def known(self) -> int:
        """Trials that have a record or a point, but for those that were stopped."""
        return len(self.manifests) + len(self.missing) + len(self.lost)


def basis_key(spec: SweepSpec) -> str:
    """Names the basis of `spec`: everything that data and theta_0 follow from."""
    plain = spec.model_dump(mode="json")
    versions = [DATA_VERSION, CODE_VERSION, *local_digests(spec.task)]
    if isinstance(spec.init, TrainedInit):  # a training differs in low bits from device to device
        versions += [spec.setting.device, digest(spec.training.record())]
    if isinstance(spec.init, ProbeInit):  # features differ in low bits with all of it
        versions.append(digest(spec.setting))
    if isinstance(spec.init, FileInit):
        versions += file_digests(spec.init.file)
    named = ("data", "task", "seed", "init", "anchor", "threads")
    return digest([*(plain[name] for name in named), versions])[:32]


def find_basis(store: Store, spec: SweepSpec) -> Basis | None:
    """The stored basis of `spec`; None before its first sweep."""
    basis: Basis | None = find_record(store, layout.basis(basis_key(spec)), Basis)
    return basis


def find_state(store: Store, spec: SweepSpec) -> SweepState | None:
    """How `spec` stands; None before its first sweep. Raises what `read_state` raises."""
    basis = find_basis(store, spec)
    return None if basis is None else read_state(store, spec, basis)


def read_state(store: Store, spec: SweepSpec, basis: Basis) -> SweepState:
    """How `spec` stands.

    Raises:
        IncompatibleWeights: an ingredient that did not start from the basis' theta_0.
        CheckpointError: a record that cannot be read.
        StoreError: the store is away.
    """
    stopped, suggested = find_stopped(store, spec, basis), known_trials(store, spec, basis)
    planned = [t for t in suggested if t.key not in stopped]
    imports = _imports(store, spec, basis)
    found = find_manifests(store, [*planned, *imports])
    of_plan, of_imports = found[: len(planned)], found[len(planned) :]
    return SweepState(
        basis=basis,
        complete=_ingredients(of_plan, basis),
        imported=_ingredients(of_imports, basis),
        diverged=[m for m in found if isinstance(m, Tombstone)],
        missing=[t for t, m in zip(planned, of_plan, strict=True) if m is None],
        lost=[t for t, m in zip(imports, of_imports, strict=True) if m is None],
        stopped=stopped,
        unsuggested=spec.search.trials - len(suggested) if spec.search.sampler == "tpe" else 0,
    )


def find_manifests(store: Store, trials: Sequence[Trial]) -> list[Manifest | None]:
    """The manifest of each trial, None where it is not over: one listing, then parallel reads."""
    there = set(store.list(layout.TRIALS)) if trials else set()

    def find(trial: Trial) -> Manifest | None:
        path = layout.manifest(trial.key)
        manifest: Manifest | None = find_record(store, path, Manifest) if path in there else None
        return manifest

    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(find, trials))


def pool_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """The trials that may be ingredients: the plan but for what was stopped, then the imports."""
    stopped = find_stopped(store, spec, basis)
    planned = [t for t in known_trials(store, spec, basis) if t.key not in stopped]
    return [*planned, *_imports(store, spec, basis)]


def known_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """The plan of `spec`; of an adaptive search, what was suggested so far."""
    if spec.search.sampler != "tpe":
        return trials_of(spec, basis)
    return as_trials(spec, basis, [s.planned for s in find_suggested(store, spec, basis)])


def _imports(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """What was imported into the pool, as this spec evaluates it, by the name of the file."""
    found = [read_record(store, path, Trial) for path in store.list(layout.imports(basis.key))]
    found.sort(key=lambda trial: (str(trial.hparams["file"]), trial.key))
    return [trial for trial in found if trial.setting == spec.setting]


def _ingredients(found: Sequence[Manifest | None], basis: Basis) -> list[Ingredient]:
    """Those of `found` that are complete. Raises IncompatibleWeights: see `read_state`."""
    ingredients = [m for m in found if isinstance(m, Ingredient)]
    for ingredient in ingredients:
        if ingredient.init != basis.init.sha256:
            raise IncompatibleWeights(
                f"trial {ingredient.trial.key} started from init {ingredient.init[:12]}, the "
                f"pool's init is {basis.init.sha256[:12]}. Models that share no initialisation do "
                "not average into a good one; remove it, or make a sweep of its own for it."
            )
    return ingredients
