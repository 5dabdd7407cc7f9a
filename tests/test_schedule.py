"""The scheduler decides as the plain sequential procedure, whatever runs where."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soupray.core.ports import Reached
from soupray.core.records import Rejected, Tally
from soupray.evaluation.schedule import Answer, FirstReaching, Goal, Unit, hardest_first

N, BATCH = 23, 5


class Models:
    """Made-up models: what each gets right, and in low precision where it is unsure and wrong."""

    def __init__(self, seed: int, count: int) -> None:
        generator = np.random.default_rng(seed)
        skill = generator.uniform(0.2, 1.0, size=count)
        self.right = generator.random((count, N)) < skill[:, None]
        self.unsure = generator.random((count, N)) < 0.3
        self.orders = [tuple(generator.permutation(N).tolist()) for _ in range(count)]

    def answer(self, unit) -> Answer:
        rows = list(unit.rows)
        right, unsure = self.right[unit.candidate, rows], self.unsure[unit.candidate, rows]
        if not unit.low:
            return Answer(right, np.zeros(len(rows), bool))
        return Answer(right ^ unsure, unsure)  # low precision is wrong exactly where it is unsure


def run(models: Models, bound: int, accept: str, low: bool, workers: int, seed: int):
    """(answer, samples run): `workers` at a time, done in random order."""
    chance = random.Random(seed)
    precision = "cascade" if low else "fp32"
    schedule = FirstReaching(
        len(models.orders), models.orders.__getitem__, BATCH, Goal(bound, accept), precision
    )
    running = []
    while (reached := schedule.answer()) is None:
        while len(running) < workers and (unit := schedule.next()) is not None:
            running.append(unit)
        assert running, "nothing to do, and nothing decided"
        unit = running.pop(chance.randrange(len(running)))
        schedule.take(unit, models.answer(unit))
    return reached, schedule.samples


cases = {
    "seed": st.integers(0, 2**32),
    "count": st.integers(1, 7),
    "bound": st.integers(0, N + 1),
    "accept": st.sampled_from(["ge", "gt"]),
    "low": st.booleans(),
    "workers": st.integers(1, 8),
}


@settings(max_examples=500, deadline=None)
@given(**cases)
def test_decisions_are_those_of_a_plain_loop_over_full_counts(
    seed, count, bound, accept, low, workers
):
    models = Models(seed, count)
    counts = models.right.sum(axis=1)
    hits = [c > bound if accept == "gt" else c >= bound for c in counts]
    reached, _ = run(models, bound, accept, low, workers, seed)
    assert reached.hit == any(hits)
    upto = hits.index(True) + 1 if any(hits) else count
    assert len(reached.results) == upto
    needed = bound + 1 if accept == "gt" else bound
    for i, result in enumerate(reached.results):
        if isinstance(result, Rejected):
            assert not hits[i]
            # What it says is enough to be certain, and true.
            assert result.correct + N - result.seen < needed
            assert result.correct <= counts[i]
        else:
            assert (result.n, result.correct) == (N, counts[i])
            right = np.unpackbits(np.frombuffer(_bytes(result.right), np.uint8), count=N)
            assert (right.astype(bool) == models.right[i]).all()


def _bytes(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


@settings(max_examples=200, deadline=None)
@given(**cases)
def test_the_records_do_not_depend_on_how_many_work_or_who_is_first(
    seed, count, bound, accept, low, workers
):
    models = Models(seed, count)
    alone, least = run(models, bound, accept, low, 1, 0)
    together, more = run(models, bound, accept, low, workers, seed)
    assert together == alone
    assert more >= least


def one(right: list[int], bound: int, accept: str = "ge") -> tuple[Reached, int]:
    """One candidate, ten samples in batches of two, in natural order."""
    schedule = FirstReaching(1, lambda _: tuple(range(10)), 2, Goal(bound, accept), "fp32")
    while (reached := schedule.answer()) is None:
        unit = schedule.next()
        mask = np.array(right, bool)[list(unit.rows)]
        schedule.take(unit, Answer(mask, np.zeros(len(mask), bool)))
    return reached, schedule.samples


@pytest.mark.parametrize(
    ("accept", "seen", "correct"),
    # Four wrong leave 6 possible: below 7, and not above 6.
    [("ge", 6, 2), ("gt", 4, 1)],
)
def test_a_candidate_is_given_up_as_soon_as_it_cannot_reach_the_bound(accept, seen, correct):
    reached, samples = one([0, 1, 0, 0, 1, 0, 1, 1, 1, 1], 7, accept)
    assert reached == Reached(results=(Rejected(seen=seen, correct=correct, bound=7),), hit=False)
    assert samples == seen


def test_a_bound_that_is_met_is_counted_to_the_end():
    reached, samples = one([1] * 7 + [0] * 3, 7)
    assert reached.hit
    assert isinstance(reached.results[0], Tally)
    assert (reached.results[0].correct, samples) == (7, 10)


def test_idle_workers_get_later_batches_of_the_same_candidate_first():
    schedule = FirstReaching(2, lambda _: tuple(range(6)), 2, Goal(3, "ge"), "fp32")
    units = [schedule.next() for _ in range(7)]
    assert [(u.candidate, u.rows) for u in units[:6]] == [
        (0, (0, 1)), (0, (2, 3)), (0, (4, 5)), (1, (0, 1)), (1, (2, 3)), (1, (4, 5)),
    ]  # fmt: skip
    assert units[6] is None


def test_an_order_is_asked_for_when_its_candidate_is_first_run_and_once():
    asked = []

    def order(index: int) -> tuple[int, ...]:
        asked.append(index)
        return tuple(range(4))

    schedule = FirstReaching(1000, order, 2, Goal(3, "ge"), "fp32")
    assert asked == []
    right = [[False, False], [True, True], [True, True]]  # the first is given up, the second hits
    while schedule.answer() is None:
        unit = schedule.next()
        schedule.take(unit, Answer(np.array(right.pop(0)), np.zeros(2, bool)))
    assert schedule.answer().hit
    assert asked == [0, 1]


def test_unsure_samples_are_run_again_as_soon_as_they_fill_a_batch():
    schedule = FirstReaching(1, lambda _: tuple(range(6)), 2, Goal(0, "ge"), "cascade")
    seen = []
    while schedule.answer() is None:
        unit = schedule.next()
        seen.append((unit.rows, unit.low))
        unsure = np.array([unit.low and r in (0, 2, 5) for r in unit.rows])
        schedule.take(unit, Answer(np.ones(len(unit.rows), bool), unsure))
    # 0 waits for 2; 5 is left for the end.
    assert seen == [((0, 1), True), ((2, 3), True), ((0, 2), False), ((4, 5), True), ((5,), False)]
    assert schedule.answer().results[0].correct == 6


def test_hardest_first_is_by_the_sum_of_the_margins_then_by_index():
    a, b = np.array([0.5, -1.0, 2.0, 0.25, 0.0]), np.array([0.5, 3.0, -4.0, 0.25, 0.5])
    # The sums are 1, 2, -2, .5 and .5.
    assert hardest_first([a, b]) == (2, 3, 4, 0, 1)


def asked_of(wrong: set[int], unsure: set[int], bound: int):
    """(units, answer) of one candidate: ten samples in batches of two, in natural order."""
    schedule = FirstReaching(1, lambda _: tuple(range(10)), 2, Goal(bound, "ge"), "cascade")
    asked = []
    while schedule.answer() is None:
        unit = schedule.next()
        asked.append((unit.rows, unit.low))
        right = np.array([r not in wrong for r in unit.rows])
        schedule.take(unit, Answer(right, np.array([unit.low and r in unsure for r in unit.rows])))
    return asked, schedule.answer().results[0]


def test_a_candidate_that_lives_on_unsure_samples_only_is_settled_at_once():
    # Bound 8: three wrong are one too many. 0 and 1 are wrong; so is 2, of which it was unsure.
    asked, answer = asked_of({0, 1, 2}, {2}, 8)
    assert asked == [((0, 1), True), ((2, 3), True), ((2,), False)]
    assert answer == Rejected(seen=4, correct=1, bound=8)


def test_a_first_batch_that_can_decide_is_run_in_float32():
    # Bound 9: two wrong are one too many, and a batch has two.
    asked, answer = asked_of({0, 1}, {0, 1}, 9)
    assert asked == [((0, 1), False)]
    assert answer == Rejected(seen=2, correct=0, bound=9)
    asked, answer = asked_of({0}, {2}, 9)
    rest = [((2, 3), True), ((2,), False), ((4, 5), True), ((6, 7), True), ((8, 9), True)]
    assert asked == [((0, 1), False), *rest]
    assert answer.correct == 9


def test_a_candidate_that_survived_a_second_opinion_waits_for_twice_as_many_unsure_samples():
    # Of 20 samples, four of them wrong are allowed, five are too many.
    batches = [tuple(range(at, at + 4)) for at in range(0, 20, 4)]
    wrong, unsure = {0, 1, 2, 8}, {3, 4, 9, 12}
    schedule = FirstReaching(1, lambda _: tuple(range(20)), 4, Goal(16, "ge"), "cascade")
    asked = []
    while schedule.answer() is None:
        unit = schedule.next()
        asked.append((unit.rows, unit.low))
        right = np.array([r not in wrong for r in unit.rows])
        schedule.take(unit, Answer(right, np.array([unit.low and r in unsure for r in unit.rows])))
    # Three wrong and 3 unsure are not too many, 4 beside it is: both are settled. Then 8 is wrong
    # and 9 unsure, but one is not enough any more: it waits for 12.
    assert asked == [
        (batches[0], True),
        (batches[1], True),
        ((3, 4), False),
        (batches[2], True),
        (batches[3], True),
        ((9, 12), False),
        (batches[4], True),
    ]
    assert schedule.answer().hit
    assert schedule.answer().results[0].correct == 16
    assert schedule.samples == 24


def test_what_comes_after_a_hit_is_not_begun_and_a_late_answer_is_dropped():
    schedule = FirstReaching(3, lambda _: tuple(range(6)), 2, Goal(6, "ge"), "fp32")
    first, late = schedule.next(), schedule.next()
    none, both = np.zeros(2, bool), np.ones(2, bool)
    schedule.take(first, Answer(none, none))
    assert schedule.next().candidate == 1  # the first is given up: two of six are wrong
    schedule.take(late, Answer(both, none))
    assert schedule.samples == 4
    units = [Unit(1, rows, False) for rows in ((0, 1), (2, 3), (4, 5))]
    assert [schedule.next(), schedule.next()] == units[1:]
    assert schedule.answer() is None
    for unit in units:
        schedule.take(unit, Answer(both, none))
    assert schedule.next() is None
    rejected, hit = schedule.answer().results
    assert rejected == Rejected(seen=2, correct=0, bound=6)
    assert (hit.n, hit.correct, schedule.samples) == (6, 6, 10)


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        (0, [((0, 1), True), ((2, 3), True), ((0, 2), False), ((4,), True)]),
        # One wrong answer is allowed, and the first batch has two: it can decide.
        (4, [((0, 1), False), ((2, 3), True), ((2,), False), ((4,), True)]),
    ],
)
def test_a_batch_is_as_large_as_the_first_though_the_last_is_smaller(bound, asked):
    schedule = FirstReaching(1, lambda _: tuple(range(5)), 2, Goal(bound, "ge"), "cascade")
    seen = []
    while schedule.answer() is None:
        unit = schedule.next()
        seen.append((unit.rows, unit.low))
        unsure = np.array([unit.low and r in (0, 2) for r in unit.rows])
        right = np.array([r != 1 for r in unit.rows])
        schedule.take(unit, Answer(right, unsure))
    assert seen == asked
