"""Greedy among similar ingredients: an ingredient is tried only if its update resembles the soup's.

The measure is the cosine between task vectors theta_i - theta_0, over all tensors together. Models
whose updates have a small angle average better (arXiv:2602.09689, section 3); nearly equal ones
cannot change the soup. Otherwise it is `greedy`, with fewer evaluations. The cosines come from the
weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Outcome
from soupray.core.ports import Accept, Selection
from soupray.core.requests import Gram, Matrix
from soupray.recipes.greedy import ACCEPT, Rule, add, begin
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe, single
from soupray.recipes.starts import mean_among, singles


class SimilarOptions(Options, frozen=True, kw_only=True):
    """Options of greedy_similar."""

    least: Annotated[
        Annotated[float, Meta(ge=-1, le=1)] | None,
        Meta(
            description="smallest cosine of an ingredient that is tried; left out: the median over "
            "the pairs of the pool"
        ),
    ] = None
    most: Annotated[
        float, Meta(ge=-1, le=1, description="largest cosine of an ingredient that is tried")
    ] = 0.999
    accept: Annotated[Accept, ACCEPT] = "ge"


def _greedy_similar(
    selection: Selection, earlier: Earlier, options: SimilarOptions
) -> list[Outcome]:
    known = singles(selection)
    shas = list(dict.fromkeys(one.checkpoint for one in known))
    (grams,) = selection.measure([Gram(checkpoints=tuple(shas), origin=selection.pool.init.sha256)])
    gram = total(grams)
    least = typical(gram) if options.least is None else options.least

    def offered(kept: Sequence[str], sha: str) -> bool:
        return least <= cosine(gram, [shas.index(k) for k in kept], shas.index(sha)) <= options.most

    rule = Rule(add, mean_among(known), options.accept)
    kept = begin(selection, rule, shas[:1], known[0].scores)
    mine, value, trace, rest = *kept, shas[1:]
    while rest:
        trying = [sha for sha in rest if offered(mine, sha)]
        candidates = [rule.make(add(mine, sha)) for sha in trying]
        if not candidates:
            break
        reached = selection.first_reaching(candidates, value, rule.accept)
        trace += reached.steps(candidates)
        if not reached.hit:
            break
        taken = trying[len(reached.results) - 1]
        mine, value = add(mine, taken), selection.value(reached.results[-1])
        rest = rest[rest.index(taken) + 1 :]
    used = {"least": round(least, 6), "most": options.most, "accept": options.accept}
    return single(selection, "greedy_similar", rule.make(mine), used, trace)


def total(grams: Mapping[str, Matrix]) -> Matrix:
    """Return the inner products of whole task vectors: the sum over all tensors.

    Args:
        grams: [K, K] inner products by the name of the tensor.
    """
    rows = zip(*grams.values(), strict=True)
    return tuple(tuple(map(math.fsum, zip(*same, strict=True))) for same in rows)


def cosine(gram: Matrix, kept: Sequence[int], other: int) -> float:
    """Return the cosine between the mean task vector of some models and that of another.

    Args:
        gram: [K, K] inner products of task vectors.
        kept: the models of the mean.
        other: the other model.

    Returns:
        The cosine; 0 if one of the two vectors is 0, and so has no direction.
    """
    inner = math.fsum(gram[i][other] for i in kept)
    square = math.fsum(gram[i][j] for i in kept for j in kept)
    lengths = math.sqrt(max(square, 0.0) * gram[other][other])
    return inner / lengths if lengths > 0 else 0.0


def typical(gram: Matrix) -> float:
    """Return the median cosine over all pairs of models; -1 if there is no pair."""
    pairs = [cosine(gram, [i], j) for i, j in combinations(range(len(gram)), 2)]
    return median(pairs) if pairs else -1.0


def _cost(pool: PoolSize, options: SimilarOptions) -> Cost:
    decided = max(pool.k - 1, 0)
    return Cost(decided=decided, scored=1, models=1, mixtures=decided)


GREEDY_SIMILAR = Recipe(
    name="greedy_similar",
    summary="greedy, but only ingredients whose change resembles that of the soup are tried",
    when="As `greedy`, where a pass is expensive: it tries fewer ingredients.",
    paper="arXiv:2203.05482, recipe 1; the filter after arXiv:2602.09689, section 3",
    kind="soup",
    costs="up to K - 1",
    uses="held-out counts",
    options=SimilarOptions,
    choose=_greedy_similar,
    cost=_cost,
)
