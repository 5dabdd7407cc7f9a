"""Greedy soup with replacement: an ingredient can be added again to raise its coefficient.

Each pass goes over the pool, best held-out first. An ingredient is added if the mean with one more
of it is strictly better on held-out data; with equality allowed, the passes would never end. The
recipe stops after a pass that adds nothing, or after `passes` passes.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Outcome
from soupray.core.ports import Selection
from soupray.recipes.greedy import Rule, add, begin, one_pass
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe, single
from soupray.recipes.starts import mean_among, singles


class ReplacementOptions(Options, frozen=True, kw_only=True):
    """Options of replacement."""

    passes: Annotated[
        int, Meta(ge=1, le=100, description="largest number of passes over the pool")
    ] = 3


def _replacement(
    selection: Selection, earlier: Earlier, options: ReplacementOptions
) -> list[Outcome]:
    known = singles(selection)
    pool, rule = [one.checkpoint for one in known], Rule(add, mean_among(known), "gt")
    kept = begin(selection, rule, pool[:1], known[0].scores)
    for number in range(options.passes):
        before = len(kept.checkpoints)
        kept = one_pass(selection, rule, kept, pool if number else pool[1:])
        if len(kept.checkpoints) == before:
            break
    used = {"passes": options.passes}
    return single(selection, "replacement", rule.make(kept.checkpoints), used, kept.trace)


def _cost(pool: PoolSize, options: ReplacementOptions) -> Cost:
    decided = options.passes * pool.k
    return Cost(decided=decided, scored=1, models=1, mixtures=decided)


REPLACEMENT = Recipe(
    name="replacement",
    summary="greedy, and an ingredient may be added more than once",
    when="Where a few trials are much better than the others: they may count more than once.",
    paper="Wortsman et al. 2022, arXiv:2203.05482",
    kind="soup",
    costs="up to passes K",
    uses="held-out counts",
    options=ReplacementOptions,
    choose=_replacement,
    cost=_cost,
)
