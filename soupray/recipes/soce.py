"""Soup of category experts (SoCE, arXiv:2511.13254): a weighted mean of experts for classes.

The paper takes categories of a benchmark of language models. Here a category is a class. Classes
on which the same ingredients do well (Pearson correlation of their accuracies over the ingredients)
are one group, so that groups correlate weakly. The expert of a group is the ingredient that is
right on most of its samples. The experts' weights are chosen on held-out data, from all multiples
of .1.

We read the paper's abstract and summaries of it, not its code. Ours are: the threshold, groups as
connected components, and the three largest groups, for a grid of 37 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Candidate, Outcome, weight_soup
from soupray.core.ports import Selection
from soupray.core.records import Scores
from soupray.recipes.recipe import MULTI_LABEL, ONE_CLASS, Cost, Earlier, Options, Recipe, single
from soupray.recipes.starts import Single, curve, singles

EXPERTS = 3
"""Largest number of experts."""

STEPS = 10
"""Weights are multiples of 1 / STEPS."""

POINTS = 37
"""Points of the grid for three experts: 36 multiples of .1 above 0 that sum to 1, and the mean."""


class SoceOptions(Options, frozen=True, kw_only=True):
    """Options of soce."""

    correlated: Annotated[
        float,
        Meta(ge=0, le=1, description="correlation from which two classes are in one group"),
    ] = 0.5


def _soce(selection: Selection, earlier: Earlier, options: SoceOptions) -> list[Outcome]:
    known = singles(selection)
    found = experts(known, options.correlated)
    used: dict[str, str | int | float] = {"correlated": options.correlated, "experts": len(found)}
    if len(found) < 2:
        said = "soce: one ingredient is the expert for all groups of classes: it is the soup"
        return single(selection, "soce", found[0].model, used, notes=[said])
    candidates = _grid([one.checkpoint for one in found])
    scores = selection.scores(candidates)
    best = max(range(len(candidates)), key=lambda k: (selection.value(scores[k]), -k))
    return [
        Outcome(
            name="soce",
            recipe="soce",
            options=used,
            candidate=candidates[best],
            held_out=scores[best],
            trace=curve(candidates, scores, best),
        )
    ]


def _grid(checkpoints: Sequence[str]) -> list[Candidate]:
    """Return the mean, which a tie prefers, and all weights in steps above 0."""
    k = len(checkpoints)
    shares = [s for s in product(range(1, STEPS), repeat=k) if sum(s) == STEPS]
    rows = [((1,) * k, k), *((share, STEPS) for share in shares)]
    made = [weight_soup(list(zip(checkpoints, row, strict=True)), d) for row, d in rows]
    return list(dict.fromkeys(made))


def experts(known: Sequence[Single], correlated: float) -> list[Single]:
    """Return the experts of the largest groups of classes, each once.

    The best model is the only expert where no counts by class are known, or where all models are
    equally good on each class.

    Args:
        known: single models, best first.
        correlated: correlation from which two classes are in one group.
    """
    rows = [one.scores for one in known]
    sizes = [there for there, _, _ in rows[0].by_class]
    found: dict[str, Single] = {}
    for group in sorted(groups(rows, correlated), key=lambda g: -sum(sizes[c] for c in g)):
        expert = max(known, key=lambda one: sum(one.scores.by_class[c][2] for c in group))
        found.setdefault(expert.checkpoint, expert)
    return list(found.values())[:EXPERTS] or [known[0]]


def groups(rows: Sequence[Scores], correlated: float) -> list[list[int]]:
    """Return groups of classes: two classes that correlate are in one group.

    Classes on which all models are equally good say nothing, and are left out.

    Args:
        rows: held-out scores of each model.
        correlated: correlation from which two classes are in one group.
    """
    columns = list(zip(*(_deviations(row, rows) for row in rows), strict=True))
    left = [c for c, column in enumerate(columns) if any(column)]
    found: list[list[int]] = []
    while left:
        group, waiting = [], [left.pop(0)]
        while waiting:
            group.append(waiting.pop(0))
            near = [c for c in left if pearson(columns[group[-1]], columns[c]) >= correlated]
            left = [c for c in left if c not in near]
            waiting += near
        found.append(sorted(group))
    return found


def _deviations(row: Scores, rows: Sequence[Scores]) -> list[float]:
    """Return, by class, the model's correct answers minus the mean over the models, times K."""
    means = [sum(other.by_class[c][2] for other in rows) for c in range(len(row.by_class))]
    return [
        len(rows) * right - mean for (_, _, right), mean in zip(row.by_class, means, strict=True)
    ]


def pearson(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the correlation of two columns whose means are 0.

    Args:
        one: deviations from their mean, not all 0.
        other: the same, of another class.
    """
    inner = sum(a * b for a, b in zip(one, other, strict=True))
    squares = sum(a * a for a in one) * sum(b * b for b in other)
    return float(inner / squares**0.5)


SOCE = Recipe(
    name="soce",
    summary="weighted mean of the best ingredients for different groups of classes",
    when="Where trials are good at different classes, and held-out data are plenty in each.",
    paper="Maiti et al. 2025, arXiv:2511.13254",
    kind="soup",
    costs="up to 37",
    uses="held-out counts by class",
    options=SoceOptions,
    choose=_soce,
    with_all=False,
    objectives=(ONE_CLASS, MULTI_LABEL),  # counts by class
    cost=lambda pool, options: Cost(scored=POINTS, models=1, mixtures=POINTS),
)
