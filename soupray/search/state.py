"""The state of a sweep: its plan compared with the records in the store.

Training, soups and status reports of a sweep all start from a `SweepState`.
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
"""Number of records that are read in parallel."""


class SweepState(NamedTuple):
    """The trials of a sweep, grouped by their state in the store, each group in the plan's order.

    `complete`, `diverged` and `missing` are trials of the plan. `imported` are imported checkpoints
    of the pool; `lost` are imports without a manifest. `stopped` are keys of trials that the
    scheduler stopped. `unsuggested` is the number of trials of an adaptive search that have no
    point yet.
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
        """The ingredients of the pool: trained and imported models."""
        return self.complete + self.imported

    @property
    def manifests(self) -> list[Manifest]:
        """All records of trials that are over."""
        return [*self.ingredients, *self.diverged]

    @property
    def over(self) -> list[str]:
        """Keys of the plan's trials that are complete or diverged."""
        return [i.trial.key for i in self.complete] + [t.trial.key for t in self.diverged]

    @property
    def to_train(self) -> int:
        """The number of trials that the sweep still has to run."""
        return len(self.missing) + self.unsuggested

    @property
    def known(self) -> int:
        """Number of trials that have a record or a point, without the stopped trials."""
        return len(self.manifests) + len(self.missing) + len(self.lost)


def basis_key(spec: SweepSpec) -> str:
    """Return the key of the basis of `spec`: a digest of all inputs of the data and theta_0."""
    plain = spec.model_dump(mode="json")
    versions = [DATA_VERSION, CODE_VERSION, *local_digests(spec.task)]
    # training gives different low bits on each kind of device
    if isinstance(spec.init, TrainedInit):
        versions += [spec.setting.device, digest(spec.training.record())]
    # every part of the setting changes the low bits of features
    if isinstance(spec.init, ProbeInit):
        versions.append(digest(spec.setting))
    if isinstance(spec.init, FileInit):
        versions += file_digests(spec.init.file)
    named = ("data", "task", "seed", "init", "anchor", "threads")
    return digest([*(plain[name] for name in named), versions])[:32]


def find_basis(store: Store, spec: SweepSpec) -> Basis | None:
    """Return the stored basis of `spec`, or None before its first sweep."""
    basis: Basis | None = find_record(store, layout.basis(basis_key(spec)), Basis)
    return basis


def find_state(store: Store, spec: SweepSpec) -> SweepState | None:
    """Return the state of the sweep of `spec`, or None before its first sweep.

    Raises:
        IncompatibleWeights: an ingredient did not start from the theta_0 of the basis.
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    basis = find_basis(store, spec)
    return None if basis is None else read_state(store, spec, basis)


def read_state(store: Store, spec: SweepSpec, basis: Basis) -> SweepState:
    """Return the state of the sweep of `spec`.

    Raises:
        IncompatibleWeights: an ingredient did not start from the theta_0 of the basis.
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
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
    """Return the manifest of each trial, or None if the trial is not over.

    The manifests are listed once and then read in parallel.
    """
    there = set(store.list(layout.TRIALS)) if trials else set()

    def find(trial: Trial) -> Manifest | None:
        path = layout.manifest(trial.key)
        manifest: Manifest | None = find_record(store, path, Manifest) if path in there else None
        return manifest

    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(find, trials))


def pool_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the trials that may be ingredients: the plan without stopped trials, then imports."""
    stopped = find_stopped(store, spec, basis)
    planned = [t for t in known_trials(store, spec, basis) if t.key not in stopped]
    return [*planned, *_imports(store, spec, basis)]


def known_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the trials of the plan; for an adaptive search, only the trials suggested so far."""
    if spec.search.sampler != "tpe":
        return trials_of(spec, basis)
    return as_trials(spec, basis, [s.planned for s in find_suggested(store, spec, basis)])


def _imports(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the imported trials with the setting of this spec, sorted by file name."""
    found = [read_record(store, path, Trial) for path in store.list(layout.imports(basis.key))]
    found.sort(key=lambda trial: (str(trial.hparams["file"]), trial.key))
    return [trial for trial in found if trial.setting == spec.setting]


def _ingredients(found: Sequence[Manifest | None], basis: Basis) -> list[Ingredient]:
    """Return the complete trials. Raises IncompatibleWeights if one has another theta_0."""
    ingredients = [m for m in found if isinstance(m, Ingredient)]
    for ingredient in ingredients:
        if ingredient.init != basis.init.sha256:
            raise IncompatibleWeights(
                f"trial {ingredient.trial.key} started from init {ingredient.init[:12]}, the "
                f"pool's init is {basis.init.sha256[:12]}. Models that share no initialisation do "
                "not average into a good one; remove it, or make a sweep of its own for it."
            )
    return ingredients
