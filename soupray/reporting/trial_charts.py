"""The charts of the report about trials: hyperparameters, coefficients, worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from soupray.core.records import Metric
from soupray.maths.metrics import SHARES
from soupray.reporting.details import TrialFacts
from soupray.reporting.ranking import Entry
from soupray.reporting.vega import (
    CHAMPION,
    PERCENT,
    SINGLE,
    WIDTH,
    Chart,
    chart_of,
    finished,
    share_of,
)


def importance_chart(shares: Mapping[str, float]) -> Chart:
    """Return a bar for the importance of each hyperparameter.

    Args:
        shares: share of the variance of held-out scores that each one explains.
    """
    rows = [{"hyperparameter": name, "share": share} for name, share in shares.items()]
    made = (
        chart_of(rows, width=WIDTH, height=alt.Step(22))
        .mark_bar(color=SINGLE)
        .encode(
            alt.X("share:Q", title="share of the variance explained", axis=PERCENT),
            alt.Y("hyperparameter:N", sort=None, title=None),
            tooltip=["hyperparameter:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return finished("importance", made)


def anytime_chart(rows: list[dict[str, Any]], metric: Metric) -> Chart:
    """Return the soup and the best single model against the number of trials.

    Args:
        rows: as `anytime.rows` returns them.
        metric: whose value they have.
    """
    axis = PERCENT if metric in SHARES else alt.Axis()
    made = (
        chart_of(rows, width=WIDTH, height=240)
        .mark_line(point=True)
        .encode(
            alt.X("trials:Q", title="trials of the plan that are over",
                  scale=alt.Scale(type="log", base=2), axis=alt.Axis(format="d")),
            alt.Y("value:Q", title=f"held-out {metric}", axis=axis,
                  scale=alt.Scale(zero=False)),
            alt.Color("model:N", title=None, sort=None,
                      scale=alt.Scale(
                          domain=["greedy soup", "its ensemble", "uniform soup", "best single"],
                          range=[CHAMPION, "#e9a3ac", "#2a9d8f", SINGLE])),
            tooltip=["model:N", "trials:Q", alt.Tooltip("value:Q", format=".4f")],
        )
    )  # fmt: skip
    return finished("anytime", made)


def parallel(trials: Sequence[TrialFacts]) -> Any:
    """Return each trial as a line over its hyperparameters and its scores.

    Args:
        trials: the ingredients.

    Returns:
        The chart; None if no hyperparameter differs.
    """
    own = [t for t in trials if not t.imported]
    names = [n for n in (own[0].hparams if own else {}) if len({t.hparams.get(n) for t in own}) > 1]
    if not names:
        return None
    columns: dict[str, list[Any]] = {n: [t.hparams.get(n) for t in own] for n in names}
    columns["held-out"] = [t.held_out[0] for t in own]
    columns["ID test"] = [t.test for t in own]
    if own[0].shift_mean is not None:
        columns["shifts"] = [t.shift_mean for t in own]
    places = {name: _places(values) for name, values in columns.items()}
    labels = {name: f"{name}|{_range(values)}" for name, values in columns.items()}
    rows = [
        {"trial": t.key[:8], "axis": labels[name], "place": places[name][k],
         "value": _as_text(values[k]), "held_out": t.held_out[0]}
        for k, t in enumerate(own)
        for name, values in columns.items()
    ]  # fmt: skip
    picked = alt.selection_point(fields=["trial"], on="pointerover", empty=True)
    return (
        chart_of(rows, width=WIDTH, height=260)
        .mark_line(point=True)
        .encode(
            alt.X("axis:N", sort=[*labels.values()], title=None,
                  axis=alt.Axis(labelAngle=-30, labelExpr="split(datum.label, '|')")),
            alt.Y("place:Q", title=None, axis=alt.Axis(labels=False, ticks=False, grid=False)),
            alt.Color("held_out:Q", title="held-out", scale=alt.Scale(scheme="viridis"),
                      legend=alt.Legend(format=".1%")),
            detail="trial:N",
            opacity=alt.condition(picked, alt.value(0.85), alt.value(0.1)),
            tooltip=["trial:N", "axis:N", "value:N", share_of("held_out", "held-out")],
        )
        .add_params(picked)
    )  # fmt: skip


def _range(values: list[Any]) -> str:
    """The lowest and the highest value, for the label of an axis."""
    if any(isinstance(v, str) or v is None for v in values):
        return f"{len(set(values))} values"
    return f"{_as_text(min(values))} to {_as_text(max(values))}"


def _as_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _places(values: list[Any]) -> list[float]:
    """Values between 0 and 1: numbers by size, those over decades by logarithm, texts in order."""
    if any(isinstance(v, str) or v is None for v in values):
        order = sorted({str(v) for v in values})
        return [order.index(str(v)) / max(1, len(order) - 1) for v in values]
    low, high = min(values), max(values)
    if low > 0 and high / low > 10:
        values, low, high = [math.log(v) for v in values], math.log(low), math.log(high)
    return [(v - low) / (high - low) if high > low else 0.5 for v in values]


def coefficients(trials: Sequence[TrialFacts], entries: Sequence[Entry]) -> Any:
    """Return the coefficient of each trial in each soup: a column for each different model.

    Args:
        trials: the ingredients.
        entries: the leaderboard, best first.

    Returns:
        The chart; None if no entry is made of several models.
    """
    rows = list(_shares(trials, entries))
    if not rows:
        return None
    order = [t.key[:8] for t in trials]
    entry_order = list(dict.fromkeys(r["entry"] for r in rows))
    return (
        chart_of(rows, width=alt.Step(26), height=alt.Step(18))
        .mark_rect()
        .encode(
            alt.X("entry:N", sort=entry_order, title=None, axis=alt.Axis(labelAngle=-45)),
            alt.Y("trial:N", sort=order, title="trial, best held-out first"),
            alt.Color("coefficient:Q", scale=alt.Scale(range=["#ffffff", "#0b4f8a"], domainMin=0)),
            tooltip=["entry:N", "trial:N", alt.Tooltip("coefficient:Q", format=".3f"),
                     share_of("held_out", "held-out")],
        )
    )  # fmt: skip


def worth(trials: Sequence[TrialFacts]) -> Any:
    """Return a bar for each trial: what it is worth to the ensemble of all.

    Args:
        trials: the ingredients.

    Returns:
        The chart; None for one trial.
    """
    if len(trials) < 2:
        return None
    rows = [
        {"trial": t.key[:8], "worth": t.leave_one_out, "held_out": t.held_out[0]} for t in trials
    ]
    return (
        chart_of(rows, width=WIDTH, height=alt.Step(18))
        .mark_bar()
        .encode(
            alt.X("worth:Q", title="held-out NLL without it, minus NLL with it (nats)"),
            alt.Y("trial:N", sort=None, title="trial, best held-out first"),
            color=alt.condition("datum.worth >= 0", alt.value(SINGLE), alt.value(CHAMPION)),
            tooltip=["trial:N", alt.Tooltip("worth:Q", format="+.4f"),
                     share_of("held_out", "held-out")],
        )
    )  # fmt: skip


def _shares(trials: Sequence[TrialFacts], entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    seen = set()
    for e in entries:
        if len(e.ingredients) < 2 or len(e.coefficients) != len(e.ingredients):
            continue
        if e.candidate in seen:
            continue
        seen.add(e.candidate)
        share = dict(zip(e.ingredients, e.coefficients, strict=True))
        for t in trials:
            yield {"entry": e.name, "trial": t.key[:8], "coefficient": share.get(t.key, 0.0),
                   "held_out": t.held_out[0]}  # fmt: skip
