"""The baselines of all comparisons: the anchor and the best single ingredient."""

from __future__ import annotations

from soupray.core.candidates import Outcome, mean_of
from soupray.core.ports import Selection
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, Style


def _anchor(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the unchanged reference model of the pool."""
    candidate = mean_of([selection.pool.anchor.sha256])
    (scores,) = selection.scores([candidate])
    name = selection.pool.anchor_name
    return [Outcome(name=name, recipe="anchor", options={}, candidate=candidate, held_out=scores)]


def _best_single(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the first ingredient of the pool: the best one; the trial key breaks ties."""
    best = selection.pool.ingredients[0]
    return [
        Outcome(
            name="best_single",
            recipe="best_single",
            options={},
            candidate=mean_of([best.checkpoint.sha256]),
            held_out=best.held_out,
        )
    ]


ANCHOR = Recipe(
    name="anchor",
    summary="the zero-shot (or other reference) model",
    paper="-",
    kind="baseline",
    costs="1",
    choose=_anchor,
    cost=lambda pool, options: Cost(scored=1, models=1),
    style=Style("anchor", "D", "#7a5195", own=True),
)

BEST_SINGLE = Recipe(
    name="best_single",
    summary="the ingredient that is best on held-out data",
    paper="-",
    kind="baseline",
    costs="0: scored when trained",
    uses="held-out counts",
    choose=_best_single,
    style=Style("best single", "o", "#1a1a2e", own=True),
)
