"""What a home's sweeps are, and what the trials of a sweep are: from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from soupray.core.errors import ConfigError, NotFound, SouprayError
from soupray.core.records import Metric, Record
from soupray.core.trials import Ingredient
from soupray.maths.metrics import as_read, value
from soupray.operations.status import find_status
from soupray.reporting.history import soup_runs, stored_leaderboard
from soupray.search.state import find_state
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec, load


class SweepRow(Record, frozen=True, kw_only=True):
    """A sweep of a home.

    Attributes:
        name: its name.
        spec: file of its spec, as it was when it last ran.
        complete: number of trials that are complete.
        trials: number of all trials.
        soups: number of stored leaderboards.
        champion: entry to take from the newest one; None before the first.
        problem: why the sweep cannot be read now; None if it can.
    """

    name: str
    spec: str
    complete: int = 0
    trials: int = 0
    soups: int = 0
    champion: str | None = None
    problem: str | None = None


class TrialRow(Record, frozen=True, kw_only=True):
    """A trial of a sweep.

    Attributes:
        key: of the trial.
        index: its number in the sweep, from 0; None if the scheduler stopped it.
        state: `complete`, `imported`, `diverged`, `stopped` or `missing`.
        hparams: its hyperparameters.
        accuracy: on held-out data; None if the trial is not complete.
        standard_error: of the accuracy.
        score: the metric of the spec on held-out data, as people read it.
        best_epoch: the epoch whose weights were kept.
        seconds: from its start to its end.
        share: coefficient in the newest champion; None without a champion of averaged weights.
        reason: why it diverged.
        graded: the metric that gives each sample a value, whose mean `accuracy` then is.
    """

    key: str
    index: int | None = None
    state: Literal["complete", "imported", "diverged", "stopped", "missing"]
    hparams: dict[str, float | int | str]
    accuracy: float | None = None
    standard_error: float | None = None
    score: float | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    share: float | None = None
    reason: str | None = None
    graded: str | None = None


def list_sweeps(home: Path) -> list[SweepRow]:
    """Return the sweeps that ran with a home, by name.

    Args:
        home: folder for the state of this machine.
    """
    return [_sweep(path, home) for path in sorted((home / "sweeps").glob("*.yaml"))]


def _sweep(path: Path, home: Path) -> SweepRow:
    try:
        spec = load(path)
        status = find_status(spec, home)
        runs = soup_runs(find_place(spec, home).open_store(), spec)
    except SouprayError as error:
        return SweepRow(name=path.stem, spec=str(path), problem=str(error))
    return SweepRow(
        name=spec.name,
        spec=str(path),
        complete=status.complete,
        trials=status.trials,
        soups=len(runs),
        champion=runs[-1].champion.name if runs else None,
    )


def list_trials(spec: SweepSpec, home: Path, sort: str | None = None) -> list[TrialRow]:
    """Return the trials of a sweep, the best by the spec's metric on held-out data first.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        sort: a hyperparameter, to sort by its value.

    Raises:
        NotFound: nothing was swept with this spec.
        ConfigError: no trial has this hyperparameter.
    """
    store = find_place(spec, home).open_store()
    state = find_state(store, spec)
    if state is None:
        raise NotFound(f"nothing was swept with this spec ({spec.name}) in {store.url}.")
    shares = _shares(spec, home)
    imported = {one.trial.key for one in state.imported}
    metric = spec.metric
    best = sorted(state.ingredients, key=lambda i: (-value(i.held_out, metric), i.trial.key))
    rows = [_complete(one, one.trial.key in imported, shares, metric) for one in best]
    rows += [
        TrialRow(
            key=t.trial.key,
            index=t.trial.index,
            state="diverged",
            hparams=t.trial.hparams,
            seconds=t.finished - t.started,
            reason=t.reason,
        )
        for t in state.diverged
    ]
    rows += [
        TrialRow(key=t.key, index=t.index, state="missing", hparams=t.hparams)
        for t in state.missing
    ]
    rows += [TrialRow(key=key, state="stopped", hparams={}) for key in sorted(state.stopped)]
    return rows if sort is None else _sorted(rows, sort)


def _complete(
    one: Ingredient, imported: bool, shares: dict[str, float] | None, metric: Metric
) -> TrialRow:
    return TrialRow(
        key=one.trial.key,
        index=one.trial.index,
        state="imported" if imported else "complete",
        hparams=one.trial.hparams,
        accuracy=one.held_out.accuracy,
        standard_error=one.held_out.standard_error,
        score=as_read(value(one.held_out, metric), metric),
        best_epoch=one.best_epoch,
        seconds=one.finished - one.started,
        share=None if shares is None else shares.get(one.trial.key, 0.0),
        graded=one.held_out.graded or None,
    )


def _sorted(rows: list[TrialRow], name: str) -> list[TrialRow]:
    """Sort by a hyperparameter, numbers before texts; trials without it come last."""
    known = {known for row in rows for known in row.hparams}
    if name not in known:
        there = ", ".join(sorted(known))
        raise ConfigError(f"--sort {name}: no trial has this hyperparameter. There are: {there}.")

    def place(row: TrialRow) -> tuple[int, float, str]:
        chosen = row.hparams.get(name)
        if chosen is None:
            return 2, 0.0, ""
        return (1, 0.0, chosen) if isinstance(chosen, str) else (0, float(chosen), "")

    return sorted(rows, key=place)


def _shares(spec: SweepSpec, home: Path) -> dict[str, float] | None:
    """Return the coefficient of each trial in the champion; None if it is not one soup."""
    try:
        entries, _, run = stored_leaderboard(spec, home)
    except NotFound:
        return None
    if run is None:
        return None
    taken = next(e for e in entries if e.name == run.champion.name)
    if len(taken.coefficients) != len(taken.ingredients):
        return None
    return dict(zip(taken.ingredients, taken.coefficients, strict=True))
