"""The plan of an adaptive sweep: the points that were asked for so far, as the store keeps them.

    sweeps/<name>/asked/<search>/<index>.json    Asked: written before its trial runs
    sweeps/<name>/stopped/<search>/<key>.json    Stopped: a trial that the scheduler gave up

`<search>` is a digest of what shapes the points but for their number, so that more trials go on
where fewer ended.
"""

from __future__ import annotations

from soupray.core.records import Basis, EpochRecord, Record, Trial, digest
from soupray.plan import PlannedTrial, as_trials, trials_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.objects import Store, read_record


class Asked(Record, frozen=True, kw_only=True):
    """A trial that a sampler asked for, at a point: a number for each dimension."""

    point: tuple[float, ...]
    planned: PlannedTrial


class Stopped(Record, tag="stopped", frozen=True, kw_only=True):
    """A trial that a scheduler stopped for good: under-trained, so no ingredient."""

    trial: Trial
    last: EpochRecord


def _search(spec: SweepSpec, basis: Basis) -> str:
    search = spec.search.model_dump(mode="json", exclude={"trials"})
    shaping = [search, spec.seed, basis.key, spec.setting, spec.training.record()]
    return digest(shaping if spec.metric == "accuracy" else [*shaping, spec.metric])[:16]


def asked_path(spec: SweepSpec, basis: Basis, index: int | None = None) -> str:
    """Where the point of trial `index` is; without one, the folder of all."""
    folder = f"sweeps/{spec.name}/asked/{_search(spec, basis)}"
    return folder if index is None else f"{folder}/{index:05d}.json"


def stopped_path(spec: SweepSpec, basis: Basis, key: str = "") -> str:
    """Where it is recorded that the trial `key` was stopped; without one, the folder of all."""
    folder = f"sweeps/{spec.name}/stopped/{_search(spec, basis)}"
    return f"{folder}/{key}.json" if key else folder


def find_asked(store: Store, spec: SweepSpec, basis: Basis) -> list[Asked]:
    """What was asked for so far, in order, of the trials that the spec has now."""
    found = [read_record(store, path, Asked) for path in store.list(asked_path(spec, basis))]
    return [asked for asked in found if asked.planned.index < spec.search.trials]


def find_stopped(store: Store, spec: SweepSpec, basis: Basis) -> set[str]:
    """Keys of the trials that the scheduler of this sweep stopped."""
    if spec.search.scheduler == "fifo":
        return set()
    paths = store.list(stopped_path(spec, basis))
    return {path.rpartition("/")[2].removesuffix(".json") for path in paths}


def unasked(store: Store, spec: SweepSpec, basis: Basis) -> int:
    """How many trials of an adaptive sweep are still to be asked for."""
    if spec.search.sampler != "tpe":
        return 0
    return spec.search.trials - len(find_asked(store, spec, basis))


def known_trials(store: Store, spec: SweepSpec, basis: Basis) -> list[Trial]:
    """The plan of `spec`; of an adaptive sweep, what was asked for so far."""
    if spec.search.sampler != "tpe":
        return trials_of(spec, basis)
    return as_trials(spec, basis, [a.planned for a in find_asked(store, spec, basis)])
