"""The anytime soup as people read it: what the first trials of a sweep were worth (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from soupray.core.records import SHARES, Metric, Record, Scores
from soupray.maths.metrics import as_read, value
from soupray.search.prefixes import Prefix


class Difference(Record, frozen=True, kw_only=True):
    """The difference of two models on held-out data, and its standard error, paired by sample."""

    difference: float
    standard_error: float


class Point(Record, frozen=True, kw_only=True):
    """What the first `trials` of a sweep are worth on held-out data, by the metric of the spec.

    Attributes:
        trials: their number.
        ingredients: how many of them can be averaged.
        best: the best single model.
        uniform: the mean of the weights of all of them; None: it was not measured.
        greedy: the mean of the weights of those that a greedy ensemble keeps; likewise.
        ensemble: the mean of the logits of the same trials.
        ensemble_nll: its loss.
        gain: of `greedy` over `best`. None: it was not measured, or the metric is no mean of
            samples.
        added: by the trials since the last point that was measured, to `greedy`; None likewise,
            and at the first.
    """

    trials: int
    ingredients: int
    best: float
    uniform: float | None
    greedy: float | None
    ensemble: float
    ensemble_nll: float
    gain: Difference | None
    added: Difference | None


def points(prefixes: Sequence[Prefix], metric: Metric) -> tuple[Point, ...]:
    """Return the curve of the soup against the number of trials.

    Args:
        prefixes: what was measured, the smallest first.
        metric: of the spec.
    """

    def read(scores: Scores | None) -> float | None:
        return None if scores is None else as_read(value(scores, metric), metric)

    measured = [one for one in prefixes if one.greedy is not None]
    before = {b.size: a.greedy for a, b in pairwise(measured)}
    return tuple(
        Point(
            trials=one.size,
            ingredients=one.ingredients,
            best=as_read(value(one.single, metric), metric),
            uniform=read(one.uniform),
            greedy=read(one.greedy),
            ensemble=as_read(value(one.ensemble, metric), metric),
            ensemble_nll=one.ensemble.nll,
            gain=_between(one.greedy, one.single, metric),
            added=_between(one.greedy, before.get(one.size), metric),
        )
        for one in prefixes
    )


def _between(one: Scores | None, other: Scores | None, metric: Metric) -> Difference | None:
    """The difference of the means of the same samples. None: a metric has another definition."""
    if one is None or other is None or metric not in (*SHARES, one.graded):
        return None
    differences = one.values() - other.values()
    return Difference(
        difference=float(differences.mean()),
        standard_error=float(differences.std()) / math.sqrt(one.n),
    )


def curves(prefixes: Sequence[Prefix], metric: Metric) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return the same as curves of a tracker: (number of trials, value) by name.

    Args:
        prefixes: what was measured, the smallest first.
        metric: of the spec.
    """
    named: dict[str, list[tuple[int, float]]] = {}
    for point in points(prefixes, metric):
        for name, found in (
            ("best_single", point.best),
            ("uniform", point.uniform),
            ("greedy", point.greedy),
            ("ensemble", point.ensemble),
        ):
            if found is not None:
                named.setdefault(f"soup_so_far/{name}", []).append((point.trials, found))
    return {name: tuple(curve) for name, curve in named.items()}


def rows(found: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points of a figure: one for each model and number of trials.

    Args:
        found: the curve.
    """
    names = {
        "best": "best single",
        "uniform": "uniform soup",
        "greedy": "greedy soup",
        "ensemble": "its ensemble",
    }
    return [
        {"trials": point.trials, "model": names[name], "value": getattr(point, name)}
        for point in found
        for name in names
        if getattr(point, name) is not None
    ]
