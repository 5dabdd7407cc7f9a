"""Pairs of trials: how differently they err, and what their mean of weights or outputs gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from soupray.core.arrays import Float64
from soupray.core.candidates import WeightSoup, soups_of_one, weight_soup
from soupray.core.requests import Gram
from soupray.core.trials import Pool
from soupray.diagnostics.diversity import (
    Diagnosis,
    Pair,
    compare_pair,
    diagnosis,
    drawn_pairs,
    summary,
)
from soupray.diagnostics.figures import Axis, dots, figure, level, straight
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.geometry import angles, distances, total_gram
from soupray.reporting.notes import percent
from soupray.reporting.sections import Figure, Table


def measure_pairs(inputs: Inputs) -> Diagnosis:
    """Measure sampled pairs of ingredients; needs memory for the logits of five models."""
    pool, held_out, answers = inputs.pool, inputs.held_out, inputs.answers
    (grams,) = answers.measure([_gram(pool)], held_out)
    gram = total_gram(grams)
    between = np.stack([distances(gram), angles(gram)])
    pairs = [_pair(inputs, ends, between) for ends in _drawn(inputs)]
    # Where training moved BatchNorm statistics, single models are compared with estimated ones.
    own = inputs.right(soups_of_one(pool.checkpoints, pool), held_out)
    return diagnosis(pool, pairs, own)


def segment(pool: Pool, i: int, j: int) -> list[WeightSoup]:
    """Return theta_i + a (theta_j - theta_i) for a = 0, 1/4, 1/2, 3/4, 1.

    All five have BatchNorm statistics that are made alike.
    """
    a, b = pool.checkpoints[i], pool.checkpoints[j]
    between = [weight_soup([(a, 4 - k), (b, k)], 4) for k in (1, 2, 3)]
    first, last = soups_of_one([a, b], pool)
    return [first, *between, last]


def _gram(pool: Pool) -> Gram:
    return Gram(checkpoints=tuple(pool.checkpoints), origin=pool.init.sha256)


def _drawn(inputs: Inputs) -> list[tuple[int, int]]:
    return drawn_pairs(len(inputs.pool.ingredients), inputs.options.pairs, inputs.spec.seed)


def _needs(inputs: Inputs) -> Needed:
    pool, held_out = inputs.pool, inputs.held_out
    models = [*soups_of_one(pool.checkpoints, pool)]
    models += [m for ends in _drawn(inputs) for m in segment(pool, *ends)]
    return Needed(
        models=((tuple(dict.fromkeys(models)), held_out),),
        requests=((_gram(pool), held_out, 0),),
    )


def _pair(inputs: Inputs, ends: tuple[int, int], between: Float64) -> Pair:
    pool = inputs.pool
    along = [inputs.answers.predictions(m, inputs.held_out) for m in segment(pool, *ends)]
    keys = (pool.ingredients[ends[0]].trial.key, pool.ingredients[ends[1]].trial.key)
    distance, angle = between[:, ends[0], ends[1]].tolist()
    return compare_pair(keys, distance, angle if np.isfinite(angle) else None, along)


def _show(made: Diagnosis) -> Shown:
    return Shown(sentences=tuple(summary(made)), tables=(_table(made),), figures=_figures(made))


def _table(made: Diagnosis) -> Table:
    numbers = (
        "acc.",
        "dist.",
        "°",
        "inc.",
        "1-κ",
        "soup",
        "s.conv",
        "ens.",
        "e.conv",
        "ΔL",
        "pred.",
    )
    rows = [
        (
            " ".join(key[:6] for key in d.trials),
            percent(sum(d.accuracies) / 2),
            f"{d.distance:#.3g}",
            "-" if d.angle is None else f"{d.angle:.0f}",
            percent(d.error_inconsistency),
            "-" if d.kappa_complement is None else f"{d.kappa_complement:.2f}",
            f"{100 * d.soup.advantage:+.1f}",
            "-" if d.soup.conversion is None else f"{100 * d.soup.conversion:.0f}",
            f"{100 * d.ensemble.advantage:+.1f}",
            "-" if d.ensemble.conversion is None else f"{100 * d.ensemble.conversion:.0f}",
            f"{d.measured:+.4f}",
            f"{d.predicted:+.4f}",
        )
        for d in made.pairs
    ]
    return Table(
        columns=("pair", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("e.conv", "1-κ", "s.conv"),
        meaning=_meaning(made.n, bool(made.statistics)),
    )


def _meaning(n: int, estimated: bool) -> str:
    alike = "All BatchNorm statistics are estimated, those of single models too. "
    return (
        f"Held-out data only (n = {n}), in %. {alike if estimated else ''}"
        "acc.: mean of the two. dist.: |theta_i - theta_j|. °: angle between their ways from "
        "theta_0. inc.: samples that exactly one gets right. 1-κ: complement of Cohen's kappa of "
        "being right. soup, ens.: accuracy of the mean of weights, of logits, minus acc. s.conv, "
        "e.conv: of the inconsistent samples, those that soup or ensemble gets right. ΔL: measured "
        "L(soup) - L(ensemble) in nats, with logits times beta = 1 / the soup's best "
        "temperature; pred.: by Model soups (arXiv:2203.05482), section 4."
    )


def interpolation_points(made: Diagnosis) -> list[tuple[float, float, float]]:
    """Return (angle in degrees, advantage in points, mean accuracy of the two in %) per pair."""
    return [
        (d.angle, 100 * d.soup.advantage, 100 * sum(d.accuracies) / 2)
        for d in made.pairs
        if d.angle is not None
    ]


def diversity_points(made: Diagnosis) -> dict[str, list[tuple[float, float]]]:
    """Return (error inconsistency, conversion rate) in % per pair, for soup and ensemble."""
    return {
        name: [
            (100 * d.error_inconsistency, 100 * mixed.conversion)
            for d in made.pairs
            if (mixed := getattr(d, name)).conversion is not None
        ]
        for name in ("soup", "ensemble")
    }


def ensemble_points(made: Diagnosis) -> list[tuple[float, float, float]]:
    """Return (predicted, measured L_soup - L_ensemble in nats, |theta_i - theta_j|) per pair."""
    return [(d.predicted, d.measured, d.distance) for d in made.pairs]


def _figures(made: Diagnosis) -> tuple[Figure, ...]:
    """A figure without points is left out."""
    on = f"({len(made.pairs)} pairs, held-out, n = {made.n})"
    drawn = []
    if interpolation_points(made):
        title = f"Interpolation advantage against angle {on}"
        drawn.append(figure("interpolation", title, _angles(made)))
    if any(diversity_points(made).values()):
        title = f"What averaging makes of different errors {on}"
        drawn.append(figure("diversity", title, _conversions(made)))
    drawn.append(figure("soup_against_ensemble", f"Soup against ensemble {on}", _losses(made)))
    return tuple(drawn)


def _angles(made: Diagnosis) -> Any:
    fields = ("angle", "advantage", "accuracy")
    rows = [dict(zip(fields, p, strict=True)) for p in interpolation_points(made)]
    x = Axis("angle", "angle between the two ways from theta_0 (degrees)")
    y = Axis("advantage", "mean of weights minus mean of the accuracies (points)")
    return level(0) + dots(rows, x, y, Axis("accuracy", "mean of the two (%)"))


def _conversions(made: Diagnosis) -> Any:
    names = {"soup": "mean of weights (soup)", "ensemble": "mean of logits (ensemble)"}
    rows = [
        {"inconsistency": a, "conversion": b, "mean": names[kind]}
        for kind, points in diversity_points(made).items()
        for a, b in points
    ]
    x = Axis("inconsistency", "exactly one of the two is right (% of samples)", zero=True)
    y = Axis("conversion", "of these samples, right together (%)", zero=True)
    # If samples that both get right stay right, advantage = inconsistency x (conversion - 1/2).
    return level(50) + dots(rows, x, y, Axis("mean", "", words=True))


def _losses(made: Diagnosis) -> Any:
    fields = ("predicted", "measured", "distance")
    rows = [dict(zip(fields, p, strict=True)) for p in ensemble_points(made)]
    x = Axis("predicted", "predicted L(soup) - L(ensemble) (nats)")
    y = Axis("measured", "measured L(soup) - L(ensemble) (nats); below 0: the soup is better")
    ends = [min(row["predicted"] for row in rows), max(row["predicted"] for row in rows)]
    diagonal = straight([(end, end) for end in ends], x, y)
    return level(0) + diagonal + dots(rows, x, y, Axis("distance", "|theta_i - theta_j|"))


PAIRS = Measure(
    name="pairs",
    title="Pairs of trials",
    summary="how pairs of trials differ, and what the mean of their weights or outputs gives",
    paper=(
        "Wortsman et al. 2022, arXiv:2203.05482, section 4; Gontijo-Lopes et al. 2021, "
        "arXiv:2110.12899"
    ),
    about=(
        "Two trials that err on different samples can help each other. For sampled pairs, the "
        "soup of the two (the mean of weights) is compared with their ensemble (the mean of "
        "logits), on held-out data only."
    ),
    record=Diagnosis,
    compute=measure_pairs,
    show=_show,
    needs=_needs,
    depends=lambda inputs: _drawn(inputs),
    after_soup=False,
    least=2,
)
