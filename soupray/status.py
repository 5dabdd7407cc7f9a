"""How a sweep stands, from the store alone: from any machine, without Ray."""

from __future__ import annotations

import time
from pathlib import Path

from soupray.asked import unasked
from soupray.errors import NotFound
from soupray.evaluation.pool import all_trials, find_trials
from soupray.heartbeat import RunningTrial, find_driver
from soupray.records import Record, pool_of
from soupray.settling import settle
from soupray.spec import SweepSpec
from soupray.wiring import find_basis


class Best(Record, frozen=True, kw_only=True):
    """The best ingredient so far, on held-out data."""

    key: str
    hparams: dict[str, float | int | str]
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
    store = settle(spec, home).place.open_store()
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
    later = unasked(store, spec, basis)
    heartbeat = driver.heartbeat if driver else None
    over, planned = set(found.over), {t.key for t in trials}
    running = tuple(
        r for r in (heartbeat.beat.running if heartbeat else ()) if r.key in planned - over
    )
    best = pool_of(basis, found.complete).ingredients[:1]
    left = heartbeat.beat.seconds_left if heartbeat else None
    return Status(
        sweep=spec.name,
        storage=store.url,
        trials=len(trials) + later,
        complete=len(found.complete),
        diverged=len(found.diverged),
        running=running,
        failed=heartbeat.beat.failed if heartbeat else {},
        missing=len(found.missing) + later - len(running),
        best=next(
            (
                Best(
                    key=i.trial.key,
                    hparams=i.trial.hparams,
                    accuracy=i.held_out.accuracy,
                    n=i.held_out.n,
                )
                for i in best
            ),
            None,
        ),
        seconds_left=_aged(left, heartbeat.written) if heartbeat else None,
        driver=driver.lease.who if driver else None,
        lease_expires=driver.lease.expires if driver else None,
        heartbeat=heartbeat.written if heartbeat else None,
    )


def _aged(left: float | None, written: float) -> float | None:
    """What is left now of what was left when it was written."""
    return None if left is None else max(0.0, left - (time.time() - written))
