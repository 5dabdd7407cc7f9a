"""Recipes on made-up score tables: no tensor, no store, decisions known beforehand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soupray.candidates import WeightSoup, mean_of
from soupray.evaluation.evaluator import reaches
from soupray.ports import Reached
from soupray.recipes import TABLE
from soupray.recipes.greedy import greedy
from soupray.recipes.wise_ft import ALPHAS, wise_ft
from soupray.records import (
    CheckpointRef,
    Ingredient,
    Pool,
    Rejected,
    Scores,
    Setting,
    Trial,
    pack_right,
)

N = 100
REF = CheckpointRef(sha256="anchor", size_bytes=1)


def scores(correct: int, n: int = N) -> Scores:
    right = np.arange(n) < correct
    return Scores(split="d", n=n, correct=correct, nll=0.0, ece=0.0, right=pack_right(right))


def ingredient(name: str, correct: int) -> Ingredient:
    trial = Trial(
        key=name,
        index=0,
        sweep="s",
        hparams={},
        seed=0,
        init="i",
        data=(),
        code="1",
        setting=Setting(),
    )
    ref = CheckpointRef(sha256=name, size_bytes=1)
    return Ingredient(
        trial=trial,
        checkpoint=ref,
        tensors={},
        init="i",
        best_epoch=1,
        history=(),
        held_out=scores(correct),
        logits=ref,
        made_with={},
        started=0,
        finished=1,
    )


class Made:
    """A selection whose scores are a table: the sorted members of a mean -> correct count."""

    def __init__(self, singles: dict[str, int], table: dict[str, int], early: bool = False):
        ingredients = tuple(ingredient(n, c) for n, c in singles.items())
        self.pool = Pool(init=REF, anchor=REF, ingredients=ingredients)
        self._table, self._early = table, early
        self.asked: list[str] = []

    def scores(self, candidates: Sequence[WeightSoup]) -> list[Scores]:
        names = ["".join(sorted(c.checkpoints)) for c in candidates]
        self.asked += names
        return [scores(self._table[n]) for n in names]

    def first_reaching(self, candidates, bound, accept) -> Reached:
        results: list[Scores | Rejected] = []
        for candidate in candidates:
            (found,) = self.scores([candidate])
            if reaches(found, bound, accept):
                return Reached(results=(*results, found), hit=True)
            rejected = Rejected(seen=N // 2, correct=0, bound=bound)
            results.append(rejected if self._early else found)
        return Reached(results=tuple(results), hit=False)


# a + b ties with a; c helps only after b is in; d never helps; e helps late, after rejections.
SINGLES = {"a": 90, "b": 88, "c": 86, "d": 80, "e": 70}
TABLE_GE = {"ab": 90, "abc": 91, "abcd": 85, "abce": 92}
TABLE_GT = {"ab": 90, "ac": 89, "ad": 90, "ae": 93}


@pytest.mark.parametrize(
    ("accept", "table", "kept", "correct"),
    [("ge", TABLE_GE, "abce", 92), ("gt", TABLE_GT, "ae", 93)],
)
@pytest.mark.parametrize("early", [False, True])
def test_greedy_keeps_what_it_should_under_both_accept_rules(accept, table, kept, correct, early):
    (outcome,) = greedy(Made(SINGLES, table, early), (), accept=accept)
    assert outcome.candidate == mean_of(list(kept))
    assert outcome.held_out.correct == correct
    assert [s.accepted for s in outcome.trace] == [n in kept for n in "abcde"]


def test_greedy_costs_one_evaluation_for_each_ingredient_after_the_first():
    selection = Made(SINGLES, TABLE_GE)
    greedy(selection, ())
    assert selection.asked == ["ab", "abc", "abcd", "abce"]


def test_greedy_of_one_ingredient_is_that_ingredient():
    (outcome,) = greedy(Made({"a": 90}, {}), ())
    assert outcome.candidate == mean_of(["a"])
    assert len(outcome.trace) == 1


def plain_greedy(singles: dict[str, int], score_of, strict: bool) -> list[str]:
    """The published procedure, written as plainly as it goes."""
    names = list(singles)
    soup, best = [names[0]], singles[names[0]]
    for name in names[1:]:
        tried = score_of("".join(sorted([*soup, name])))
        if tried > best or (tried == best and not strict):
            soup, best = [*soup, name], tried
    return soup


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(40, 60), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    accept=st.sampled_from(["ge", "gt"]),
    early=st.booleans(),
)
def test_greedy_decides_as_the_plain_procedure_on_random_tables(counts, seed, accept, early):
    singles = {chr(97 + i): c for i, c in enumerate(sorted(counts, reverse=True))}

    class Random(dict):
        def __missing__(self, key):
            self[key] = int(np.random.default_rng([seed, *map(ord, key)]).integers(40, 63))
            return self[key]

    table = Random()
    (outcome,) = greedy(Made(singles, table, early), (), accept=accept)
    expected = plain_greedy(singles, table.__getitem__, strict=accept == "gt")
    assert outcome.candidate == mean_of(expected)
    assert outcome.held_out.correct >= max(counts)


class Lines(Made):
    """Scores by alpha: peaks at .3 for the single model, at .8 for the soup."""

    def scores(self, candidates):
        answers = []
        for c in candidates:
            anchor = dict(c.parts).get("anchor", 0) / c.denominator
            peak = 0.8 if "b" in c.checkpoints else 0.3
            answers.append(scores(round(90 - 20 * abs((1 - anchor) - peak))))
        return answers


def baseline_outcomes(selection):
    outcomes = []
    for name in ("anchor", "best_single", "uniform"):
        outcomes += TABLE[name].function()(selection, tuple(outcomes))
    return outcomes


def test_wise_ft_starts_from_the_best_single_model_and_the_best_soup():
    selection = Lines({"a": 90, "b": 88}, {})
    outcomes = wise_ft(selection, tuple(baseline_outcomes(selection)))
    assert [o.name for o in outcomes] == [
        "wise_ft(best_single, half)",
        "wise_ft(best_single, best)",
        "wise_ft(uniform, half)",
        "wise_ft(uniform, best)",
    ]
    assert [o.options["alpha"] for o in outcomes] == [0.5, 0.3, 0.5, 0.8]
    assert all(len(o.trace) == GRID + 1 for o in outcomes)
    assert outcomes[0].trace[0].candidate == mean_of(["anchor"])
    assert outcomes[0].trace[-1].candidate == mean_of(["a"])
    # alpha .8 of mean(a, b): .2 anchor + .4 a + .4 b
    assert outcomes[3].candidate.parts == (("anchor", 1), ("a", 2), ("b", 2))
    assert outcomes[3].candidate.denominator == 5


def test_wise_ft_prefers_the_smaller_alpha_on_a_tie():
    class Flat(Made):
        def scores(self, candidates):
            return [scores(80) for _ in candidates]

    selection = Flat({"a": 90}, {})
    outcomes = wise_ft(selection, tuple(baseline_outcomes(selection)))
    assert [o.options["alpha"] for o in outcomes] == [0.5, 0.0]


def test_the_table_imports_every_recipe_and_names_its_source():
    for name, recipe in TABLE.items():
        assert recipe.name == name
        assert callable(recipe.function())
        assert recipe.paper
        assert recipe.cost
