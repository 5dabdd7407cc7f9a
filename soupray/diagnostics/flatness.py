"""Why soup and ensemble of two trials differ: flatness along the line and elsewhere, confidence."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from soupray.core.candidates import mean_of
from soupray.core.records import Predictions, Record
from soupray.core.requests import Nearby, Surroundings
from soupray.diagnostics.diversity import drawn_pairs
from soupray.diagnostics.figures import Axis, curve, dots, figure, grid, level, straight
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.diagnostics.pairs import segment
from soupray.maths.disagreement import correlation
from soupray.maths.geometry import (
    cross_entropy,
    logit_variance,
    measured_difference,
    second_derivative,
)
from soupray.reporting.sections import Figure, Table

MOST_PAIRS = 3
"""Pairs around whose soup random directions are evaluated: each costs AT passes and one more."""

AT = (-0.5, -0.25, 0.25, 0.5)
"""Steps along a random direction, in units of the distance of the two ends, from the middle."""


class Flat(Record, frozen=True, kw_only=True):
    """Two trials on held-out data; all losses have the soup's best temperature, 1 / beta.

    Attributes:
        trials: their keys.
        beta: 1 / the temperature that minimises the loss of the soup.
        confidence: beta^2 E Var(df) / 8: how much the ensemble loses by the difference of the
            logits df of the two, in nats.
        curvature: L''(a) / 8 along the line at its middle: how much the soup gains by it.
        random: the same along a random direction that is as long in each tensor.
        predicted: confidence - curvature: L_soup - L_ensemble of section 4.
        measured: L_soup - L_ensemble.
        residual: measured - predicted.
        line: losses at a = 0, 1/4, 1/2, 3/4, 1 of the line.
        beside: losses at -1/2, -1/4, 0, 1/4, 1/2 of the random direction.
    """

    trials: tuple[str, str]
    beta: float
    confidence: float
    curvature: float
    random: float
    predicted: float
    measured: float
    residual: float
    line: tuple[float, ...]
    beside: tuple[float, ...]


class Flatness(Record, frozen=True, kw_only=True):
    """Sampled pairs of trials; `n` held-out samples."""

    n: int
    pairs: tuple[Flat, ...]


def measure_flatness(inputs: Inputs) -> Flatness:
    """Return the terms of section 4 of Model soups for sampled pairs."""
    pool, held_out, answers = inputs.pool, inputs.held_out, inputs.answers
    ends = _drawn(inputs)
    near = answers.measure([_asked(inputs, pair) for pair in ends], held_out)
    found = []
    for (i, j), beside in zip(ends, near, strict=True):
        along = [answers.predictions(m, held_out) for m in segment(pool, i, j)]
        keys = (pool.ingredients[i].trial.key, pool.ingredients[j].trial.key)
        found.append(flat(keys, along, beside))
    return Flatness(n=held_out.size, pairs=tuple(found))


def flat(trials: tuple[str, str], along: Sequence[Predictions], beside: Nearby) -> Flat:
    """Return the terms for one pair.

    Args:
        trials: their keys.
        along: predictions at a = 0, 1/4, 1/2, 3/4, 1 of the segment between their weights.
        beside: losses at AT along a random direction.
    """
    labels, logits, beta = along[0].labels, [p.logits for p in along], beside.beta
    line = [cross_entropy(z, labels, beta) for z in logits]
    low, lower, higher, high = beside.losses
    other = [low, lower, line[2], higher, high]
    confidence = beta**2 * logit_variance(logits[2], logits[4] - logits[0], beta) / 8
    curvature = second_derivative(line, 1 / 4) / 8
    measured = measured_difference(logits, labels, beta)
    return Flat(
        trials=trials,
        beta=beta,
        confidence=confidence,
        curvature=curvature,
        random=second_derivative(other, 1 / 4) / 8,
        predicted=confidence - curvature,
        measured=measured,
        residual=measured - (confidence - curvature),
        line=tuple(line),
        beside=tuple(other),
    )


def _drawn(inputs: Inputs) -> list[tuple[int, int]]:
    """Return at most MOST_PAIRS of the pairs that `pairs` looks at, a seeded sample."""
    drawn = drawn_pairs(len(inputs.pool.ingredients), inputs.options.pairs, inputs.spec.seed)
    order = np.random.default_rng(inputs.spec.seed).permutation(len(drawn))[:MOST_PAIRS]
    return [drawn[k] for k in sorted(order.tolist())]


def _asked(inputs: Inputs, ends: tuple[int, int]) -> Surroundings:
    a, b = (inputs.pool.checkpoints[k] for k in ends)
    seed = zlib.crc32(f"{a}{b}{inputs.spec.seed}".encode())
    return Surroundings(soup=mean_of([a, b]), ends=(a, b), at=AT, seed=seed)


# ---- How it is read


def _show(made: Flatness) -> Shown:
    return Shown(_sentences(made), (_table(made),), _figures(made))


def _table(made: Flatness) -> Table:
    numbers = ("beta", "conf.", "curv.", "random", "pred.", "ΔL", "residual")
    rows = [
        (
            " ".join(key[:6] for key in p.trials),
            f"{p.beta:.2f}",
            f"{p.confidence:.4f}",
            f"{p.curvature:+.4f}",
            f"{p.random:+.4f}",
            f"{p.predicted:+.4f}",
            f"{p.measured:+.4f}",
            f"{p.residual:+.4f}",
        )
        for p in made.pairs
    ]
    return Table(
        columns=("pair", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        meaning=(
            f"Held-out data (n = {made.n}), in nats. beta: 1 / the soup's best temperature, on all "
            "logits. conf.: beta² E Var(difference of the two logits) / 8. curv.: second "
            "derivative of the loss along the line, at its middle, / 8. random: the same along a "
            "random direction that is as long in each tensor. pred.: conf. - curv. ΔL: measured "
            "L(soup) - L(ensemble). residual: ΔL - pred."
        ),
    )


def _sentences(made: Flatness) -> tuple[str, ...]:
    flatter = sum(p.curvature < p.random for p in made.pairs)
    error = float(np.mean([abs(p.residual) for p in made.pairs]))
    size = float(np.mean([abs(p.measured) for p in made.pairs]))
    related = correlation([p.predicted for p in made.pairs], [p.measured for p in made.pairs])
    said = "" if related is None else f"; predicted and measured correlate by {related:+.2f}"
    convex = sum(p.curvature > 0 for p in made.pairs)
    return (
        f"The loss is convex along the line in {convex} of {len(made.pairs)} pairs, and flatter "
        f"there than along a random direction of equal length in {flatter}.",
        f"The identity of section 4 misses L_soup - L_ensemble by {error:.4f} nats on average, "
        f"where that difference is {size:.4f} nats{said}.",
    )


def _figures(made: Flatness) -> tuple[Figure, ...]:
    charts = []
    for what, field in (("the line between the two", "line"), ("a random direction", "beside")):
        rows = [
            {
                "step": step,
                "loss": loss - getattr(p, field)[2],
                "pair": " ".join(k[:6] for k in p.trials),
            }
            for p in made.pairs
            for step, loss in zip((-0.5, -0.25, 0.0, 0.25, 0.5), getattr(p, field), strict=True)
        ]
        x = Axis("step", f"step along {what}")
        y = Axis("loss", "loss minus that of the soup (nats)")
        chart = level(0) + curve(rows, x, y, Axis("pair", "pair", words=True))
        charts.append(chart.properties(width=280, height=260))
    title = f"Around soups of two trials (held-out, n = {made.n}; the scales differ)"
    return (figure("flatness", title, grid(charts, 2), whole=True), _terms(made))


def _terms(made: Flatness) -> Figure:
    rows: list[dict[str, Any]] = [
        {"predicted": p.predicted, "measured": p.measured, "confidence": p.confidence,
         "residual": p.residual, "pair": " ".join(k[:6] for k in p.trials)}
        for p in made.pairs
    ]  # fmt: skip
    x = Axis("predicted", "confidence term - curvature term (nats)")
    y = Axis("measured", "measured L(soup) - L(ensemble) (nats)")
    ends = [min(r["predicted"] for r in rows), max(r["predicted"] for r in rows)]
    shade = Axis("confidence", "confidence term")
    chart = straight([(e, e) for e in ends], x, y) + dots(rows, x, y, shade)
    title = f"The identity's residual is the distance from the diagonal ({len(rows)} pairs)"
    return figure("flatness_terms", title, chart)


def _needs(inputs: Inputs) -> Needed:
    held_out, ends = inputs.held_out, _drawn(inputs)
    models = [m for pair in ends for m in segment(inputs.pool, *pair)]
    seen = (len(AT) + 1) * held_out.size
    return Needed(
        models=((tuple(dict.fromkeys(models)), held_out),),
        requests=tuple((_asked(inputs, pair), held_out, seen) for pair in ends),
    )


FLATNESS = Measure(
    name="flatness",
    title="Soup against ensemble: flatness and confidence",
    summary="the two terms by which soup and ensemble of two trials differ, and what they miss",
    paper="Wortsman et al. 2022, arXiv:2203.05482, section 4",
    about=(
        "L(soup) - L(ensemble) of two models is about a confidence term, by which the ensemble is "
        "worse where the logits of the two differ, minus the curvature of the loss between them: "
        "soups are good where the loss is flat along the line."
    ),
    record=Flatness,
    compute=measure_flatness,
    show=_show,
    needs=_needs,
    depends=lambda inputs: _drawn(inputs),
    after_soup=False,
    least=2,
)
