"""Pruned soup (arXiv:2301.10092): start from all, drop an ingredient if that does not hurt.

Worst held-out first; one pass; the last ingredient stays.
"""

from __future__ import annotations

from soupray.core.candidates import Candidate, Outcome, Step, mean_of
from soupray.core.ports import Selection


def pruned(selection: Selection, earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """The pruned soup with its trace: the uniform soup, then what was dropped and kept."""
    kept = selection.pool.checkpoints
    (scores,) = selection.scores([mean_of(kept)])
    trace = [Step(candidate=mean_of(kept), result=scores, accepted=True)]
    bound = selection.value(scores)
    left = kept[::-1]
    while left and len(kept) > 1:
        candidates: list[Candidate] = [mean_of(_without(kept, sha)) for sha in left]
        reached = selection.first_reaching(candidates, bound, "ge")
        trace += reached.steps(candidates)
        dropped = left[len(reached.results) - 1]
        left = left[len(reached.results) :]
        if reached.hit:
            kept = _without(kept, dropped)
            bound = selection.value(reached.results[-1])
    candidate = mean_of(kept)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="pruned",
            recipe="pruned",
            options={},
            candidate=candidate,
            held_out=scores,
            trace=tuple(trace),
        )
    ]


def _without(kept: list[str], sha: str) -> list[str]:
    """Less one occurrence: two trials may have ended in the same weights."""
    at = kept.index(sha)
    return kept[:at] + kept[at + 1 :]
