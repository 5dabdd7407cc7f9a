"""Greedy soup (Model soups, arXiv:2203.05482, recipe 1).

In the pool's order (best held-out first), keep an ingredient if the mean with it is at least as
good on held-out data (`ge`, as in the paper) or strictly better (`gt`, as in the released code).
One pass, without replacement; the result is never below the best single model on held-out data.
"""

from __future__ import annotations

import random

from soupray.core.candidates import Candidate, Outcome, Step, mean_of
from soupray.core.ports import Accept, Selection
from soupray.core.records import Pool


def greedy(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    accept: Accept = "ge",
    order: str = "held_out",
    seed: int = 0,
) -> list[Outcome]:
    """The greedy soup with its trace. `order: random` is for study: it starts anywhere.

    All candidates that extend the current soup are handed over at once: an evaluator may score
    them ahead of time, and the decisions stay those of the one-by-one procedure.
    """
    ingredients = list(selection.pool.ingredients)
    if order == "random":
        random.Random(seed).shuffle(ingredients)  # noqa: S311 - not a secret
    pool = [i.checkpoint.sha256 for i in ingredients]
    kept, bound = [pool[0]], selection.value(ingredients[0].held_out)
    trace = [Step(candidate=mean_of(kept), result=ingredients[0].held_out, accepted=True)]
    position = 1
    while position < len(pool):
        candidates: list[Candidate] = [mean_of([*kept, sha]) for sha in pool[position:]]
        reached = selection.first_reaching(candidates, bound, accept)
        trace += reached.steps(candidates)
        position += len(reached.results)
        if reached.hit:
            kept, bound = [*kept, pool[position - 1]], selection.value(reached.results[-1])
    candidate = mean_of(kept)
    (scores,) = selection.scores([candidate])
    options: dict[str, str | int | float] = {"accept": accept}
    if order == "random":
        options |= {"order": order, "seed": seed}
    return [
        Outcome(
            name="greedy",
            recipe="greedy",
            options=options,
            candidate=candidate,
            held_out=scores,
            trace=tuple(trace),
            notes=tuple(duplicates(selection.pool)),
        )
    ]


def duplicates(pool: Pool) -> list[str]:
    """A note on each ingredient that repeats an earlier one; `ge` would admit it."""
    notes = []
    first: dict[object, str] = {}
    for i in pool.ingredients:
        settings = tuple(sorted(i.trial.hparams.items()))
        for what, key in (
            ("the same weights", i.checkpoint.sha256),
            ("the same hyperparameters and held-out answers", (settings, i.held_out.right)),
        ):
            if key in first:
                notes.append(f"trials {first[key]} and {i.trial.key} have {what}")
                break
            first[key] = i.trial.key
    return notes
