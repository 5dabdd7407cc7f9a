"""CMA-ES over coefficients by block (as evolutionary merging, arXiv:2403.13187, section 3.1).

The coefficients of each block are the softmax of a row of a matrix. CMA-ES (Hansen,
arXiv:1604.00772) searches the matrix that gives the least held-out loss. It needs forward passes
only, and asks for a whole generation of candidates at once. The search is over the best
ingredients, from their mean: with a hundred evaluations it cannot learn the coefficients of
many.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from soupray.core.blocks import by_block
from soupray.core.candidates import Outcome, Step
from soupray.core.ports import Selection
from soupray.core.records import Scores
from soupray.core.requests import TensorNames
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe
from soupray.recipes.starts import mean_among, singles

# `cmaes`, `descent` and NumPy are imported on use: they would make `--help` slow.

SIGMA = 1.0
"""The first standard deviation of the search: coefficients are then e times others, or 1 / e."""


class CmaEsOptions(Options, frozen=True, kw_only=True):
    """Options of cma_es."""

    evaluations: Annotated[
        int, Meta(ge=1, le=10**5, description="candidates, at most; whole generations")
    ] = 100
    members: Annotated[
        int, Meta(ge=1, le=1000, description="how many of the best ingredients are mixed")
    ] = 4
    seed: Annotated[int, Meta(ge=0, le=2**31, description="of the search")] = 0


def _cma_es(selection: Selection, earlier: Earlier, options: CmaEsOptions) -> list[Outcome]:
    """Return the candidate with the least held-out loss, the mean of the best ones included."""
    known = singles(selection)
    shas = list(dict.fromkeys(one.checkpoint for one in known))[: options.members]
    mean = mean_among(known)(shas)
    (scores,) = selection.scores([mean])
    trace, notes, tried = [Step(candidate=mean, result=scores, accepted=True)], [], 1
    if len(shas) > 1:
        steps, size = _evolved(selection, shas, options, scores.nll)
        trace += steps
        tried += len(steps) * size
        if not steps:
            notes.append(
                f"cma_es: evaluations = {options.evaluations} is less than one generation of "
                f"{size} candidates: it is the mean of its members"
            )
    best = [step for step in trace if step.accepted][-1]
    assert isinstance(best.result, Scores)
    return [
        Outcome(
            name="cma_es",
            recipe="cma_es",
            options={"evaluations": tried, "members": len(shas), "seed": options.seed},
            candidate=best.candidate,
            held_out=best.result,
            trace=tuple(trace),
            notes=tuple(notes),
        )
    ]


def _evolved(
    selection: Selection, shas: list[str], options: CmaEsOptions, least: float
) -> tuple[list[Step], int]:
    """Return the best candidate of each generation, and the size of a generation.

    Accepted are those with a smaller loss than all before them, `least` included.
    """
    import numpy as np
    from cmaes import CMA

    from soupray.recipes.descent import soup_at

    (names,) = selection.measure([TensorNames(checkpoint=shas[0])])
    groups = by_block(names)
    search = CMA(mean=np.zeros(len(groups) * len(shas)), sigma=SIGMA, seed=options.seed)
    steps = []
    for _ in range(options.evaluations // search.population_size):
        points = [search.ask() for _ in range(search.population_size)]
        candidates = [soup_at(shas, groups, p.reshape(len(groups), -1)) for p in points]
        found = selection.scores(candidates)
        search.tell([(p, s.nll) for p, s in zip(points, found, strict=True)])
        candidate, scores = min(zip(candidates, found, strict=True), key=lambda one: one[1].nll)
        steps.append(Step(candidate=candidate, result=scores, accepted=scores.nll < least))
        least = min(least, scores.nll)
    return steps, search.population_size


def _cost(pool: PoolSize, options: CmaEsOptions) -> Cost:
    scored = options.evaluations + 1
    return Cost(scored=scored, models=1, mixtures=scored)


CMA_ES = Recipe(
    name="cma_es",
    summary="coefficients by block, by an evolutionary search on held-out loss",
    when="As `learned_by_layer`, where a backward pass does not fit into the memory.",
    paper="Hansen 2016, arXiv:1604.00772; Akiba et al. 2024, arXiv:2403.13187",
    kind="soup",
    costs="up to 101",
    uses="held-out NLL",
    options=CmaEsOptions,
    choose=_cma_es,
    with_all=False,
    cost=_cost,
)
