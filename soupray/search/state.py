"""The state of a sweep: its plan compared with the records in the store.

Training, soups and status reports of a sweep all start from a `SweepState`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from soupray.core.errors import CheckpointError, IncompatibleWeights
from soupray.core.records import Basis, digest
from soupray.core.trials import Freed, Ingredient, Manifest, Tombstone, Trial
from soupray.data import DATA_VERSION
from soupray.search.history import find_stopped, find_suggested
from soupray.search.plan import CODE_VERSION, as_trials, is_adaptive, trials_of
from soupray.search.prefixes import Enough, Prefix, find_enough, find_prefixes
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import FileInit, ProbeInit, TrainedInit
from soupray.store import layout
from soupray.store.manifests import find_freed, find_manifests
from soupray.store.objects import Store, find_record, list_ours, read_record
from soupray.tasks import file_digests, local_digests


class SweepState(NamedTuple):
    """The trials of a sweep, grouped by their state in the store, each group in the plan's order.

    `complete`, `diverged` and `missing` are trials of the plan. `imported` are imported checkpoints
    of the pool; `lost` are imports without a manifest. `stopped` are keys of trials that the
    scheduler stopped. `unsuggested` is the number of trials of an adaptive search that have no
    point yet. `enough` is the decision of the stop rule; `spared` are the trials that are not
    trained for this reason, or not to their end. `freed` has, by key, those of the ingredients
    whose weights were let go.
    """

    basis: Basis
    complete: list[Ingredient]
    imported: list[Ingredient]
    diverged: list[Tombstone]
    missing: list[Trial]
    lost: list[Trial]
    stopped: set[str]
    unsuggested: int
    freed: dict[str, Freed]
    enough: Enough | None = None
    spared: Sequence[Trial] = ()

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
        versions += [digest(own) for own in (spec.own_loss, spec.own_augmentation) if own]
        versions += [digest(spec.class_weights)] if spec.class_weights else []
    # every part of the setting changes the low bits of features
    if isinstance(spec.init, ProbeInit):
        versions.append(digest(spec.setting))
    if isinstance(spec.init, FileInit):
        versions += file_digests(spec.init.file)
    # what the targets are, and a metric of the user, are in the digests of the splits
    versions += [digest(part) for part in (spec.targets, spec.own_metric) if part]
    if spec.teacher is not None:
        versions.append(f"teacher {spec.teacher}")
    named = ("data", "task", "seed", "init", "anchor", "threads")
    return digest([*(plain[name] for name in named), versions])[:32]


def find_basis(store: Store, spec: SweepSpec) -> Basis | None:
    """Return the stored basis of `spec`, or None before its first sweep."""
    key = basis_key(spec)
    basis: Basis | None = find_record(store, layout.basis(key), Basis)
    if basis is not None and basis.key != key:
        raise CheckpointError(
            f"{layout.basis(key)} in {store.url} is the basis {basis.key}: it was copied there. "
            "Delete it and sweep again."
        )
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


class PoolPlan(NamedTuple):
    """The trials that may be ingredients of a pool, before their manifests are read.

    `planned` are trials of the plan without the stopped ones, `imports` imported checkpoints. For
    `stopped`, `unsuggested` and `enough` see `SweepState`.
    """

    planned: list[Trial]
    imports: list[Trial]
    stopped: set[str]
    unsuggested: int
    enough: Enough | None = None

    def is_needed(self, trial: Trial) -> bool:
        """Whether a trial that is not over is to be trained."""
        return self.enough is None or trial.index < self.enough.size

    @property
    def trials(self) -> list[Trial]:
        """The trials that may be ingredients: the plan, then the imports."""
        return [*self.planned, *self.imports]


def pool_plan(store: Store, spec: SweepSpec, basis: Basis) -> PoolPlan:
    """Return the trials that may be ingredients of the pool of `spec`.

    Raises:
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    stopped, suggested = find_stopped(store, spec, basis), known_trials(store, spec, basis)
    return PoolPlan(
        planned=[t for t in suggested if t.key not in stopped],
        imports=_imports(store, spec, basis),
        stopped=stopped,
        unsuggested=spec.search.trials - len(suggested) if is_adaptive(spec) else 0,
        enough=find_enough(store, spec, suggested),
    )


def read_state(store: Store, spec: SweepSpec, basis: Basis) -> SweepState:
    """Return the state of the sweep of `spec`.

    Raises:
        IncompatibleWeights: an ingredient did not start from the theta_0 of the basis.
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    plan = pool_plan(store, spec, basis)
    found = find_manifests(store, plan.trials)
    of_plan, of_imports = found[: len(plan.planned)], found[len(plan.planned) :]
    for manifest in found:
        if isinstance(manifest, Ingredient):
            refuse_other_origin(manifest.trial.key, manifest.init, basis)
    left = [t for t, m in zip(plan.planned, of_plan, strict=True) if m is None]
    missing = [trial for trial in left if plan.is_needed(trial)]
    return SweepState(
        basis=basis,
        complete=[m for m in of_plan if isinstance(m, Ingredient)],
        imported=[m for m in of_imports if isinstance(m, Ingredient)],
        diverged=[m for m in found if isinstance(m, Tombstone)],
        missing=missing,
        lost=[t for t, m in zip(plan.imports, of_imports, strict=True) if m is None],
        stopped=plan.stopped,
        unsuggested=plan.unsuggested,
        freed=find_freed(store, [m for m in found if isinstance(m, Ingredient)]),
        enough=plan.enough,
        spared=[trial for trial in left if not plan.is_needed(trial)],
    )


def with_let_go(state: SweepState, spec: SweepSpec) -> SweepState:
    """Return a state in which trials whose weights were let go are missing, if all are kept.

    With another `keep` they stay complete: nobody asked for their weights.
    """
    if spec.keep != "all" or not state.freed:
        return state
    again = [i.trial for i in state.complete if i.trial.key in state.freed]
    left = [i for i in state.complete if i.trial.key not in state.freed]
    return state._replace(complete=left, missing=[*again, *state.missing])


def pool_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the trials that may be ingredients: the plan without stopped trials, then imports."""
    return pool_plan(store, spec, basis).trials


def known_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the trials of the plan; for an adaptive search, only the trials suggested so far."""
    if not is_adaptive(spec):
        return trials_of(spec, basis)
    return as_trials(spec, basis, [s.planned for s in find_suggested(store, spec, basis)])


def prefixes_of(store: Store, spec: SweepSpec, basis: Basis) -> list[Prefix]:
    """Return what the first trials of the sweep were worth, the smallest number first.

    Raises:
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    plan = known_trials(store, spec, basis)
    return find_prefixes(store, spec.name, plan, spec.search.trials)


def _imports(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the imported trials with the setting of this spec, sorted by file name."""
    found: list[Trial] = []
    for path in list_ours(store, layout.imports(basis.key)):
        trial: Trial = read_record(store, path, Trial)
        key = layout.stem(path)
        if trial.key != key or trial.method != "imported":
            raise CheckpointError(
                f"{path} in {store.url} is not the record of import {key}: it was copied there, or "
                "edited. Delete it, and import the file again."
            )
        found.append(trial)
    found.sort(key=lambda trial: (str(trial.hparams.get("file", "")), trial.key))
    return [trial for trial in found if trial.setting == spec.setting]


def refuse_other_origin(key: str, init: str, basis: Basis) -> None:
    """Raise IncompatibleWeights if an ingredient did not start from the theta_0 of the basis.

    Args:
        key: of the trial.
        init: SHA-256 (hexadecimal) of the weights from which the trial started.
        basis: of the pool.
    """
    if init != basis.init.sha256:
        raise IncompatibleWeights(
            f"trial {key} started from init {init[:12]}, the "
            f"pool's init is {basis.init.sha256[:12]}. Models that share no initialisation do "
            "not average into a good one; remove it, or make a sweep of its own for it."
        )
