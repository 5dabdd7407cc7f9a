"""Greedy soup (Model soups, arXiv:2203.05482, recipe 1).

In the pool's order (best held-out first), keep an ingredient if the mean with it is at least as
good on held-out data (`ge`, as in the paper) or strictly better (`gt`, as in the released code).
One pass, without replacement; the result is never below the best single model on held-out data.
"""

from __future__ import annotations

from soupray.ports import Accept, Selection
from soupray.records import Candidate, Outcome, Scores, Step, mean_of


def greedy(
    selection: Selection, earlier: tuple[Outcome, ...], *, accept: Accept = "ge"
) -> list[Outcome]:
    """The greedy soup with its trace.

    All candidates that extend the current soup are handed over at once: an evaluator may score
    them ahead of time, and the decisions stay those of the one-by-one procedure.
    """
    pool = selection.pool.checkpoints
    first = selection.pool.ingredients[0]
    kept, best = [pool[0]], first.held_out
    trace = [Step(candidate=mean_of(kept), result=best, accepted=True)]
    position = 1
    while position < len(pool):
        candidates: list[Candidate] = [mean_of([*kept, sha]) for sha in pool[position:]]
        reached = selection.first_reaching(candidates, best.correct, accept)
        for candidate, result in zip(candidates, reached.results, strict=False):
            trace.append(Step(candidate=candidate, result=result, accepted=False))
        position += len(reached.results)
        if reached.hit:
            last = reached.results[-1]
            assert isinstance(last, Scores)
            trace[-1] = Step(candidate=trace[-1].candidate, result=last, accepted=True)
            kept, best = [*kept, pool[position - 1]], last
    return [
        Outcome(
            name="greedy",
            recipe="greedy",
            options={"accept": accept},
            candidate=mean_of(kept),
            held_out=best,
            trace=tuple(trace),
        )
    ]
