"""How a sweep stands, from the store alone: from any machine, without Ray."""

from __future__ import annotations

import time
from pathlib import Path

from soupray.asked import find_stopped, unasked
from soupray.core.errors import NotFound
from soupray.core.records import Metric, Record
from soupray.evaluation.pool import Found, all_trials, find_trials
from soupray.maths.metrics import as_read, value
from soupray.services.place import start_services
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.lease import Beat, RunningTrial, find_driver
from soupray.wiring import find_basis


class Best(Record, frozen=True, kw_only=True):
    """The best ingredient so far on held-out data, by `metric`, of which it has `score`."""

    key: str
    hparams: dict[str, float | int | str]
    metric: Metric
    score: float
    accuracy: float
    n: int


class Status(Record, frozen=True, kw_only=True):
    """Trials by state; `missing` are neither over nor running. Times: seconds since the epoch.

    `driver` and `lease_expires` are None where nobody drives; `failed` (key: reason) is of the
    driver's present run, as nothing else is kept of a failure.
    """

    sweep: str
    storage: str
    trials: int
    complete: int
    diverged: int
    stopped: int
    running: tuple[RunningTrial, ...]
    failed: dict[str, str]
    missing: int
    best: Best | None
    seconds_left: float | None
    driver: str | None
    lease_expires: float | None
    heartbeat: float | None


def find_status(spec: SweepSpec, home: Path) -> Status:
    """How `spec` stands. Raises NotFound if it was never swept, StoreError."""
    store = start_services(spec, home).place.open_store()
    driver = find_driver(store, spec.name)
    basis = find_basis(store, spec)
    if basis is None:
        begun = f"{driver.lease.who} makes its data and theta_0" if driver else "nobody drives it"
        raise NotFound(
            f"no trial of {spec.name} was planned with this spec in {store.url}: {begun}. "
            "Start it with `soupray sweep`, or look again in a minute."
        )
    trials = all_trials(store, spec, basis)
    found = find_trials(store, trials, basis)
    later, stopped = unasked(store, spec, basis), len(find_stopped(store, spec, basis))
    heartbeat = driver.heartbeat if driver else None
    beat = heartbeat.beat if heartbeat else Beat(running=(), failed={}, seconds_left=None)
    missing = {t.key for t in found.missing}  # what ended since the beat runs no more
    running = tuple(r for r in beat.running if r.key in missing)
    return Status(
        sweep=spec.name,
        storage=store.url,
        trials=len(trials) + later + stopped,
        complete=len(found.complete),
        diverged=len(found.diverged),
        stopped=stopped,
        running=running,
        failed=beat.failed,
        missing=len(missing) + later - len(running),
        best=_best(found, spec.metric),
        seconds_left=_aged(beat.seconds_left, heartbeat.written) if heartbeat else None,
        driver=driver.lease.who if driver else None,
        lease_expires=driver.lease.expires if driver else None,
        heartbeat=heartbeat.written if heartbeat else None,
    )


def _best(found: Found, metric: Metric) -> Best | None:
    if not found.complete:
        return None
    first = min(found.complete, key=lambda i: (-value(i.held_out, metric), i.trial.key))
    return Best(
        key=first.trial.key,
        hparams=first.trial.hparams,
        metric=metric,
        score=as_read(value(first.held_out, metric), metric),
        accuracy=first.held_out.accuracy,
        n=first.held_out.n,
    )


def _aged(left: float | None, written: float) -> float | None:
    """What is left now of what was left when it was written."""
    return None if left is None else max(0.0, left - (time.time() - written))
