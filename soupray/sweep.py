"""The sweep: the unfinished part of the plan through Ray Tune, every trial into the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from soupray.checkpoints import create_record, read_record
from soupray.console import duration, say
from soupray.errors import StoreError, TrialError
from soupray.evaluation.pool import Found, find_trials, manifest_path
from soupray.heartbeat import lease_path, write_heartbeat
from soupray.home import remember_spec
from soupray.indexer import Indexer
from soupray.lease import Lease
from soupray.plan import trials_of
from soupray.records import Basis, Manifest, Record
from soupray.settling import Settled, settle
from soupray.spec import SweepSpec
from soupray.storage import check_bucket
from soupray.watch import Watch


class SweepReport(Record, frozen=True, kw_only=True):
    """How a sweep ended. `failed` maps a trial's key to the reason; such trials are repeated."""

    sweep: str
    trials: int
    trained: int
    found: int
    diverged: int
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
    with cluster.when_needed(address, spec) as attach:
        settled = settle(spec, home)
        check_bucket(settled.place.storage, settled.place.read_credentials())
        store = settled.place.open_store()
        remember_spec(spec_path, spec, home)
        with Lease(store, lease_path(spec.name)) as lease:
            basis = find_basis_or_make(spec, settled, attach)
            create_record(store, f"sweeps/{spec.name}/specs/{spec.digest}.json", _as_data(spec))
            trials = trials_of(spec, basis)
            found = find_trials(store, trials, basis)
            todo = len(found.missing)
            say(f"{len(trials)} trials planned, {len(found.over)} in the store, {todo} to train.")
            if found.missing:
                attach()
            watch = _train(spec, settled, found, lease)
        if lease.lost.is_set():
            raise StoreError(f"Another driver took the sweep {spec.name} over; this one stops.")
    return SweepReport(
        sweep=spec.name,
        trials=len(trials),
        trained=watch.complete,
        found=len(found.over),
        diverged=len(found.diverged) + watch.diverged,
        failed=watch.errors,
        unfinished=len(found.missing) - watch.complete - watch.diverged,
        seconds=time.time() - started,
        storage=settled.place.storage,
    )


def _train(spec: SweepSpec, settled: Settled, found: Found, lease: Lease) -> Watch:
    """Run what is missing, with the live table, and index it as it finishes."""
    from soupray.distributed.tune import run_trials

    store = settled.place.open_store()

    def read(key: str) -> Manifest:
        manifest: Manifest = read_record(store, manifest_path(key), Manifest)
        return manifest

    indexer = Indexer(spec, settled, read)
    for key in found.over:
        indexer.add(key)
    watch = Watch(found.missing, read, indexer.add)
    with indexer:
        if found.missing:
            lease.attend(lambda: write_heartbeat(store, spec.name, lease.holder, watch.beat()))
            with watch:
                run_trials(spec, settled.place, found.missing, watch, stop=lease.lost.is_set)
    return watch


def find_basis_or_make(spec: SweepSpec, settled: Settled, attach: Callable[[], None]) -> Basis:
    """The stored basis, else one made on a worker: the driver never loads weights."""
    from soupray.distributed import cluster
    from soupray.wiring import basis_key, find_basis

    basis = find_basis(settled.place.open_store(), spec)
    if basis is None:
        say("decoding the data and building the initial model ...")
        attach()
        basis = cluster.make_basis_there(spec, settled.place, basis_key(spec))
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
    return (
        f"sweep {report.sweep}: {report.trained} trained, {report.found} found in the store, "
        f"{report.diverged} diverged, {len(report.failed)} failed; took {duration(report.seconds)}."
    )


if __name__ == "__main__":  # python -m soupray.sweep SPEC, as a Ray job calls it
    from soupray.cli import main

    main(["sweep", *sys.argv[1:]])
