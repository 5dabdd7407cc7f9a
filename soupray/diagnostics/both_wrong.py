"""Samples that all ends of a mixture get wrong and the mixture gets right, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soupray.core.arrays import Mask
from soupray.core.candidates import Candidate, mean_of
from soupray.core.records import Record, Split
from soupray.diagnostics.figures import Axis, columns, figure, grid
from soupray.diagnostics.measure import Board, Inputs, Measure, Needed, Shown
from soupray.maths.disagreement import paired_mean
from soupray.recipes.recipe import MULTI_LABEL, ONE_CLASS, REGRESSION
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table


class There(Record, frozen=True, kw_only=True):
    """A mixture on one split.

    Attributes:
        split: name.
        n: number of samples.
        rescued: samples that all ends get wrong and the mixture gets right.
        lost: samples that all ends get right and the mixture gets wrong.
        all_wrong: samples that all ends get wrong.
        all_right: samples that all ends get right.
    """

    split: str
    n: int
    rescued: int
    lost: int
    all_wrong: int
    all_right: int


class Mixture(Record, frozen=True, kw_only=True):
    """An entry that is made of several models.

    Attributes:
        name: of the entry.
        ends: what it is made of: names, or "16 checkpoints".
        count: number of ends.
        places: ID test, then the shifts.
        net: mean over all samples of all shifts (ID test, without shifts) of rescued minus lost.
        low: of its 95 % interval (normal).
        high: of the same.
    """

    name: str
    ends: str
    count: int
    places: tuple[There, ...]
    net: float
    low: float
    high: float


class BothWrong(Record, frozen=True, kw_only=True):
    """Entries of several models, in the order of the leaderboard.

    Attributes:
        mixtures: the entries.
        shifted: the net is over shifts, not over ID test.
    """

    mixtures: tuple[Mixture, ...]
    shifted: bool


def ends_of(name: str, board: Board, anchor: tuple[str, Candidate]) -> dict[str, Candidate]:
    """Return the models that an entry mixes, by name; fewer than two for a single model.

    For an entry between the anchor and another entry (WiSE-FT, OSE, VRF) these two; for others
    its checkpoints, each as a model of its own.

    Args:
        name: of the entry.
        board: the leaderboard.
        anchor: its name and the model.
    """
    options = next((e.options for e in board.entries if e.name == name), {})
    fine_tuned = options.get("theta_1")
    if isinstance(fine_tuned, str) and fine_tuned in board.models:
        ends = {anchor[0]: anchor[1], fine_tuned: board.models[fine_tuned]}
        # One that chose an end alone is no mixture.
        return {} if set(board.models[name].members) < set(ends.values()) else ends
    return {sha: mean_of([sha]) for sha in board.models[name].checkpoints}


def _ends(inputs: Inputs) -> dict[str, dict[str, Candidate]]:
    """Return the ends of each entry that has several, by its name."""
    board, basis = inputs.frozen, inputs.basis
    anchor = (basis.anchor_name, mean_of([basis.anchor.sha256]))
    found = {name: ends_of(name, board, anchor) for name in board.each()}
    return {name: ends for name, ends in found.items() if len(ends) > 1}


def _splits(inputs: Inputs) -> tuple[Split, ...]:
    return (inputs.test, *inputs.shifts)


def measure_both_wrong(inputs: Inputs) -> BothWrong:
    """Return the counts of each entry of several models."""
    splits = _splits(inputs)
    masks: dict[tuple[Candidate, str], Mask] = {}

    def right(model: Candidate, split: Split) -> Mask:
        if (model, split.name) not in masks:
            (masks[model, split.name],) = inputs.right([model], split)
        return masks[model, split.name]

    mixtures = []
    for name, ends in _ends(inputs).items():
        model = inputs.frozen.models[name]
        each = {
            split.name: (right(model, split), [right(end, split) for end in ends.values()])
            for split in splits
        }
        mixtures.append(mixture(name, list(ends), each))
    return BothWrong(mixtures=tuple(mixtures), shifted=len(splits) > 1)


def mixture(
    name: str, ends: Sequence[str], each: Mapping[str, tuple[Mask, Sequence[Mask]]]
) -> Mixture:
    """Return the counts of one entry.

    Args:
        name: of the entry.
        ends: names of what it is made of.
        each: for each split, ID test first, which samples the mixture and each end get right.
    """
    places, differences = [], []
    for split, (joint, single) in each.items():
        all_right = np.logical_and.reduce(single)
        all_wrong = ~np.logical_or.reduce(single)
        rescued, lost = all_wrong & joint, all_right & ~joint
        differences.append(rescued.astype(float) - lost)
        places.append(
            There(
                split=split,
                n=len(joint),
                rescued=int(rescued.sum()),
                lost=int(lost.sum()),
                all_wrong=int(all_wrong.sum()),
                all_right=int(all_right.sum()),
            )
        )
    net, low, high = paired_mean(_joined(differences[1:] or differences))
    named = " and ".join(ends) if len(ends) == 2 and len(ends[0]) < 64 else ""
    return Mixture(
        name=name,
        ends=named or f"{len(ends)} checkpoints",
        count=len(ends),
        places=tuple(places),
        net=net,
        low=low,
        high=high,
    )


def _joined(differences: Sequence[Any]) -> Any:
    """Return the differences by sample; equal positions of splits of equal size go together."""
    sizes = {len(d) for d in differences}
    return np.mean(differences, axis=0) if len(sizes) == 1 else np.concatenate(differences)


# ---- How it is read


def shares(one: Mixture) -> list[tuple[str, float, float]]:
    """Return (where, share rescued, share lost): ID test, then all shifts together."""
    found = []
    for where, places in (("ID test", one.places[:1]), ("shifts", one.places[1:])):
        n = sum(p.n for p in places)
        if n:
            gained, lost = sum(p.rescued for p in places), sum(p.lost for p in places)
            found.append((where, gained / n, lost / n))
    return found


def _show(made: BothWrong) -> Shown:
    return Shown(_sentences(made), (_table(made),), (_figure(made),))


def _table(made: BothWrong) -> Table:
    rows = [
        (
            one.name,
            one.ends,
            *(percent(v) for _, gained, lost in shares(one) for v in (gained, lost)),
            points(one.net),
            f"[{points(one.low)}, {points(one.high)}]",
        )
        for one in made.mixtures
    ]
    shifts = ("shifts +", "shifts -") if made.shifted else ()
    numbers = ("test +", "test -", *shifts, "net", "95 %")
    return Table(
        columns=("entry", "ends", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("ends",),
        meaning=(
            "+: all ends wrong and the entry right. -: all ends right and the entry wrong. In % of "
            f"samples. net: + minus -, in points, {'over the shifts' if made.shifted else 'on ID'}"
            f"{'' if made.shifted else ' test'}, with its interval. With more ends, both are rarer."
        ),
    )


def _sentences(made: BothWrong) -> tuple[str, ...]:
    more = sum(one.low > 0 for one in made.mixtures)
    less = sum(one.high < 0 for one in made.mixtures)
    best = max(made.mixtures, key=lambda one: one.net)
    where, gained, lost = shares(best)[-1]
    return (
        f"{more} of {len(made.mixtures)} entries of several models get more samples right that all "
        f"of their ends get wrong than the reverse, by more than the interval; {less} fewer.",
        f"The most is {best.name} ({best.ends}): on {where}, {percent(gained)} % of the samples "
        f"are right although all ends are wrong, {percent(lost)} % the reverse.",
    )


def _figure(made: BothWrong) -> Figure:
    charts = []
    for at, where in enumerate(("ID test", "shifts") if made.shifted else ("ID test",)):
        rows = [
            {"entry": one.name, "share": value, "what": what, "ends": one.ends}
            for one in made.mixtures
            for value, what in zip(
                shares(one)[at][1:], ("ends wrong, entry right", "the reverse"), strict=True
            )
        ]
        x = Axis("entry", "", words=True)
        y = Axis("share", f"samples, {where}", percent=True, zero=True)
        chart = columns(rows, x, y, Axis("what", "", words=True))
        charts.append(chart.properties(width=max(240, 26 * len(made.mixtures)), height=240))
    title = "All ends wrong and the mixture right, and the reverse"
    return figure("both_wrong", title, grid(charts, 1), whole=True)


def _needs(inputs: Inputs) -> Needed:
    found = _ends(inputs)
    models = [
        m for name, ends in found.items() for m in (inputs.frozen.models[name], *ends.values())
    ]
    unique = tuple(dict.fromkeys(models))
    return Needed(models=tuple((unique, split) for split in _splits(inputs)))


def _cannot(inputs: Inputs) -> str | None:
    return None if _ends(inputs) else "no entry of the leaderboard is made of several models"


BOTH_WRONG = Measure(
    name="both_wrong",
    title="Both wrong, mean right",
    summary="samples that all ends of a mixture get wrong and it gets right, and the reverse",
    paper="Lin et al. 2023, arXiv:2309.17230",
    about=(
        "A mean of weights or outputs is more than a vote: it can be right where each of its ends "
        "is wrong. The paper finds this under shift above all."
    ),
    record=BothWrong,
    compute=measure_both_wrong,
    show=_show,
    needs=_needs,
    cannot=_cannot,
    objectives=(ONE_CLASS, MULTI_LABEL, REGRESSION),
)
