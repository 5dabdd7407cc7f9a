"""What the trials of a sweep have cost and will cost, counted from their records (`budget`).

A trial costs the time in which it was trained, times its GPUs or cores:

    a trial that is over            from its start to its end, at least the sum of its epochs
    one that the scheduler stopped  its epochs, each as long as the last one
    one that was interrupted        the epochs of its saved state
    one that runs now               the time since its training began; before its first epoch is
                                    over, since its worker was started

Each trial is counted once, whoever looks and how often a driver crashed. What is in no record is
not counted: of an attempt that was killed, what came after its last saved state. A trial that
another sweep trained costs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from soupray.core.records import Record
from soupray.core.trials import EpochRecord, Manifest
from soupray.search.history import Stopped, find_saved_epochs, search_key
from soupray.search.state import SweepState
from soupray.spec.limits import Price
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.manifests import find_manifest
from soupray.store.objects import Store, read_record

HOUR_S = 3600.0
UNSUGGESTED = ""


class Stretch(NamedTuple):
    """A time in which a trial was trained, in Unix seconds."""

    start: float
    end: float


class Spent(Record, frozen=True, kw_only=True):
    """A cost.

    Attributes:
        gpu_hours: hours of trials times their GPUs.
        cpu_hours: hours of trials times their cores.
        hours: in which at least one trial was trained.
        usd: by the prices of the spec; None without prices.
    """

    gpu_hours: float
    cpu_hours: float
    hours: float
    usd: float | None


class Account(Record, frozen=True, kw_only=True):
    """What was spent, what all trials of the plan will have cost, and the limits that are reached.

    `forecast` is None as long as no epoch is recorded. `over`: limits in words, such as
    "gpu_hours: 10.2 of 10"; the same of the forecast in `will_be_over`.
    """

    spent: Spent
    forecast: Spent | None
    over: tuple[str, ...]
    will_be_over: tuple[str, ...]


class Book(NamedTuple):
    """The records of a sweep as an account needs them.

    Attributes:
        stretches: when each trial was trained, by its key.
        seconds: of the epochs that are recorded.
        epochs: number of these epochs.
        left: epochs that are still to be trained, by the key of the trial; UNSUGGESTED has those of
            trials that a search has not suggested yet.
        at_a_time: trials that run at the same time, for a forecast before the first one ran.
    """

    stretches: dict[str, tuple[Stretch, ...]]
    seconds: float
    epochs: int
    left: dict[str, float]
    at_a_time: float = 1.0


def account(book: Book, spec: SweepSpec, running: Mapping[str, Stretch] | None = None) -> Account:
    """Return the account of a sweep: a pure function.

    Args:
        book: the records.
        spec: the sweep, with a budget or without.
        running: for each trial that runs, when it was started, and now.
    """
    now = running or {}
    each = [*now.values()]
    for key, known in book.stretches.items():
        # A state that was saved since the trial was started is in the time that it runs.
        until = now[key].start if key in now else math.inf
        each += [Stretch(min(s.start, until), min(s.end, until)) for s in known]
    seconds, union = sum(s.end - s.start for s in each), _union(each)
    spent = _cost(seconds, union, spec)
    forecast = None
    if book.epochs:
        more = sum(book.left.values()) * book.seconds / book.epochs
        at_a_time = seconds / union if union else book.at_a_time
        forecast = _cost(seconds + more, union + more / at_a_time, spec)
    return Account(
        spent=spent,
        forecast=forecast,
        over=_over(spent, spec),
        will_be_over=() if forecast is None else _over(forecast, spec),
    )


def _cost(seconds: float, union: float, spec: SweepSpec) -> Spent:
    trial = seconds / HOUR_S * spec.training.workers
    gpu, cpu = trial * spec.resources.gpu, trial * spec.resources.cpu
    price = (spec.budget.price if spec.budget else None) or Price()
    priced = price.gpu_hour is not None or price.cpu_hour is not None
    usd = gpu * (price.gpu_hour or 0.0) + cpu * (price.cpu_hour or 0.0)
    return Spent(gpu_hours=gpu, cpu_hours=cpu, hours=union / HOUR_S, usd=usd if priced else None)


def _over(cost: Spent, spec: SweepSpec) -> tuple[str, ...]:
    if spec.budget is None:
        return ()
    found = []
    for name in ("gpu_hours", "hours", "usd"):
        limit, value = getattr(spec.budget, name), getattr(cost, name)
        if limit is not None and value is not None and value >= limit:
            found.append(f"{name}: {value:.4g} of {limit:.4g}")
    return tuple(found)


def _union(stretches: Iterable[Stretch]) -> float:
    """The seconds that are in at least one stretch."""
    total, until = 0.0, -math.inf
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def stretch_of(manifest: Manifest) -> Stretch:
    """Return when a trial that is over was trained.

    One that was interrupted has epochs from before its last start.
    """
    seconds = max(manifest.finished - manifest.started, _sum(manifest.history))
    return Stretch(manifest.finished - seconds, manifest.finished)


def read_book(store: Store, spec: SweepSpec, state: SweepState) -> Book:
    """Return the records of a sweep.

    Args:
        store: the store.
        spec: the sweep.
        state: what is in the store; a missing trial may have been trained, and then let go. One
            that the stop rule spares may have been killed while it trained.

    Raises:
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    missing = state.missing
    again = [find_manifest(store, t.key) for t in missing if t.key in state.freed]
    over = [*state.complete, *state.diverged, *(m for m in again if m is not None)]
    own = [m for m in over if m.trial.sweep == spec.name]
    stretches: dict[str, tuple[Stretch, ...]] = {m.trial.key: (stretch_of(m),) for m in own}
    seconds, epochs = sum(_sum(m.history) for m in own), sum(len(m.history) for m in own)
    planned = [int(t.hparams["epochs"]) for t in (*missing, *(m.trial for m in own))]
    usual = sum(planned) / len(planned) if planned else 0.0
    left = {UNSUGGESTED: state.unsuggested * usual}
    begun = [*missing, *state.spared]
    at = {path: when for path, _, when in store.entries(layout.RESUME)} if begun else {}
    left |= {trial.key: float(int(trial.hparams["epochs"])) for trial in missing}
    for trial in begun:
        path = layout.resume_state(trial.key)
        saved = find_saved_epochs(store, trial.key) if path in at else ()
        if trial.key in left:
            left[trial.key] -= len(saved)
        if saved:
            known = stretches.get(trial.key, ())
            stretches[trial.key] = (*known, Stretch(at[path] - _sum(saved), at[path]))
            seconds, epochs = seconds + _sum(saved), epochs + len(saved)
    if state.stopped:
        folder = layout.all_stopped(spec.name, search_key(spec, state.basis))
        for path, _, when in store.entries(folder):
            one: Stopped = read_record(store, path, Stopped)
            took = one.last.epoch * one.last.seconds
            stretches[one.trial.key] = (Stretch(when - took, when),)
            seconds, epochs = seconds + took, epochs + one.last.epoch
    return Book(stretches, seconds, epochs, left)


def _sum(history: Iterable[EpochRecord]) -> float:
    return sum(e.seconds for e in history)


def in_words(found: Account, spec: SweepSpec) -> str:
    """Return what was spent of a budget, and what all trials will have cost."""
    if spec.budget is None:
        return ""
    said = []
    for name, unit in (("gpu_hours", "GPU-hours"), ("hours", "hours"), ("usd", "USD")):
        limit = getattr(spec.budget, name)
        if limit is None:
            continue
        will = (
            ""
            if found.forecast is None
            else f", all trials: {_short(getattr(found.forecast, name))}"
        )
        said.append(f"{_short(getattr(found.spent, name))} of {limit:.4g} {unit}{will}")
    return "; ".join(said)


def _short(amount: float) -> str:
    """Three digits, and at most four decimals: no 5.76e-09 hours."""
    return f"{round(amount, 4):.3g}"
