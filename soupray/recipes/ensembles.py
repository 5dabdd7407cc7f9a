"""Output-space ensembles: K models, K forward passes a sample.

The mean of logits (default) or of probabilities, over all ingredients or chosen greedily. Before
probabilities are mixed, each model is calibrated by its temperature (arXiv:2110.12899).
"""

from __future__ import annotations

from soupray.core.candidates import Candidate, Outcome, Space, Step, ensemble_of, mean_of
from soupray.core.ports import Accept, Selection
from soupray.core.requests import Temperature


def ensemble(
    selection: Selection, earlier: tuple[Outcome, ...], *, space: Space = "logits"
) -> list[Outcome]:
    """All ingredients, equal shares."""
    temperatures = _temperatures(selection, space)
    candidate = _mean(selection.pool.checkpoints, temperatures, space)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="ensemble",
            recipe="ensemble",
            options={"space": space},
            candidate=candidate,
            held_out=scores,
        )
    ]


def greedy_ensemble(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    space: Space = "logits",
    accept: Accept = "ge",
) -> list[Outcome]:
    """The greedy procedure over outputs (arXiv:2203.05482): decided from stored logits."""
    pool, temperatures = selection.pool.checkpoints, _temperatures(selection, space)
    kept = [pool[0]]
    (best,) = selection.scores([_mean(kept, temperatures, space)])
    trace = [Step(candidate=_mean(kept, temperatures, space), result=best, accepted=True)]
    bound, position = selection.value(best), 1
    while position < len(pool):
        candidates = [_mean([*kept, sha], temperatures, space) for sha in pool[position:]]
        reached = selection.first_reaching(candidates, bound, accept)
        trace += reached.steps(candidates)
        position += len(reached.results)
        if reached.hit:
            kept, bound = [*kept, pool[position - 1]], selection.value(reached.results[-1])
    candidate = _mean(kept, temperatures, space)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="greedy_ensemble",
            recipe="greedy_ensemble",
            options={"space": space, "accept": accept},
            candidate=candidate,
            held_out=scores,
            trace=tuple(trace),
        )
    ]


def _temperatures(selection: Selection, space: Space) -> dict[str, float]:
    pool = selection.pool.checkpoints
    if space == "logits":
        return dict.fromkeys(pool, 1.0)
    found = selection.measure([Temperature(candidate=mean_of([sha])) for sha in pool])
    return dict(zip(pool, found, strict=True))


def _mean(kept: list[str], temperatures: dict[str, float], space: Space) -> Candidate:
    return ensemble_of([(mean_of([sha]), 1, temperatures[sha]) for sha in kept], len(kept), space)
