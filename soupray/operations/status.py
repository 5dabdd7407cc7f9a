"""Show the state of a sweep from the store alone, on any machine and without Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from soupray.core.errors import NotFound
from soupray.core.records import Basis, Metric, Record, Scores
from soupray.core.trials import Tombstone
from soupray.maths.metrics import as_read, value
from soupray.reporting.anytime import Point, points
from soupray.search.budget import Account, Stretch, account, in_words, read_book
from soupray.search.prefixes import Enough
from soupray.search.state import (
    find_basis,
    pool_plan,
    prefixes_of,
    read_state,
    refuse_other_origin,
    with_let_go,
)
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.lease import Beat, Driver, RunningTrial, find_driver
from soupray.store.manifests import Counted, Glance, glance_at_manifests
from soupray.store.objects import Store
from soupray.store.presence import Working, find_present


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
    are not stored elsewhere. `others` are soups, checks and diagnoses that run. `soup` is what the
    first trials of the plan were worth. `enough`: the decision of the stop rule, for which `spared`
    trials are not trained. `account`: what was spent of the budget; None without one. `budget` says
    it in words.
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
    others: tuple[Working, ...] = ()
    account: Account | None = None
    budget: str = ""
    soup: tuple[Point, ...] = ()
    enough: Enough | None = None
    spared: int = 0


def find_status(spec: SweepSpec, home: Path) -> Status:
    """Return the state of the sweep of `spec`.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.

    Raises:
        NotFound: no trial was planned with this spec yet.
        StoreError: the store cannot be reached.
    """
    store = find_place(spec, home).open_store()
    driver = find_driver(store, spec.name)
    basis = find_basis(store, spec)
    if basis is None:
        raise _not_begun(spec, store, driver)
    plan = pool_plan(store, spec, basis)
    scores: Any = Counted if spec.metric == "accuracy" else Scores
    over = glance_at_manifests(store, plan.trials, scores, lambda found: _over(found, spec, basis))
    complete = [one.best for one in over if one is not None and one.best is not None]
    left = [t for t, one in zip(plan.trials, over, strict=True) if one is None]
    missing = {t.key for t in left if plan.is_needed(t) or t.method == "imported"}
    heartbeat = driver.heartbeat if driver else None
    beat = heartbeat.beat if heartbeat else Beat(running=(), failed={}, seconds_left=None)
    # A trial that ended since the heartbeat does not run.
    unfinished = {t.key for t in left}
    running = tuple(r for r in beat.running if r.key in unfinished)
    needed = {r.key for r in running} & missing
    spared = len(unfinished - missing - {r.key for r in running})
    spent = _account(store, spec, basis, running) if spec.budget else None
    return Status(
        sweep=spec.name,
        storage=store.url,
        trials=len(over) + plan.unsuggested + len(plan.stopped),
        complete=len(complete),
        diverged=len(over) - len(complete) - len(left),
        stopped=len(plan.stopped),
        running=running,
        failed=beat.failed,
        missing=len(missing) + plan.unsuggested - len(needed),
        best=min(complete, key=lambda b: (_place(b), b.key), default=None),
        seconds_left=_aged(beat.seconds_left, heartbeat.written) if heartbeat else None,
        driver=driver.lease.who if driver else None,
        lease_expires=driver.lease.expires if driver else None,
        heartbeat=heartbeat.written if heartbeat else None,
        others=tuple(one.working for one in find_present(store, spec.name)),
        account=spent,
        budget="" if spent is None else in_words(spent, spec),
        soup=points(prefixes_of(store, spec, basis), spec.metric),
        enough=plan.enough,
        spared=spared,
    )


def _not_begun(spec: SweepSpec, store: Store, driver: Driver | None) -> NotFound:
    begun = f"{driver.lease.who} makes its data and theta_0" if driver else "nobody drives it"
    return NotFound(
        f"no trial of {spec.name} was planned with this spec in {store.url}: {begun}. "
        "Start it with `soupray sweep`, or look again in a minute."
    )


def _account(
    store: Store, spec: SweepSpec, basis: Basis, running: tuple[RunningTrial, ...]
) -> Account:
    """Return what was spent until now, by the clock of this machine for trials that run."""
    book = read_book(store, spec, with_let_go(read_state(store, spec, basis), spec))
    now = time.time()
    left = {one.key: float(one.epochs - one.epoch) for one in running}
    since = {one.key: Stretch(min(one.since, now), now) for one in running}
    return account(book._replace(left=book.left | left), spec, since)


class _Over(NamedTuple):
    """What a status needs of the manifest of a trial. `best`: None if the trial diverged."""

    best: Best | None


def _over(manifest: Glance[Any] | Tombstone, spec: SweepSpec, basis: Basis) -> _Over:
    if isinstance(manifest, Tombstone):
        return _Over(None)
    refuse_other_origin(manifest.trial.key, manifest.init, basis)
    held_out, metric = manifest.held_out, spec.metric
    return _Over(
        Best(
            key=manifest.trial.key,
            hparams=manifest.trial.hparams,
            metric=metric,
            score=as_read(value(held_out, metric), metric),
            accuracy=held_out.accuracy,
            n=held_out.n,
        )
    )


def _place(best: Best) -> float:
    """The value of the metric, as a number where smaller is better."""
    return -as_read(best.score, best.metric)


def _aged(left: float | None, written: float) -> float | None:
    """Return the time left now, from the time left when the heartbeat was written, in seconds."""
    return None if left is None else max(0.0, left - (time.time() - written))
