"""Greedy soup (Model soups, arXiv:2203.05482, recipe 1), and the loop of all greedy recipes.

In the pool's order (best held-out first), keep an ingredient if the mean with it is at least as
good on held-out data (`ge`, as in the paper) or strictly better (`gt`, as in the released code).
There is one pass, without replacement. In the default order, the result is never worse than the
best single model on held-out data, with the BatchNorm statistics that do better (`starts.singles`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from soupray.core.candidates import Candidate, Outcome, Step
from soupray.core.ports import Accept, Selection
from soupray.core.records import Scores
from soupray.core.trials import Pool
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe, Style, single
from soupray.recipes.starts import mean_among, singles


class Rule(NamedTuple):
    """The changes that a greedy recipe tries, and when it accepts them.

    `change`: returns the new list of checkpoints after one checkpoint is added (or removed).
    `make`: returns the candidate of a list of checkpoints. `accept`: whether an equal value is
    enough.
    """

    change: Callable[[list[str], str], list[str]]
    make: Callable[[Sequence[str]], Candidate]
    accept: Accept


class Kept(NamedTuple):
    """The state of a greedy recipe: its checkpoints, their value, and the steps so far."""

    checkpoints: list[str]
    value: float
    trace: list[Step]


def begin(selection: Selection, rule: Rule, checkpoints: list[str], scores: Scores) -> Kept:
    """Return the first state of a greedy recipe.

    Args:
        selection: gives the value of `scores`.
        rule: makes the candidate.
        checkpoints: digests of the checkpoints to start with.
        scores: held-out scores of their candidate.
    """
    first = Step(candidate=rule.make(checkpoints), result=scores, accepted=True)
    return Kept(checkpoints, selection.value(scores), [first])


def one_pass(selection: Selection, rule: Rule, kept: Kept, checkpoints: list[str]) -> Kept:
    """Try each checkpoint in turn, and keep every change that reaches the present value.

    All remaining changes of the present state are given to the evaluator at once, which may score
    them in advance. The decisions are the same as one by one. The pass ends at a change that would
    leave no checkpoint.

    Args:
        selection: decides which change is the first to reach the value.
        rule: the changes and when to accept them.
        kept: the state before the pass.
        checkpoints: digests of the checkpoints to try, in order.
    """
    mine, value, trace = kept
    trace, position = list(trace), 0
    while position < len(checkpoints) and rule.change(mine, checkpoints[position]):
        candidates = [rule.make(rule.change(mine, sha)) for sha in checkpoints[position:]]
        reached = selection.first_reaching(candidates, value, rule.accept)
        trace += reached.steps(candidates)
        position += len(reached.results)
        if reached.hit:
            mine = rule.change(mine, checkpoints[position - 1])
            value = selection.value(reached.results[-1])
    return Kept(mine, value, trace)


def add(kept: list[str], checkpoint: str) -> list[str]:
    """Return `kept` with one more checkpoint: the `change` of recipes that add."""
    return [*kept, checkpoint]


ACCEPT = Meta(
    description="`ge`: an equal score is enough to add an ingredient, as in the paper; `gt`: only "
    "a better one, as in the released code"
)


class GreedyOptions(Options, frozen=True, kw_only=True):
    """Options of greedy."""

    accept: Annotated[Accept, ACCEPT] = "ge"
    order: Annotated[
        Literal["held_out", "random"],
        Meta(description="the order in which ingredients are tried; `random` is for studies"),
    ] = "held_out"
    seed: Annotated[int, Meta(ge=0, le=2**31, description="of the random order")] = 0


def _greedy(selection: Selection, earlier: Earlier, options: GreedyOptions) -> list[Outcome]:
    known = singles(selection)
    if options.order == "random":
        random.Random(options.seed).shuffle(known)  # noqa: S311 - not a secret
    first, *rest = [one.checkpoint for one in known]
    rule = Rule(add, mean_among(known), options.accept)
    kept = begin(selection, rule, [first], known[0].scores)
    kept = one_pass(selection, rule, kept, rest)
    used: dict[str, str | int | float] = {"accept": options.accept}
    if options.order == "random":
        used |= {"order": options.order, "seed": options.seed}
    soup, notes = rule.make(kept.checkpoints), duplicates(selection.pool)
    return single(selection, "greedy", soup, used, kept.trace, notes)


def duplicates(pool: Pool) -> list[str]:
    """Return a note for each ingredient that repeats an earlier one; `ge` may accept both."""
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


def _cost(pool: PoolSize, options: GreedyOptions) -> Cost:
    decided = max(pool.k - 1, 0)
    return Cost(decided=decided, scored=1, models=1, mixtures=decided)


GREEDY = Recipe(
    name="greedy",
    summary="keep an ingredient if the mean with it does not score lower on held-out data",
    when="The one to try first: on the data that choose it, it is never worse than the best single"
    " model.",
    paper="Wortsman et al. 2022, arXiv:2203.05482, recipe 1",
    kind="soup",
    costs="K - 1",
    uses="held-out counts",
    options=GreedyOptions,
    choose=_greedy,
    cost=_cost,
    style=Style("greedy", "*", "#e76f51", own=True),
)
