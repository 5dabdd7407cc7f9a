"""Where each of two models is better: confidence in the right class, classes, buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from soupray.core.arrays import Indices, Labels, Mask
from soupray.core.candidates import Candidate
from soupray.core.records import Predictions, Record
from soupray.diagnostics.figures import Axis, columns, dots, figure, grid, level, spans
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.disagreement import LEAST, buckets_of, confidence_angles
from soupray.maths.geometry import error_inconsistency
from soupray.maths.metrics import Z
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table

SURE = 15.0
"""Degrees from 45 beyond which one model is much surer: its confidence is 1.7 times the other's."""

STEP = 5
"""Degrees of a column of the histogram of angles."""

BUCKETS = 5


class Part(Record, frozen=True, kw_only=True):
    """Samples of a class, or of a bucket of confidence.

    Attributes:
        name: of the class, or the range of confidence.
        n: number of samples.
        accuracies: of the two models.
        difference: accuracy of the first minus that of the second.
        low: of its 95 % interval, paired by sample.
        high: of the same.
    """

    name: str
    n: int
    accuracies: tuple[float, float]
    difference: float
    low: float
    high: float


class Two(Record, frozen=True, kw_only=True):
    """Two models on ID test.

    Attributes:
        models: their names.
        why: why these two.
        n: number of samples.
        accuracies: of both.
        angles: number of samples by their angle arctan2(first, second) of the confidences in the
            right class, in columns of STEP degrees from 0 to 90.
        first_surer: share of samples with an angle above 45 + SURE.
        second_surer: share of samples with an angle below 45 - SURE.
        classes: with at least LEAST samples, those that differ most first; the others as one.
        joined: number of classes that are joined, because they have fewer samples.
        buckets: by the mean confidence of the two in their answers, the lowest first.
        asked: number of buckets before small ones were joined.
    """

    models: tuple[str, str]
    why: str
    n: int
    accuracies: tuple[float, float]
    angles: tuple[int, ...]
    first_surer: float
    second_surer: float
    classes: tuple[Part, ...]
    joined: int
    buckets: tuple[Part, ...]
    asked: int


class Specialisation(Record, frozen=True, kw_only=True):
    """Pairs of models: the champion and the best single model, and the trials furthest apart."""

    pairs: tuple[Two, ...]


def chosen_pairs(inputs: Inputs) -> list[tuple[str, dict[str, Candidate]]]:
    """Return (why, two models by name) of the pairs to look at.

    The second model is the best single one; for a champion that is this model, the next entry.
    """
    board = inputs.frozen
    models = board.models
    champion, single = models[board.champion], models["best_single"]
    found = []
    if champion != single:
        names = {board.champion: champion, "best_single": single}
        found.append(("the entry to take, and the best single model", names))
    else:
        others = ((n, m) for n, m in board.each().items() if set(m.members) != {champion})
        other = next(others, None)  # an ensemble of this one model alone answers as it does
        if other is not None:
            names = {other[0]: other[1], "best_single": single}
            found.append(("the first other entry, and the best single model", names))
    trials = inputs.trials
    if len(trials) > 1:
        keys = [*trials]
        right = inputs.right([*trials.values()], inputs.held_out)
        apart = [
            (error_inconsistency(right[i], right[j]), -i, -j)
            for i in range(len(keys))
            for j in range(i + 1, len(keys))
        ]
        _, i, j = max(apart)
        names = {f"trial {keys[k][:8]}": trials[keys[k]] for k in (-i, -j)}
        if len(names) == 2:
            found.append(("the two trials that differ most on held-out data", names))
    return found


def measure_specialisation(inputs: Inputs) -> Specialisation:
    """Return where each of two models is better, on ID test."""
    pairs = []
    for why, names in chosen_pairs(inputs):
        first, second = (inputs.answers.predictions(m, inputs.test) for m in names.values())
        a, b = names
        pairs.append(compare(((a, first), (b, second)), inputs.spec.task.classes, why))
    return Specialisation(pairs=tuple(pairs))


def compare(
    two: tuple[tuple[str, Predictions], tuple[str, Predictions]],
    classes: tuple[str, ...] | list[str],
    why: str = "",
) -> Two:
    """Return where each of two models is better.

    Args:
        two: name and predictions of each, on the same samples.
        classes: their names.
        why: why these two.
    """
    labels: Labels = two[0][1].labels
    p, q = (softmax(one.logits.astype(np.float64), axis=1) for _, one in two)
    right = (p.argmax(axis=1) == labels, q.argmax(axis=1) == labels)
    rows = np.arange(len(labels))
    angles = confidence_angles(p[rows, labels], q[rows, labels])
    by_class, joined = _by_class(right, labels, classes)
    # Rounded: what is equal but for the last bits is in one bucket.
    buckets = buckets_of(((p.max(axis=1) + q.max(axis=1)) / 2).round(9), BUCKETS)
    edges = np.arange(0, 90 + STEP, STEP)
    return Two(
        models=(two[0][0], two[1][0]),
        why=why,
        n=len(labels),
        accuracies=(float(right[0].mean()), float(right[1].mean())),
        angles=tuple(np.histogram(angles, edges)[0].tolist()),
        first_surer=float((angles > 45 + SURE).mean()),
        second_surer=float((angles < 45 - SURE).mean()),
        classes=by_class,
        joined=joined,
        buckets=tuple(
            _part(f"{percent(b.low)} to {percent(b.high)} %", right, b.rows)
            for b in buckets.buckets
        ),
        asked=buckets.asked,
    )


def _by_class(
    right: tuple[Mask, Mask], labels: Labels, classes: tuple[str, ...] | list[str]
) -> tuple[tuple[Part, ...], int]:
    large, small = [], []
    for k, name in enumerate(classes):
        rows = np.flatnonzero(labels == k)
        if len(rows) >= LEAST:
            large.append(_part(name, right, rows))
        elif len(rows):
            small.append(rows)
    large.sort(key=lambda part: -abs(part.difference))
    if small:
        large.append(_part(f"{len(small)} smaller classes", right, np.concatenate(small)))
    return tuple(large), len(small)


def _part(name: str, right: tuple[Mask, Mask], rows: Indices) -> Part:
    a, b = right[0][rows], right[1][rows]
    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(rows)
    # Bonett and Price 2012, as `metrics.paired_difference`
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * float(np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return Part(
        name=name,
        n=n,
        accuracies=(float(a.mean()), float(b.mean())),
        difference=(only_a - only_b) / n,
        low=max(-1.0, p - q - half),
        high=min(1.0, p - q + half),
    )


# ---- How it is read


def _show(made: Specialisation) -> Shown:
    return show_pairs(made.pairs, "specialisation")


def show_pairs(pairs: Sequence[Two], name: str) -> Shown:
    """Return how pairs of models are read.

    Args:
        pairs: the pairs.
        name: the figures begin with it.
    """
    sentences = [text for two in pairs for text in _sentences(two)]
    tables = tuple(_table(two) for two in pairs)
    figures = tuple(_figure(two, f"{name}_{k}") for k, two in enumerate(pairs, 1))
    return Shown(tuple(sentences), tables, figures)


def _row(kind: str, part: Part) -> tuple[str, ...]:
    return (
        kind,
        part.name,
        str(part.n),
        *(percent(a) for a in part.accuracies),
        points(part.difference),
        f"[{points(part.low)}, {points(part.high)}]",
    )


def _table(two: Two) -> Table:
    rows = [_row("class", part) for part in two.classes]
    rows += [_row("confidence", part) for part in two.buckets]
    joined = ""
    if two.joined:
        joined = f" {two.joined} classes with fewer than {LEAST} samples are one row."
    if len(two.buckets) < two.asked:
        joined += (
            f" {two.asked} buckets of confidence became {len(two.buckets)}: each has at least "
            f"{LEAST} samples."
        )
    numbers = ("n", "first", "second", "difference", "95 %")
    return Table(
        columns=("of", "samples", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("of",),
        meaning=(
            f"first: {two.models[0]}. second: {two.models[1]}. ID test, accuracies in %. "
            "difference: first minus second, in points, with its interval (paired by sample); of "
            "many rows, some intervals exclude 0 by chance. confidence: mean of the two models' "
            f"in their answers.{joined}"
        ),
    )


def _sentences(two: Two) -> list[str]:
    first, second = two.models
    for_first = [p.name for p in two.classes if p.low > 0]
    for_second = [p.name for p in two.classes if p.high < 0]
    where = (
        f"Classes in which {first} is better by more than the interval: "
        f"{', '.join(for_first[:6]) or 'none'}; {second}: {', '.join(for_second[:6]) or 'none'}."
    )
    return [
        f"{first} and {second} ({two.why}): {percent(two.accuracies[0])} % and "
        f"{percent(two.accuracies[1])} % on ID test. {first} is much surer of the right class on "
        f"{percent(two.first_surer)} % of the samples, {second} on {percent(two.second_surer)} % "
        f"(angle of confidences more than {SURE:g}° from 45°).",
        where,
    ]


def angle_rows(two: Two) -> list[dict[str, Any]]:
    """Return the columns of the histogram of angles: the middle in degrees, and the samples."""
    return [{"angle": STEP * k + STEP / 2, "samples": n} for k, n in enumerate(two.angles)]


def _figure(two: Two, name: str) -> Figure:
    first, second = two.models
    x = Axis("angle", f"angle: 0° {second} alone is sure, 90° {first} alone")
    histogram = level(45, "x") + columns(
        angle_rows(two), x, Axis("samples", "samples", zero=True), size=11
    )
    parts = [
        {
            "samples": f"{part.name} (n = {part.n})",
            "difference": 100 * part.difference,
            "low": 100 * part.low,
            "high": 100 * part.high,
        }
        for part in (*two.classes[:12], *two.buckets)
    ]
    y = Axis("difference", f"{first} minus {second} (points)")
    by_part = Axis("samples", "", words=True)
    differences = level(0) + spans(parts, by_part, y, "low", "high") + dots(parts, by_part, y)
    charts = [
        histogram.properties(width=300, height=260),
        differences.properties(width=420, height=260),
    ]
    title = f"Specialisation of {first} and {second} (ID test, n = {two.n})"
    return figure(name, title, grid(charts, 2), whole=True)


def _needs(inputs: Inputs) -> Needed:
    trials = tuple(inputs.trials.values())
    models = (*inputs.frozen.each().values(), *trials)
    return Needed(models=((models, inputs.test), (trials, inputs.held_out)))


def _cannot(inputs: Inputs) -> str | None:
    if len(inputs.trials) < 2 and len(inputs.frozen.each()) < 2:
        return "there is one model: there is nothing to compare it to"
    return None


SPECIALISATION = Measure(
    name="specialisation",
    title="Specialisation",
    summary="in which classes, and where in confidence, each of two models is better",
    paper="Gontijo-Lopes et al. 2021, arXiv:2110.12899",
    about=(
        "Two models of equal accuracy may be good at different things. For each sample, the angle "
        "arctan2(confidence of the first, confidence of the second) in the right class says which "
        "of the two knows it: 45° if both are equally sure."
    ),
    record=Specialisation,
    compute=measure_specialisation,
    show=_show,
    needs=_needs,
    cannot=_cannot,
)
