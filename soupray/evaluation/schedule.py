"""The order of work in the search for the first candidate that reaches a bound.

Only bookkeeping: no model, no Ray, no clock. Each worker takes one unit of work at a time. The next
worker gets the next batch of the same candidate, or a batch of the candidates after it. The answers
for a candidate are counted in a fixed order of units. For this reason, decisions and records are
the same for any number of workers and any order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Float64, Mask, Units
from soupray.core.ports import Accept, Reached
from soupray.core.records import UNITS, Rejected, Tally, pack_right, pack_units

Batches = list[tuple[int, ...]]
Precision = Literal["fp32", "cascade", "bf16"]
"""cascade: bfloat16 first, then float32 for samples where bfloat16 is unsure."""


class Unit(NamedTuple):
    """A unit of work for one worker: some samples of one candidate.

    Attributes:
        candidate: number of the candidate, from 0.
        rows: positions of the samples.
        low: run in bfloat16.
    """

    candidate: int
    rows: tuple[int, ...]
    low: bool


class Answer(NamedTuple):
    """The result of a unit, with a value for each of its samples.

    Attributes:
        right: whether the prediction is correct; of a graded metric its value in units.
        unsure: whether a bfloat16 prediction could be different in float32.
    """

    right: Mask | Units
    unsure: Mask


class Goal(NamedTuple):
    """What a candidate has to reach.

    Attributes:
        bound: the correct count to reach; of a graded metric a sum of values, in units.
        accept: "ge": at least `bound`. "gt": more than `bound`.
        graded: the metric that gives each sample a value. Unset: a sample is right or wrong.
    """

    bound: int
    accept: Accept
    graded: str | UnsetType = UNSET

    @property
    def needed(self) -> int:
        """The smallest count that reaches it."""
        return self.bound + 1 if self.accept == "gt" else self.bound

    @property
    def unit(self) -> int:
        """What one sample adds at most."""
        return UNITS if self.graded else 1


class _Count:
    """The counts of one candidate. The answers before a unit determine the unit."""

    def __init__(self, index: int, rows: Batches, goal: Goal, precision: Precision) -> None:
        n = sum(map(len, rows))
        self.index, self._needed, self._unit = index, goal.needed, goal.unit
        self._batches = [Unit(index, batch, precision != "fp32") for batch in rows]
        if (
            precision == "cascade"
            and rows
            and n * goal.unit - goal.needed < len(rows[0]) * goal.unit
        ):
            # The first batch alone can reject the candidate. To run its unsure samples again would
            # cost as much as to run the batch in float32 at once.
            self._batches[0] = self._batches[0]._replace(low=False)
        self._issued: set[Unit] = set()
        self._answers: dict[Unit, Answer] = {}
        self._next = 0
        self._unsure: list[int] = []
        self._patience = 1
        self._size = len(rows[0]) if rows else 1
        self.right = np.zeros(n, np.uint16 if goal.graded else bool)
        self.seen = self.correct = 0

    def _again(self) -> Unit | None:
        """A unit of unsure samples in float32, if it is their turn.

        It is their turn in three cases: they fill a batch; all other batches are counted; or the
        candidate can reach the bound only with their help. After the third case, twice as many
        unsure samples must be there before it applies again.
        """
        done = self._next == len(self._batches)
        if len(self._unsure) >= self._size or (self._unsure and (done or self._hangs_on_unsure())):
            return Unit(self.index, tuple(self._unsure[: self._size]), False)
        return None

    def _required(self) -> Unit | None:
        """The unit whose answer must be counted next."""
        again = self._again()
        if again is not None or self._next == len(self._batches):
            return again
        return self._batches[self._next]

    def _hangs_on_unsure(self) -> bool:
        left = len(self.right) - self.seen - len(self._unsure)
        return (
            self.correct + left * self._unit < self._needed and len(self._unsure) >= self._patience
        )

    def issue(self) -> Unit | None:
        """A unit that no worker has yet: the required one, or a later batch."""
        required = self._required()
        if required is not None and required not in self._issued:
            self._issued.add(required)
            return required
        for unit in self._batches[self._next :]:
            if unit not in self._issued:
                self._issued.add(unit)
                return unit
        return None

    def take(self, unit: Unit, answer: Answer) -> None:
        self._answers[unit] = answer

    def advance(self) -> bool:
        """Count the next unit if its answer has arrived. Return whether one was counted."""
        again = self._again()
        unit = again or self._required()
        if unit is None or unit not in self._answers:
            return False
        answer = self._answers.pop(unit)
        sure = ~answer.unsure
        rows = np.asarray(unit.rows)
        self.right[rows[sure]] = answer.right[sure]
        self.seen += int(sure.sum())
        self.correct += int(answer.right[sure].sum(dtype=np.int64))
        if again is None:
            self._next += 1
            self._unsure += rows[answer.unsure].tolist()
        else:
            self._unsure = self._unsure[len(unit.rows) :]
            self._patience *= 2
        return True

    @property
    def at_most(self) -> int:
        """The largest sum that the samples which are not counted yet allow."""
        return self.correct + (len(self.right) - self.seen) * self._unit

    @property
    def complete(self) -> bool:
        """Whether every sample is counted."""
        return self._required() is None


class FirstReaching:
    """The search for the first candidate, in order, whose correct count reaches `bound`."""

    def __init__(
        self,
        candidates: int,
        order: Callable[[int], tuple[int, ...]],
        batch_size: int,
        goal: Goal,
        precision: Precision,
    ) -> None:
        """Plan the search.

        Args:
            candidates: number of candidates.
            order: returns the order in which a candidate runs all samples. It is called when the
                candidate's turn comes, and its result is dropped after the decision: there may be
                thousands of candidates and millions of samples, and most candidates never run.
            batch_size: samples in each unit.
            goal: what a candidate has to reach.
            precision: of the forward passes.
        """
        self._order, self._batch_size, self._precision = order, batch_size, precision
        self._goal = goal
        self._counts: dict[int, _Count] = {}
        self._results: list[Tally | Rejected | None] = [None] * candidates
        self.samples = 0

    def next(self) -> Unit | None:
        """A unit for an idle worker. None: the worker must wait for answers of other workers."""
        for index, result in enumerate(self._results):
            if isinstance(result, Tally) and result.correct >= self._goal.needed:
                return None  # the recipe will compare later candidates with another soup
            if result is None and (unit := self._count(index).issue()) is not None:
                return unit
        return None

    def _count(self, index: int) -> _Count:
        if index not in self._counts:
            rows = _batches(self._order(index), self._batch_size)
            self._counts[index] = _Count(index, rows, self._goal, self._precision)
        return self._counts[index]

    def take(self, unit: Unit, answer: Answer) -> None:
        """Take the answer for a unit. It is dropped if its candidate is already decided."""
        self.samples += len(unit.rows)
        if self._results[unit.candidate] is not None:
            return
        count = self._counts[unit.candidate]
        count.take(unit, answer)
        decided = self._decided(count)
        if decided is not None:
            self._results[unit.candidate] = decided
            del self._counts[unit.candidate]

    def _decided(self, count: _Count) -> Tally | Rejected | None:
        """The result for a candidate, or None while its answers do not determine it."""
        while count.advance():
            if count.at_most < self._goal.needed:
                return Rejected(seen=count.seen, correct=count.correct, bound=self._goal.bound)
        if count.complete:
            values = count.right
            right = pack_units(values) if self._goal.graded else pack_right(values)
            return Tally(
                n=len(values), correct=count.correct, right=right, graded=self._goal.graded
            )
        return None

    def answer(self) -> Reached | None:
        """The answer of the search, or None while it is not certain."""
        found: list[Tally | Rejected] = []
        for result in self._results:
            if result is None:
                return None
            found.append(result)
            if isinstance(result, Tally) and result.correct >= self._goal.needed:
                return Reached(results=tuple(found), hit=True)
        return Reached(results=tuple(found), hit=False)


def _batches(order: tuple[int, ...], size: int) -> Batches:
    return [order[start : start + size] for start in range(0, len(order), size)]


def hardest_first(margins: Sequence[Float64]) -> tuple[int, ...]:
    """All samples, sorted by the sum of the ingredients' margins. Ties by position.

    A soup predicts nearly the same as the ensemble of its ingredients (Model soups, section 4). It
    is probably wrong where the sum is negative or small.

    Args:
        margins: [N] for each ingredient, multiplied by its coefficient in the soup.
    """
    return tuple(np.argsort(np.sum(margins, axis=0), kind="stable").tolist())
