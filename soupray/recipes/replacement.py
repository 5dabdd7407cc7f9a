"""Greedy soup with replacement: an ingredient may be added again, which raises its coefficient.

Passes over the pool, best held-out first; an ingredient is added if the mean with one more of it
is strictly better on held-out data (equal would never end). It ends with a pass that adds nothing.
"""

from __future__ import annotations

from soupray.core.candidates import Candidate, Outcome, Step, mean_of
from soupray.core.ports import Selection

PASSES = 3
"""Over the pool, at most."""


def replacement(
    selection: Selection, earlier: tuple[Outcome, ...], *, passes: int = PASSES
) -> list[Outcome]:
    """At most `passes` passes over the pool."""
    pool = selection.pool.checkpoints
    first = selection.pool.ingredients[0]
    kept, bound = [pool[0]], selection.value(first.held_out)
    trace = [Step(candidate=mean_of(kept), result=first.held_out, accepted=True)]
    for number in range(passes):
        size = len(kept)
        position = 1 if number == 0 else 0
        while position < len(pool):
            candidates: list[Candidate] = [mean_of([*kept, sha]) for sha in pool[position:]]
            reached = selection.first_reaching(candidates, bound, "gt")
            trace += reached.steps(candidates)
            position += len(reached.results)
            if reached.hit:
                kept, bound = [*kept, pool[position - 1]], selection.value(reached.results[-1])
        if len(kept) == size:
            break
    candidate = mean_of(kept)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="replacement",
            recipe="replacement",
            options={"passes": passes},
            candidate=candidate,
            held_out=scores,
            trace=tuple(trace),
        )
    ]
