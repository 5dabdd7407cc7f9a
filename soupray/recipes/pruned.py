"""Pruned soup (arXiv:2301.10092): start from all, drop an ingredient if that does not hurt.

The ingredient with the worst held-out score comes first. There is one pass; the last ingredient is
never dropped.
"""

from __future__ import annotations

from soupray.core.candidates import Outcome
from soupray.core.ports import Selection
from soupray.recipes.greedy import Rule, begin, one_pass
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, single
from soupray.recipes.starts import mean_among, singles


def _pruned(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the pruned soup; its trace starts with the uniform soup."""
    known, pool = singles(selection), selection.pool.checkpoints
    rule = Rule(_without, mean_among(known), "ge")
    (scores,) = selection.scores([rule.make(pool)])
    kept = begin(selection, rule, pool, scores)
    kept = one_pass(selection, rule, kept, [one.checkpoint for one in known][::-1])
    return single(selection, "pruned", rule.make(kept.checkpoints), trace=kept.trace)


def _without(kept: list[str], sha: str) -> list[str]:
    """Return `kept` without one occurrence of `sha`, because two trials may have equal weights."""
    at = kept.index(sha)
    return kept[:at] + kept[at + 1 :]


PRUNED = Recipe(
    name="pruned",
    summary="start from all, drop an ingredient if that does not hurt",
    when="Where most trials are good and a few hurt.",
    paper="arXiv:2301.10092",
    kind="soup",
    costs="K",
    uses="held-out counts",
    choose=_pruned,
    cost=lambda pool, options: Cost(decided=pool.k, scored=2, models=1, mixtures=pool.k + 1),
)
