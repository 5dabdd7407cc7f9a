"""The sweep: the unfinished part of the plan through Ray Tune, every trial into the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from soupray.asked import Stopped, find_stopped, known_trials, stopped_path, unasked
from soupray.console import duration, say
from soupray.core.errors import StoreError, TrialError
from soupray.core.records import Basis, EpochRecord, Manifest, Record, Trial
from soupray.evaluation.pool import Found, find_trials
from soupray.indexer import Indexer
from soupray.services.home import remember_spec
from soupray.services.place import Services, start_services
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import Lease, write_heartbeat
from soupray.store.objects import Store, check_bucket, create_record, read_record
from soupray.watch import Watch


class SweepReport(Record, frozen=True, kw_only=True):
    """How a sweep ended. `failed` maps a trial's key to the reason; such trials are repeated."""

    sweep: str
    trials: int
    trained: int
    found: int
    diverged: int
    stopped: int
    failed: dict[str, str]
    unfinished: int
    seconds: float
    storage: str


def run_sweep(spec_path: Path, spec: SweepSpec, home: Path, address: str | None) -> SweepReport:
    """Train what is missing of the plan of `spec`.

    Raises:
        ConfigError: the spec or the environment cannot work.
        StoreError: the store is away, or another driver holds the sweep.
    """
    from soupray.distributed import cluster

    started = time.time()
    with cluster.when_needed(address, spec, workers=spec.training.workers) as attach:
        services = start_services(spec, home)
        check_bucket(services.place.storage, services.place.read_credentials())
        store = services.place.open_store()
        remember_spec(spec_path, spec, home)
        with Lease(store, layout.lease(spec.name)) as lease:
            basis = find_basis_or_make(spec, services, attach)
            create_record(store, layout.spec(spec.name, spec.digest), _as_data(spec))
            work = _find_work(store, spec, basis)
            found, todo = work.found, len(work.found.missing) + work.unasked
            said = f"{len(found.over)} in the store, {todo} to train"
            gone = f" ({len(work.stopped)} were stopped)" if work.stopped else ""
            say(f"{spec.search.trials} trials planned, {said}{gone}.")
            if todo:
                attach()
            watch = _train(spec, services, work, lease)
        if lease.lost:
            raise StoreError(f"Another driver took the sweep {spec.name} over; this one stops.")
    return SweepReport(
        sweep=spec.name,
        trials=spec.search.trials,
        trained=watch.complete,
        found=len(found.over),
        diverged=len(found.diverged) + watch.diverged,
        failed=watch.errors,
        stopped=len(work.stopped) + watch.given_up,
        unfinished=todo - watch.complete - watch.diverged - watch.given_up,
        seconds=time.time() - started,
        storage=services.place.storage,
    )


class _Work(NamedTuple):
    """What there is of a sweep and what is to do; `unasked` trials have no point yet."""

    basis: Basis
    found: Found
    stopped: set[str]
    unasked: int


def _find_work(store: Store, spec: SweepSpec, basis: Basis) -> _Work:
    stopped = find_stopped(store, spec, basis)
    known = [t for t in known_trials(store, spec, basis) if t.key not in stopped]
    found = find_trials(store, known, basis)
    return _Work(basis, found, stopped, unasked(store, spec, basis))


def _train(spec: SweepSpec, services: Services, work: _Work, lease: Lease) -> Watch:
    """Run what is missing, with the live table, and index it as it finishes."""
    found = work.found

    store = services.place.open_store()

    def read(key: str) -> Manifest:
        manifest: Manifest = read_record(store, layout.manifest(key), Manifest)
        return manifest

    indexer = Indexer(spec, services, read)
    for key in found.over:
        indexer.add(key)
    watch = Watch(found.missing, read, indexer.add)
    with indexer:
        if found.missing or work.unasked:
            lease.attend(lambda: write_heartbeat(store, spec.name, lease.holder, watch.beat()))
            with watch:
                _run(spec, services, work, watch, lease)
    return watch


def _run(spec: SweepSpec, services: Services, work: _Work, watch: Watch, lease: Lease) -> None:
    from soupray.distributed.search import Asker
    from soupray.distributed.tune import Planned, run_trials

    store = services.place.open_store()
    adaptive = spec.search.sampler == "tpe"
    asker = Asker(store, spec, work.basis) if adaptive else None

    def give_up(trial: Trial, last: EpochRecord) -> None:
        path = stopped_path(spec, work.basis, trial.key)
        create_record(store, path, Stopped(trial=trial, last=last))

    planned = Planned(work.found.missing, asker)
    run_trials(spec, services.place, planned, watch, lambda: lease.lost, give_up)


def find_basis_or_make(spec: SweepSpec, services: Services, attach: Callable[[], None]) -> Basis:
    """The stored basis, else one made on a worker: the driver never loads weights."""
    from soupray.distributed import cluster
    from soupray.wiring import basis_key, find_basis

    basis = find_basis(services.place.open_store(), spec)
    if basis is None:
        say("decoding the data and building the initial model ...")
        attach()
        basis = cluster.make_basis_there(spec, services.place, basis_key(spec))
        for note in basis.notes:
            say(f"note: {note}.")
    return basis


def _as_data(spec: SweepSpec) -> dict[str, object]:
    return spec.model_dump(mode="json")


def check_report(report: SweepReport) -> None:
    """Raises TrialError if trials failed; what is stored stays, and another run repeats them."""
    if report.failed:
        key, reason = next(iter(report.failed.items()))
        raise TrialError(
            f"{len(report.failed)} of {report.trials} trials failed, the first: {key}: {reason}. "
            "Run the same command again: finished trials are kept."
        )
    if report.unfinished:
        raise TrialError(
            f"{report.unfinished} of {report.trials} trials did not finish. Run the same command "
            "again: finished trials are kept."
        )


def describe(report: SweepReport) -> str:
    """One line for the person at the terminal."""
    stopped = f"{report.stopped} stopped, " if report.stopped else ""
    return (
        f"sweep {report.sweep}: {report.trained} trained, {report.found} found in the store, "
        f"{report.diverged} diverged, {stopped}{len(report.failed)} failed; took "
        f"{duration(report.seconds)}."
    )


if __name__ == "__main__":  # python -m soupray.sweep SPEC, as a Ray job calls it
    from soupray.cli import main

    main(["sweep", *sys.argv[1:]])
