"""The baselines of all comparisons: the anchor and the best single ingredient.

A soup of models with BatchNorm has statistics that are estimated on training data. `update_bn`
gives the same to single models, so that the leaderboard can compare weights with weights.
"""

from __future__ import annotations

from soupray.core.candidates import Outcome, estimated, mean_of
from soupray.core.ports import Selection
from soupray.recipes.recipe import INK, Cost, Earlier, Options, Recipe, Style


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


def updated(name: str) -> str:
    """Return the name of the outcome of `update_bn` for the baseline `name`."""
    return f"{name}(bn)"


BEST_UPDATED = updated("best_single")


def _update_bn(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the anchor and the best ingredient, all with estimated BatchNorm statistics.

    The best ingredient is chosen anew, by scores with these statistics: it may be another one.
    Empty if no training moved the statistics of the pool.
    """
    pool, moved = selection.pool, selection.pool.moved
    singles = {
        updated(pool.anchor_name): [pool.anchor.sha256],
        BEST_UPDATED: pool.checkpoints,
    }
    outcomes = []
    for name, checkpoints in singles.items():
        candidates = [estimated(sha) for sha in dict.fromkeys(checkpoints) if sha in moved]
        if candidates:
            scored = zip(candidates, selection.scores(candidates), strict=True)
            best, held_out = max(scored, key=lambda one: selection.value(one[1]))
            outcomes.append(
                Outcome(
                    name=name,
                    recipe="update_bn",
                    options={},
                    candidate=best,
                    held_out=held_out,
                )
            )
    return outcomes


ANCHOR = Recipe(
    name="anchor",
    summary="the zero-shot (or other reference) model",
    when="Always in the leaderboard: what fine-tuning started from.",
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
    when="Always in the leaderboard: the baseline to beat.",
    paper="-",
    kind="baseline",
    costs="0: scored when trained",
    uses="held-out counts",
    choose=_best_single,
    style=Style("best single", "o", INK, own=True),
)

UPDATE_BN = Recipe(
    name="update_bn",
    summary="anchor and best single with BatchNorm statistics estimated on training data, as soups"
    " have them",
    when="Always in the leaderboard of a model with BatchNorm: it shows which gains the statistics"
    " alone explain.",
    paper="Izmailov et al. 2018, arXiv:1803.05407",
    kind="baseline",
    costs="K + 1; nothing without BatchNorm",
    uses="training inputs, held-out counts",
    choose=_update_bn,
    cost=lambda pool, options: Cost(scored=pool.k + 1, models=2, mixtures=pool.k + 1),
    style=Style("single, BatchNorm updated", "o", INK),
)
