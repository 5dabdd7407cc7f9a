"""Which batch of which candidate to run next, so that the first that reaches a bound is found soon.

Pure bookkeeping: no model, no Ray, no clock. One worker asks for one unit of work at a time; eight
workers ask for more, and get the next batches of the same candidate, then those of the candidates
behind it. Answers are counted in each candidate's own order of units, so that decisions and
records are the same whatever runs where and whatever comes back first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from soupray.core.ports import Accept, Reached
from soupray.core.records import Rejected, Tally, pack_right

Mask = npt.NDArray[np.bool_]
Batches = list[tuple[int, ...]]
Precision = Literal["fp32", "cascade", "bf16"]
"""cascade: bfloat16, and float32 where that is unsure."""


class Unit(NamedTuple):
    """Work for one worker: these samples through that candidate, in low precision or not."""

    candidate: int
    rows: tuple[int, ...]
    low: bool


class Answer(NamedTuple):
    """By row of the unit: whether it was right; and, in low precision, whether that is unsure."""

    right: Mask
    unsure: Mask


class _Count:
    """What is known of one candidate. Units are a function of the answers before them."""

    def __init__(self, index: int, rows: Batches, needed: int, precision: Precision) -> None:
        n = sum(map(len, rows))
        self.index, self._needed = index, needed
        self._batches = [Unit(index, batch, precision != "fp32") for batch in rows]
        if precision == "cascade" and rows and n - needed < len(rows[0]):
            # Enough errors to reject it fit into the first batch: a second opinion on the unsure
            # of them would cost as much as float32 at once.
            self._batches[0] = self._batches[0]._replace(low=False)
        self._issued: set[Unit] = set()
        self._answers: dict[Unit, Answer] = {}
        self._next = 0
        self._unsure: list[int] = []
        self._patience = 1
        self._size = len(rows[0]) if rows else 1
        self.right = np.zeros(n, bool)
        self.seen = self.correct = 0

    def _again(self) -> Unit | None:
        """Unsure samples, in float32, if it is their turn.

        That is when they fill a batch, at the end, and as soon as the candidate is only alive
        because they may all be right; if it survives that, the next time twice as many must have
        come together.
        """
        done = self._next == len(self._batches)
        if len(self._unsure) >= self._size or (self._unsure and (done or self._hangs_on_unsure())):
            return Unit(self.index, tuple(self._unsure[: self._size]), False)
        return None

    def _required(self) -> Unit | None:
        """The unit whose answer is counted next."""
        again = self._again()
        if again is not None or self._next == len(self._batches):
            return again
        return self._batches[self._next]

    def _hangs_on_unsure(self) -> bool:
        left = len(self.right) - self.seen - len(self._unsure)
        return self.correct + left < self._needed and len(self._unsure) >= self._patience

    def issue(self) -> Unit | None:
        """A unit that nobody was given yet: what is required next, or a batch further on."""
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
        """Count one more unit, if its answer is here."""
        again = self._again()
        unit = again or self._required()
        if unit is None or unit not in self._answers:
            return False
        answer = self._answers.pop(unit)
        sure = ~answer.unsure
        rows = np.asarray(unit.rows)
        self.right[rows[sure]] = answer.right[sure]
        self.seen += int(sure.sum())
        self.correct += int(answer.right[sure].sum())
        if again is None:
            self._next += 1
            self._unsure += rows[answer.unsure].tolist()
        else:
            self._unsure = self._unsure[len(unit.rows) :]
            self._patience *= 2
        return True

    @property
    def complete(self) -> bool:
        """Whether every sample is counted."""
        return self._required() is None


class FirstReaching:
    """The first of several candidates, in order, whose correct count reaches `bound`."""

    def __init__(
        self,
        candidates: int,
        order: Callable[[int], tuple[int, ...]],
        batch_size: int,
        bound: int,
        accept: Accept,
        precision: Precision,
    ) -> None:
        """`order`: all samples in the order in which a candidate runs them.

        It is asked for when the candidate's turn comes, and dropped once that is decided: there
        may be thousands of candidates, most of which are never run, and samples by the million.
        """
        self._order, self._batch_size, self._precision = order, batch_size, precision
        self._needed, self._bound = bound + 1 if accept == "gt" else bound, bound
        self._counts: dict[int, _Count] = {}
        self._results: list[Tally | Rejected | None] = [None] * candidates
        self.samples = 0

    def next(self) -> Unit | None:
        """Work for an idle worker; None if there is nothing to do but wait."""
        for index, result in enumerate(self._results):
            if isinstance(result, Tally) and result.correct >= self._needed:
                return None  # what comes after a hit is tried against another soup
            if result is None and (unit := self._count(index).issue()) is not None:
                return unit
        return None

    def _count(self, index: int) -> _Count:
        if index not in self._counts:
            rows = _batches(self._order(index), self._batch_size)
            self._counts[index] = _Count(index, rows, self._needed, self._precision)
        return self._counts[index]

    def take(self, unit: Unit, answer: Answer) -> None:
        """Count an answer. Answers to what is decided already are dropped."""
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
        """The record of a candidate, as soon as the answers that are here are enough for it."""
        n = len(count.right)
        while count.advance():
            if count.correct + n - count.seen < self._needed:
                return Rejected(seen=count.seen, correct=count.correct, bound=self._bound)
        if count.complete:
            return Tally(n=n, correct=count.correct, right=pack_right(count.right))
        return None

    def answer(self) -> Reached | None:
        """The answer, as soon as it is certain."""
        found: list[Tally | Rejected] = []
        for result in self._results:
            if result is None:
                return None
            found.append(result)
            if isinstance(result, Tally) and result.correct >= self._needed:
                return Reached(results=tuple(found), hit=True)
        return Reached(results=tuple(found), hit=False)


def _batches(order: tuple[int, ...], size: int) -> Batches:
    return [order[start : start + size] for start in range(0, len(order), size)]


def hardest_first(margins: Sequence[npt.NDArray[np.float64]]) -> tuple[int, ...]:
    """All samples by the sum of the ingredients' margins, each weighted as in the soup.

    A soup answers much as the ensemble of its ingredients does (Model soups, section 4): it is
    wrong where that sum is below zero, or little above. Ties by index.
    """
    return tuple(np.argsort(np.sum(margins, axis=0), kind="stable").tolist())
