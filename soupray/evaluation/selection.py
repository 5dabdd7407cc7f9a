"""What a recipe is given: an evaluator that can only see held-out data."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from soupray.errors import EvaluationError
from soupray.ports import Accept, Evaluator, Reached
from soupray.records import Candidate, Pool, Scores, Split


class HeldOut:
    """A `ports.Selection`. No method takes a split, so that no recipe can name the test set."""

    __slots__ = ("_first_reaching", "_pool", "_scores")

    def __init__(self, evaluator: Evaluator, pool: Pool, split: Split) -> None:
        if split.role != "held_out":
            raise EvaluationError(
                f"recipes choose on held-out data only; {split.name!r} has role {split.role!r}."
            )
        if not pool.ingredients:
            raise EvaluationError("the pool is empty: there is nothing to choose from.")
        self._pool = pool
        # Bound here: the split, and the evaluator that would take another, stay out of reach.
        self._scores = functools.partial(evaluator.scores, split=split)
        self._first_reaching = functools.partial(evaluator.first_reaching, split=split)

    @property
    def pool(self) -> Pool:
        """The ingredients, best held-out first."""
        return self._pool

    def scores(self, candidates: Sequence[Candidate]) -> list[Scores]:
        """Held-out scores, in order."""
        return self._scores(candidates)

    def first_reaching(
        self, candidates: Sequence[Candidate], bound: int, accept: Accept
    ) -> Reached:
        """See `ports.Evaluator.first_reaching`."""
        return self._first_reaching(candidates, bound=bound, accept=accept)
