"""VRF's own figures: fine-tuned model and anchor by the distance to the failure set."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from soupray.core.arrays import Float64, Mask
from soupray.core.candidates import (
    Candidate,
    OutputCandidate,
    VRFEnsemble,
    WeightCandidate,
    mean_of,
)
from soupray.core.records import Record, Split
from soupray.core.requests import Distances, Failures, Right
from soupray.diagnostics.figures import Axis, curve, dots, figure, grid
from soupray.diagnostics.measure import CannotMeasure, Inputs, Measure, Needed, Shown
from soupray.maths.disagreement import LEAST, buckets_of, correlation, paired_mean
from soupray.maths.metrics import Z
from soupray.maths.outputs import trust
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table

BUCKETS = 10
"""Before small ones are joined."""

NEIGHBOUR = 0.001
"""k as a share of the failure set, where no entry says it: the paper's."""


class ByDistance(Record, frozen=True, kw_only=True):
    """Samples of one range of distances.

    Attributes:
        low: smallest squared distance to the k-th nearest sample of the failure set.
        high: largest one.
        n: number of samples.
        fine_tuned: accuracy of the fine-tuned model.
        anchor: accuracy of the anchor.
        ratio: the first over the second; None where the anchor gets nothing right.
        difference: the first minus the second.
        difference_low: of its 95 % interval, paired by sample (normal).
        difference_high: of the same.
        omega: share of the fine-tuned model at the mean distance; None if VRF chose a constant.
    """

    low: float
    high: float
    n: int
    fine_tuned: float
    anchor: float
    ratio: float | None
    difference: float
    difference_low: float
    difference_high: float
    omega: float | None


class Place(Record, frozen=True, kw_only=True):
    """One split.

    Attributes:
        split: name.
        n: samples.
        buckets: the nearest first.
        asked: number of buckets before small ones were joined.
        correlation: of distance with (fine-tuned right) - (anchor right), by sample.
    """

    split: str
    n: int
    buckets: tuple[ByDistance, ...]
    asked: int
    correlation: float | None


class Start(Record, frozen=True, kw_only=True):
    """A fine-tuned model against the anchor.

    Attributes:
        fine_tuned: name of the entry.
        anchor: name of the anchor.
        failures: training samples that the fine-tuned model gets right and the anchor wrong.
        k: which neighbour.
        omega: the constant share that VRF chose; None if it varies, or VRF did not run.
        places: ID test, then the shifts.
    """

    fine_tuned: str
    anchor: str
    failures: int
    k: int
    omega: float | None
    places: tuple[Place, ...]


class FailureDistance(Record, frozen=True, kw_only=True):
    """The models with which VRF starts; `left_out`: why one has no figure, by its name."""

    starts: tuple[Start, ...]
    left_out: dict[str, str]


def starts_of(inputs: Inputs) -> dict[str, tuple[WeightCandidate, Candidate | None]]:
    """Return the fine-tuned models by name, each with its VRF entry if there is one."""
    board = inputs.frozen
    found: dict[str, tuple[WeightCandidate, Candidate | None]] = {}
    for entry in board.entries:
        name = entry.options.get("theta_1")
        if entry.recipe == "vrf" and isinstance(name, str) and name in board.models:
            model = board.models[name]
            if not isinstance(model, OutputCandidate):
                found[name] = (model, board.models[entry.name])
    if not found:
        single = board.models["best_single"]
        assert not isinstance(single, OutputCandidate)
        found["best_single"] = (single, None)
    anchor = _anchor(inputs)
    return {name: pair for name, pair in found.items() if pair[0] != anchor}


def _anchor(inputs: Inputs) -> WeightCandidate:
    return mean_of([inputs.basis.anchor.sha256])


def measure_failure_distance(inputs: Inputs) -> FailureDistance:
    """Return accuracies by distance, for each fine-tuned model with which VRF starts."""
    found, left = [], {}
    for name, (model, entry) in starts_of(inputs).items():
        made = _start(inputs, name, model, entry)
        if isinstance(made, str):
            left[name] = made
        else:
            found.append(made)
    if not found:
        raise CannotMeasure("; ".join(f"{name}: {why}" for name, why in left.items()))
    return FailureDistance(starts=tuple(found), left_out=left)


def _start(
    inputs: Inputs, name: str, model: WeightCandidate, entry: Candidate | None
) -> Start | str:
    anchor, answers = _anchor(inputs), inputs.answers
    asked = Failures(fine_tuned=model, reference=anchor)
    (failed,) = answers.measure([asked], inputs.basis.split("train"))
    if failed.features is None:
        return (
            "the failure set is empty: there is no training sample that the model gets right and "
            "the anchor wrong"
        )
    vrf = entry if isinstance(entry, VRFEnsemble) else None
    k = vrf.k if vrf is not None else max(1, int(NEIGHBOUR * failed.size))
    request = Distances(fine_tuned=model, failures=failed.features, k=k)
    places = []
    for split in _splits(inputs):
        (distances,) = answers.measure([request], split)
        one, other = inputs.right([model, anchor], split)
        places.append(by_distance(split.name, np.asarray(distances), (one, other), vrf))
    return Start(
        fine_tuned=name,
        anchor=inputs.basis.anchor_name,
        failures=failed.size,
        k=k,
        omega=_constant(inputs, name, vrf),
        places=tuple(places),
    )


def _constant(inputs: Inputs, name: str, vrf: VRFEnsemble | None) -> float | None:
    if vrf is not None:
        return None
    for entry in inputs.frozen.entries:
        if entry.recipe == "vrf" and entry.options.get("theta_1") == name:
            return float(entry.options["omega"])
    return None


def _splits(inputs: Inputs) -> tuple[Split, ...]:
    return (inputs.test, *inputs.shifts)


def by_distance(
    split: str, distances: Float64, right: tuple[Mask, Mask], vrf: VRFEnsemble | None = None
) -> Place:
    """Return accuracies in buckets of distances.

    Args:
        split: its name.
        distances: of each sample to the failure set, [N].
        right: which samples the fine-tuned model and the anchor get right.
        vrf: the ensemble whose omega is evaluated at each bucket's mean distance.
    """
    made = buckets_of(distances, BUCKETS)
    better = right[0].astype(float) - right[1]
    buckets = []
    for bucket in made.buckets:
        rows = bucket.rows
        first, second = float(right[0][rows].mean()), float(right[1][rows].mean())
        difference, low, high = paired_mean(better[rows])
        mean = distances[rows].mean(keepdims=True)
        buckets.append(
            ByDistance(
                low=bucket.low,
                high=bucket.high,
                n=len(rows),
                fine_tuned=first,
                anchor=second,
                ratio=first / second if second else None,
                difference=difference,
                difference_low=low,
                difference_high=high,
                omega=None if vrf is None else float(trust(mean, vrf.a, vrf.b)[0]),
            )
        )
    return Place(
        split=split,
        n=len(distances),
        buckets=tuple(buckets),
        asked=made.asked,
        correlation=correlation(distances.tolist(), better.tolist()),
    )


# ---- How it is read


def _show(made: FailureDistance) -> Shown:
    sentences = [text for start in made.starts for text in _sentences(start)]
    sentences += [f"{name} is left out: {why}." for name, why in made.left_out.items()]
    return Shown(
        tuple(sentences),
        tuple(_table(start) for start in made.starts),
        tuple(_figure(start, k) for k, start in enumerate(made.starts)),
    )


def _table(start: Start) -> Table:
    varies = any(b.omega is not None for place in start.places for b in place.buckets)
    omega = ("omega",) if varies else ()
    numbers = ("d²", "n", "first", "anchor", "ratio", "Δ", "95 %", *omega)
    rows = [
        (
            place.split,
            f"{b.low:.3f}-{b.high:.3f}",
            str(b.n),
            percent(b.fine_tuned),
            percent(b.anchor),
            "-" if b.ratio is None else f"{b.ratio:.2f}",
            points(b.difference),
            f"[{points(b.difference_low)}, {points(b.difference_high)}]",
            *(("-" if b.omega is None else f"{b.omega:.2f}",) if varies else ()),
        )
        for place in start.places
        for b in place.buckets
    ]
    small = [p.split for p in start.places if len(p.buckets) < p.asked]
    joined = ""
    if small:
        joined = (
            f" On {', '.join(small)}, buckets were joined: each has at least {LEAST} samples, and "
            "equal distances are in one."
        )
    return Table(
        columns=("split", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=(*omega, "95 %"),
        meaning=(
            f"d²: squared distance to the k-th nearest (k = {start.k}) of {start.failures} "
            f"training samples that {start.fine_tuned} gets right and {start.anchor} wrong. first: "
            f"accuracy of {start.fine_tuned}, anchor: of {start.anchor}, in %; Δ: their difference "
            "in points, "
            "with its interval (paired by sample)."
            f"{f' omega: share of {start.fine_tuned} in VRF.' if varies else ''}{joined}"
        ),
    )


def _chance(place: Place) -> float:
    """Return |r| that one in twenty correlations of as many unrelated samples exceeds."""
    return float(Z / np.sqrt(place.n))


def _sentences(start: Start) -> list[str]:
    known = [(p, p.correlation) for p in start.places if p.correlation is not None]
    falls = [p.split for p, r in known if r < -_chance(p)]
    rises = [p.split for p, r in known if r > _chance(p)]
    listed = ", ".join(f"{p.split} {r:+.2f}" for p, r in known) or "none"
    said = [
        f"What {start.fine_tuned} has beyond {start.anchor} falls with the distance to the failure "
        f"set, as VRF assumes, by more than chance on {len(falls)} of {len(start.places)} splits, "
        f"and rises on {len(rises)} (correlation by sample: {listed}).",
    ]
    if start.failures < LEAST:
        said.append(
            f"The failure set has {start.failures} samples, fewer than {LEAST}: distances to so "
            "few say little."
        )
    if start.omega is not None:
        said.append(
            f"VRF chose the same omega for all samples, {start.omega:g}: there is no curve of it."
        )
    return said


def bucket_rows(place: Place, start: Start) -> list[dict[str, Any]]:
    """Return the points of the figure: accuracies and omega by distance."""
    rows = []
    for b in place.buckets:
        middle = (b.low + b.high) / 2
        about = {"distance": middle, "n": b.n}
        rows.append({**about, "value": b.fine_tuned, "what": start.fine_tuned})
        rows.append({**about, "value": b.anchor, "what": start.anchor})
        if b.omega is not None:
            rows.append({**about, "value": b.omega, "what": "omega"})
    return rows


def _figure(start: Start, number: int) -> Figure:
    x = Axis("distance", "squared distance to the failure set")
    y = Axis("value", "accuracy, and omega", percent=True, zero=True)
    colour = Axis("what", "", words=True)
    charts = []
    for place in start.places:
        rows = bucket_rows(place, start)
        chart = curve(rows, x, y, colour, point=False) + dots(rows, x, y, colour)
        title = f"{place.split} (n = {place.n})"
        charts.append(chart.properties(title=title, width=290, height=220))
    title = f"{start.fine_tuned} and {start.anchor} by distance to the failure set"
    return figure(f"failure_distance_{number + 1}", title, grid(charts, 2), whole=True)


def _needs(inputs: Inputs) -> Needed:
    train, anchor = inputs.basis.split("train"), _anchor(inputs)
    models = [model for model, _ in starts_of(inputs).values()]
    asked = tuple((Right(model=model), train, train.size) for model in (*models, anchor))
    again = train.size + sum(split.size for split in _splits(inputs))
    return Needed(
        models=tuple(((*models, anchor), split) for split in _splits(inputs)),
        requests=asked,
        unlisted=again * len(models),
    )


def _cannot(inputs: Inputs) -> str | None:
    if find_spec("faiss") is None:
        return "it needs faiss: pip install 'soupray[cpu]', or 'soupray[gpu]' (not both)"
    return None if starts_of(inputs) else "the best single model is the anchor"


FAILURE_DISTANCE = Measure(
    name="failure_distance",
    title="Fine-tuned model and anchor by distance to the failure set",
    summary="accuracy of fine-tuned model and anchor by the distance that VRF weighs by",
    paper="Zhu et al. 2024, arXiv:2411.06966",
    about=(
        "VRF trusts the fine-tuned model less, the further a sample is from the training samples "
        "that fine-tuning learned and the anchor did not know (the failure set)."
    ),
    record=FailureDistance,
    compute=measure_failure_distance,
    show=_show,
    needs=_needs,
    cannot=_cannot,
)
