"""How differently trials and entries err, and what the ensemble of two of them gains by it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, structs

from soupray.core.arrays import Float32, Mask
from soupray.core.candidates import Candidate, OutputCandidate, WeightCandidate
from soupray.core.records import Predictions, Record, pack_right
from soupray.core.requests import Embedding, Matrix
from soupray.diagnostics.diversity import Maybe
from soupray.diagnostics.figures import Axis, cells, dots, figure, level
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.disagreement import cka, correlation, prediction_divergence
from soupray.maths.geometry import conversion_rate, error_inconsistency, kappa
from soupray.maths.metrics import right_mask
from soupray.recipes.recipe import MULTI_LABEL, ONE_CLASS, REGRESSION
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table

MOST_PAIRS = 200
"""Pairs whose ensemble is made; a seeded sample of more. Error inconsistency is of all pairs."""

MOST_FEATURES = 500
"""Test samples, evenly spaced, whose features are compared."""


class Model(Record, frozen=True, kw_only=True):
    """A trial, or an entry of the leaderboard.

    Attributes:
        name: key of the trial, or name of the entry.
        kind: which of the two.
        accuracy: on ID test.
        features: it is one model whose features were compared.
    """

    name: str
    kind: Literal["trial", "entry"]
    accuracy: float
    features: bool


class Together(Record, frozen=True, kw_only=True):
    """Two models and their ensemble, the mean of their logits (of their outputs, for numbers).

    Attributes:
        models: their positions in `Inconsistency.models`.
        divergence: of their predictions, in nats; None but for one class.
        accuracy: of the ensemble.
        gain: accuracy minus the mean of the two.
        over_better: accuracy minus that of the better one.
        conversion: of the samples that exactly one gets right, those that the ensemble does.
    """

    models: tuple[int, int]
    divergence: float | None
    accuracy: float
    gain: float
    over_better: float
    conversion: float | None


class Inconsistency(Record, frozen=True, kw_only=True):
    """Matrices [K, K] of all pairs, in the order of `models`, and sampled pairs together.

    Attributes:
        n: samples of ID test.
        models: entries in the order of the leaderboard, then trials that are no entry.
        inconsistency: share of samples that exactly one gets right.
        kappa_complement: 1 - Cohen's kappa; None where chance alone explains the agreement.
        cka_complement: 1 - CKA of features; None for ensembles, and for constant features.
        feature_n: samples whose features were compared.
        pairs: sampled pairs.
        correlation: of gain with inconsistency, over `pairs`; None without variation.
    """

    n: int
    models: tuple[Model, ...]
    inconsistency: Matrix
    kappa_complement: Maybe
    cka_complement: Maybe
    feature_n: int
    pairs: tuple[Together, ...]
    correlation: float | None


def compared(inputs: Inputs) -> dict[str, Candidate]:
    """Return the models of the leaderboard, then the trials that are none of them, each once."""
    entries = inputs.frozen.each()
    known = set(entries.values())
    return entries | {k: m for k, m in inputs.trials.items() if m not in known}


def feature_rows(inputs: Inputs) -> Mask:
    """Return which samples of ID test have their features compared."""
    n = inputs.test.size
    rows = np.zeros(n, bool)
    rows[np.unique(np.linspace(0, n - 1, min(n, MOST_FEATURES)).round().astype(int))] = True
    return rows


def _one_network(model: Candidate) -> WeightCandidate | None:
    return None if isinstance(model, OutputCandidate) else model


def measure_inconsistency(inputs: Inputs) -> Inconsistency:
    """Return how the models of a sweep differ on ID test."""
    models, test = compared(inputs), inputs.test
    right = inputs.right([*models.values()], test)
    kappas = tuple(tuple(_complement(kappa(a, b)) for b in right) for a in right)
    networks = [_one_network(m) for m in models.values()]
    rows = feature_rows(inputs)
    features = [None if m is None else inputs.answers.features(m, rows, test) for m in networks]
    answers = [inputs.answers.predictions(m, test) for m in models.values()]  # each read once
    pairs = tuple(_together(ends, answers, right) for ends in drawn(len(models), inputs.spec.seed))
    apart = [error_inconsistency(right[p.models[0]], right[p.models[1]]) for p in pairs]
    return Inconsistency(
        n=test.size,
        models=tuple(
            Model(
                name=name,
                kind="entry" if name in inputs.frozen.models else "trial",
                accuracy=float(mask.mean()),
                features=network is not None,
            )
            for name, mask, network in zip(models, right, networks, strict=True)
        ),
        inconsistency=tuple(tuple(error_inconsistency(a, b) for b in right) for a in right),
        kappa_complement=kappas,
        cka_complement=alignments(features),
        feature_n=int(rows.sum()),
        pairs=pairs,
        correlation=correlation(apart, [p.gain for p in pairs]),
    )


def drawn(k: int, seed: int) -> list[tuple[int, int]]:
    """Return at most MOST_PAIRS pairs i < j of k models, a seeded sample, sorted."""
    pairs = list(itertools.combinations(range(k), 2))
    draw = random.Random(seed)  # noqa: S311 - not a secret
    return sorted(draw.sample(pairs, min(MOST_PAIRS, len(pairs))))


def alignments(features: Sequence[Float32 | None]) -> Maybe:
    """Return 1 - CKA of all pairs, [K, K]; None where a model has none, or constant ones.

    Args:
        features: of each model, [N, D], on the same samples.
    """
    k = len(features)
    found: list[list[float | None]] = [[None] * k for _ in range(k)]
    for i, j in itertools.combinations_with_replacement(range(k), 2):
        a, b = features[i], features[j]
        if a is not None and b is not None:
            found[i][j] = found[j][i] = _complement(cka(a, b))
    return tuple(tuple(row) for row in found)


def _together(
    ends: tuple[int, int], answers: Sequence[Predictions], right: Sequence[Mask]
) -> Together:
    a, b = (answers[k] for k in ends)
    mean = ((a.logits.astype(np.float64) + b.logits) / 2).astype(np.float32)
    joint = right_mask(structs.replace(a, logits=mean))
    first, second = (right[k] for k in ends)
    accuracies = (float(first.mean()), float(second.mean()))
    accuracy = float(joint.mean())
    one_class = a.split.objective is UNSET
    return Together(
        models=ends,
        divergence=prediction_divergence(a.logits, b.logits) if one_class else None,
        accuracy=accuracy,
        gain=accuracy - sum(accuracies) / 2,
        over_better=accuracy - max(accuracies),
        conversion=conversion_rate(first, second, joint),
    )


def _complement(value: float | None) -> float | None:
    return None if value is None else 1 - value


# ---- How it is read


def _show(made: Inconsistency) -> Shown:
    figures = (_matrix(made), _gains(made)) if made.pairs else (_matrix(made),)
    return Shown(sentences=_sentences(made), tables=(_table(made),), figures=figures)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _others(matrix: Sequence[Sequence[Any]], k: int) -> float | None:
    return _mean([v for j, v in enumerate(matrix[k]) if j != k])


def _called(model: Model) -> str:
    return model.name if model.kind == "entry" else f"trial {model.name[:8]}"


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(made: Inconsistency) -> Table:
    rows, names = [], [_called(model) for model in made.models]
    for k, model in enumerate(made.models):
        own = [p for p in made.pairs if k in p.models]
        best = max(own, key=lambda p: p.over_better, default=None)
        mate = "-" if best is None else names[sum(best.models) - k]
        apart = _others(made.inconsistency, k)
        rows.append(
            (
                names[k],
                percent(model.accuracy),
                "-" if apart is None else percent(apart),
                _said(_others(made.kappa_complement, k), ".2f"),
                _said(_mean([p.divergence for p in own]), ".3f"),
                _said(_others(made.cka_complement, k), ".3f"),
                "-" if best is None else points(best.over_better),
                mate,
            )
        )
    numbers = ("test", "inc.", "1-κ", "KL", "1-CKA", "gain")
    return Table(
        columns=("model", *numbers, "with"),
        numbers=numbers,
        rows=tuple(rows),
        least=("with", "KL", "1-κ"),
        meaning=(
            f"ID test (n = {made.n}); means over all other models. test: accuracy in %. inc.: "
            "samples that exactly one of the two gets right, in %. 1-κ: complement of Cohen's "
            "kappa. KL: symmetric divergence of predictions in nats, over sampled pairs. 1-CKA: of "
            f"features of {made.feature_n} samples; - for ensembles. gain: best ensemble with "
            "another model, minus the better one of the two, in points: the largest of several, so "
            "it flatters."
        ),
    )


def _sentences(made: Inconsistency) -> tuple[str, ...]:
    k = len(made.models)
    pairs = [(made.inconsistency[i][j], i, j) for i in range(k) for j in range(i)]
    if not pairs:
        return ("There is one model: nothing to compare.",)
    low, high = min(pairs), max(pairs)
    names = [_called(model) for model in made.models]
    helped = sum(p.over_better > 0 for p in made.pairs)
    related = "" if made.correlation is None else f" (correlation {made.correlation:+.2f})"
    conversion = _mean([p.conversion for p in made.pairs])
    return (
        f"Two models differ in being right on {percent(float(np.mean([p[0] for p in pairs])))} % "
        f"of the samples: from {percent(low[0])} % ({names[low[1]]} and {names[low[2]]}) to "
        f"{percent(high[0])} % ({names[high[1]]} and {names[high[2]]}).",
        f"The ensemble of two beats the better one in {helped} of {len(made.pairs)} sampled pairs; "
        f"its gain over the mean of the two grows with their inconsistency{related}."
        if (made.correlation or 0) > 0
        else f"The ensemble of two beats the better one in {helped} of {len(made.pairs)} sampled "
        f"pairs; its gain over the mean of the two does not grow with inconsistency{related}.",
        "Of the samples that exactly one of two gets right, their ensemble gets "
        f"{'-' if conversion is None else percent(conversion)} % right (conversion rate; 50 % is "
        "no better than the mean of the two).",
    )


def _matrix(made: Inconsistency) -> Figure:
    names = [m.name if m.kind == "entry" else m.name[:8] for m in made.models]
    rows = [
        {
            "first": a,
            "second": b,
            "inconsistency": made.inconsistency[i][j],
            "1 - kappa": made.kappa_complement[i][j],
            "1 - CKA": made.cka_complement[i][j],
        }
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    x, y = Axis("first", "", words=True), Axis("second", "", words=True)
    shade = Axis("inconsistency", "exactly one right", percent=True)
    title = f"Error inconsistency of entries and trials (ID test, n = {made.n})"
    side = min(720, max(240, 16 * len(names)))
    chart = cells(rows, x, y, shade).properties(width=side, height=side)
    return figure("error_inconsistency", title, chart, whole=True)


def gain_points(made: Inconsistency) -> list[dict[str, Any]]:
    """Return inconsistency and gain of each sampled pair, as shares."""
    kinds = {2: "two trials", 1: "trial and entry", 0: "two entries"}
    return [
        {
            "inconsistency": made.inconsistency[i][j],
            "gain": 100 * p.gain,
            "pair": kinds[sum(made.models[k].kind == "trial" for k in (i, j))],
            "first": made.models[i].name,
            "second": made.models[j].name,
        }
        for p in made.pairs
        for i, j in [p.models]
    ]


def _gains(made: Inconsistency) -> Figure:
    x = Axis("inconsistency", "exactly one of the two is right", percent=True, zero=True)
    y = Axis("gain", "ensemble minus mean of the two accuracies (points)")
    chart = level(0) + dots(gain_points(made), x, y, Axis("pair", "", words=True), size=40)
    title = f"Ensemble gain against error inconsistency ({len(made.pairs)} pairs, ID test)"
    return figure("ensemble_gain", title, chart)


def _needs(inputs: Inputs) -> Needed:
    models = compared(inputs)
    rows = feature_rows(inputs)
    packed, seen = pack_right(rows), int(rows.sum())
    networks = [m for m in map(_one_network, models.values()) if m is not None]
    return Needed(
        models=((tuple(models.values()), inputs.test),),
        requests=tuple((Embedding(model=m, rows=packed), inputs.test, seen) for m in networks),
    )


INCONSISTENCY = Measure(
    name="inconsistency",
    title="Error inconsistency and ensembles",
    summary="how differently trials and entries err, and what ensembles of two gain by it",
    paper=(
        "Gontijo-Lopes et al. 2021, arXiv:2110.12899; CKA: Kornblith et al. 2019, arXiv:1905.00414"
    ),
    about=(
        "Models that err on different samples correct each other in an ensemble. Models of one "
        "sweep share their start, so they lie at the low end of what the paper saw; models of "
        "other families reach further."
    ),
    record=Inconsistency,
    compute=measure_inconsistency,
    show=_show,
    needs=_needs,
    objectives=(ONE_CLASS, MULTI_LABEL, REGRESSION),
    least=2,
)
