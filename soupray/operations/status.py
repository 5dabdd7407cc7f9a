"""Show the state of a sweep from the store alone, on any machine and without Ray."""

from __future__ import annotations

import time
from pathlib import Path

from soupray.core.errors import NotFound
from soupray.core.records import Metric, Record
from soupray.maths.metrics import as_read, value
from soupray.search.state import SweepState, find_state
from soupray.services.place import start_services
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.lease import Beat, RunningTrial, find_driver


class Best(Record, frozen=True, kw_only=True):
    """The best ingredient on held-out data so far; `score` is its value of `metric`."""

    key: str
    hparams: dict[str, float | int | str]
    metric: Metric
    score: float
    accuracy: float
    n: int


class Status(Record, frozen=True, kw_only=True):
    """Numbers of trials by state. Times are seconds since the epoch, `seconds_left` is in seconds.

    `missing` trials are neither over nor running. `driver` and `lease_expires` are None if there is
    no driver. `failed` (reason by key) comes from the current run of the driver, because failures
    are not stored elsewhere.
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
    """Return the state of the sweep of `spec`.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.

    Raises:
        NotFound: no trial was planned with this spec yet.
        StoreError: the store cannot be reached.
    """
    store = start_services(spec, home).place.open_store()
    driver = find_driver(store, spec.name)
    state = find_state(store, spec)
    if state is None:
        begun = f"{driver.lease.who} makes its data and theta_0" if driver else "nobody drives it"
        raise NotFound(
            f"no trial of {spec.name} was planned with this spec in {store.url}: {begun}. "
            "Start it with `soupray sweep`, or look again in a minute."
        )
    heartbeat = driver.heartbeat if driver else None
    beat = heartbeat.beat if heartbeat else Beat(running=(), failed={}, seconds_left=None)
    missing = {t.key for t in [*state.missing, *state.lost]}
    # A trial that ended since the heartbeat does not run.
    running = tuple(r for r in beat.running if r.key in missing)
    return Status(
        sweep=spec.name,
        storage=store.url,
        trials=state.known + state.unsuggested + len(state.stopped),
        complete=len(state.ingredients),
        diverged=len(state.diverged),
        stopped=len(state.stopped),
        running=running,
        failed=beat.failed,
        missing=len(missing) + state.unsuggested - len(running),
        best=_best(state, spec.metric),
        seconds_left=_aged(beat.seconds_left, heartbeat.written) if heartbeat else None,
        driver=driver.lease.who if driver else None,
        lease_expires=driver.lease.expires if driver else None,
        heartbeat=heartbeat.written if heartbeat else None,
    )


def _best(state: SweepState, metric: Metric) -> Best | None:
    if not state.ingredients:
        return None
    first = min(state.ingredients, key=lambda i: (-value(i.held_out, metric), i.trial.key))
    return Best(
        key=first.trial.key,
        hparams=first.trial.hparams,
        metric=metric,
        score=as_read(value(first.held_out, metric), metric),
        accuracy=first.held_out.accuracy,
        n=first.held_out.n,
    )


def _aged(left: float | None, written: float) -> float | None:
    """Return the time left now, from the time left when the heartbeat was written, in seconds."""
    return None if left is None else max(0.0, left - (time.time() - written))
