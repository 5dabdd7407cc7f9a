"""Recipes on made-up score tables: no tensor, no store, decisions known beforehand."""

import math
import os
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace
from shared import demo

from soupray.core.blocks import BLOCK_NUMBER
from soupray.core.candidates import QUANTUM, LayerSoup, WeightSoup, mean_of, quantised, weight_soup
from soupray.core.errors import ConfigError
from soupray.core.ports import Reached
from soupray.core.records import CheckpointRef, Rejected, Scores, Setting, pack_right
from soupray.core.requests import (
    Distances,
    Failures,
    FailureSet,
    Slope,
    Temperature,
    TensorNames,
)
from soupray.core.trials import Ingredient, Pool, Trial
from soupray.evaluation.evaluator import reaches
from soupray.recipes import (
    BY_NAME,
    RECIPES,
    descent,
    learned,
    lines,
    model_stock,
    run_recipes,
    total_cost,
)
from soupray.recipes.greedy import GREEDY
from soupray.recipes.ose import OSE
from soupray.recipes.pruned import PRUNED
from soupray.recipes.recipe import Earlier, PoolSize
from soupray.recipes.replacement import REPLACEMENT
from soupray.recipes.starts import interpolate, starts
from soupray.recipes.vrf import VRF
from soupray.recipes.wise_ft import ALPHAS, WISE_FT, grid_of
from soupray.reporting.plots import line_candidates
from soupray.soup.run import chosen_recipes

N = 100
REF = CheckpointRef(sha256="anchor", size_bytes=1)


def scores(correct: int, n: int = N) -> Scores:
    right = np.arange(n) < correct
    return Scores(
        split="d", n=n, correct=correct, nll=0.0, ece=0.0, right=pack_right(right), by_class=()
    )


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
        self._singles, self._table, self._early = singles, table, early
        self.asked: list[str] = []

    def scores(self, candidates: Sequence[WeightSoup]) -> list[Scores]:
        return [scores(self._correct(c)) for c in candidates]

    def value(self, result) -> float:
        return result.correct / result.n

    def _correct(self, c: WeightSoup) -> int:
        """By the name of a multiset: 2 a + b is aab."""
        name = "".join(sorted(sha * n for sha, n in c.parts))
        return self._singles[name] if name in self._singles else self._table[name]

    def first_reaching(self, candidates, bound, accept) -> Reached:
        results: list[Scores | Rejected] = []
        for candidate in candidates:
            self.asked.append("".join(sorted(sha * n for sha, n in candidate.parts)))
            (found,) = self.scores([candidate])
            if reaches(found, round(bound * N), accept):
                return Reached(results=(*results, found), hit=True)
            rejected = Rejected(seen=N // 2, correct=0, bound=round(bound * N))
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
    (outcome,) = GREEDY.run(Made(SINGLES, table, early), options={"accept": accept})
    assert outcome.candidate == mean_of(list(kept))
    assert outcome.held_out.correct == correct
    assert [s.accepted for s in outcome.trace] == [n in kept for n in "abcde"]


def test_greedy_costs_one_evaluation_for_each_ingredient_after_the_first():
    selection = Made(SINGLES, TABLE_GE)
    GREEDY.run(selection)
    assert selection.asked == ["ab", "abc", "abcd", "abce"]


def test_greedy_of_one_ingredient_is_that_ingredient():
    (outcome,) = GREEDY.run(Made({"a": 90}, {}))
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
    (outcome,) = GREEDY.run(Made(singles, table, early), options={"accept": accept})
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


def baselines(selection) -> Earlier:
    """What wise_ft and lines find before them: baselines, and the uniform soup."""
    wanted = {name: {} for name in ("anchor", "best_single", "uniform")}
    outcomes = tuple(run_recipes(selection, wanted))
    return Earlier(outcomes, outcomes[2:])


def test_wise_ft_starts_from_the_best_single_model_and_the_best_soup():
    selection = Lines({"a": 90, "b": 88}, {})
    outcomes = WISE_FT.run(selection, baselines(selection), {"eps": 0.03})
    assert [o.name for o in outcomes] == [
        f"wise_ft({start}, {point})"
        for start in ("best_single", "uniform")
        for point in ("half", "best", "within")
    ]
    # Peaks of 90 at .3 and .8; 3 of 100 less, where the slope is 20, is .15 before the peak.
    assert [o.options["alpha"] for o in outcomes] == [0.5, 0.3, 0.15, 0.5, 0.8, 0.65]
    assert all(len(o.trace) == len(ALPHAS) == 21 for o in outcomes)
    assert outcomes[0].trace[0].candidate == mean_of(["anchor"])
    assert outcomes[0].trace[-1].candidate == mean_of(["a"])
    # alpha .8 of mean(a, b): .2 anchor + .4 a + .4 b
    assert outcomes[4].candidate.parts == (("anchor", 1), ("a", 2), ("b", 2))
    assert outcomes[4].candidate.denominator == 5


@pytest.mark.parametrize(
    ("asked", "name", "end"),
    [("uniform", "uniform", "ab"), ("b-", "b-7", "b"), ("b-7", "b-7", "b")],
)
def test_wise_ft_goes_to_the_soup_or_trial_that_is_named(asked, name, end):
    selection = Lines({"a": 90, "b": 88}, {})
    first, second = selection.pool.ingredients
    second = replace(second, trial=replace(second.trial, key="b-7"))
    selection.pool = replace(selection.pool, ingredients=(first, second))
    earlier = baselines(selection)
    outcomes = WISE_FT.run(selection, earlier, {"theta_1": asked})
    assert [o.name for o in outcomes] == [
        f"wise_ft({name}, {p})" for p in ("half", "best", "within")
    ]
    assert {o.options["theta_1"] for o in outcomes} == {name}
    assert outcomes[0].trace[-1].candidate == mean_of(list(end))
    # The line that the figure shows, too.
    (line,) = line_candidates([*earlier.outcomes, *outcomes]).values()
    assert line[-1] == mean_of(list(end))


def test_a_theta_1_that_nothing_or_too_much_is_called_is_an_error_with_what_there_is():
    selection = Lines({"a1": 90, "a2": 88}, {})
    earlier = baselines(selection)
    there = "Soups: best_single, uniform; ask for others too (--all). Trials: a1, a2."
    for wrong, count in (("greedy", 0), ("a", 2), ("zero_shot", 0)):
        said = f"theta_1 = '{wrong}' names no soup of this run, and {count} trials' keys begin so."
        with pytest.raises(ConfigError, match=re.escape(f"{said} {there}")):
            WISE_FT.run(selection, earlier, {"theta_1": wrong})
    with pytest.raises(
        ConfigError, match=r"theta_1 = 7\. Allowed: text: the name of a soup of this run"
    ):
        WISE_FT.read({"theta_1": 7}, "x.yaml")


def test_wise_ft_prefers_the_smaller_alpha_on_a_tie():
    class Flat(Made):
        def scores(self, candidates):
            return [scores(80) for _ in candidates]

    selection = Flat({"a": 90}, {})
    outcomes = WISE_FT.run(selection, baselines(selection))
    assert [o.options["alpha"] for o in outcomes] == [0.5, 0.0, 0.0]


def test_a_grid_without_its_end_points_gets_them_with_a_note():
    selection = Lines({"a": 90}, {})
    earlier = baselines(selection)
    outcomes = WISE_FT.run(selection, earlier, {"alphas": [0.25, 0.7]})
    tried = [1 - dict(s.candidate.parts).get("anchor", 0) / s.candidate.denominator
             for s in outcomes[0].trace]  # fmt: skip
    assert tried == pytest.approx([0, 0.25, 0.5, 0.7, 1])
    assert outcomes[0].notes == ("wise_ft: 0, 0.5, 1 added to the grid of alphas",)
    assert grid_of([0, 0.5, 1]) == ([Fraction(0), Fraction(1, 2), Fraction(1)], ())


def test_alphas_are_the_decimals_that_were_written_or_an_error():
    written = [1, 0.0004, 0.333333, 1e-6, 0.5, 0]
    WISE_FT.read({"alphas": written}, "x.yaml")
    grid, notes = grid_of(written)
    thirds = Fraction(333333, 10**6)
    assert grid == [0, Fraction(1, 10**6), Fraction(1, 2500), thirds, Fraction(1, 2), 1]
    assert notes == ()
    allowed = "Allowed: a list of numbers, each 0 to 1, with 6 decimals at most"
    for wrong in ([0.5, 0.3333333], [1e-7], [1.5], [], 0.5, ["x"]):
        with pytest.raises(ConfigError, match=re.escape(f"alphas = {wrong!r}. {allowed}")):
            WISE_FT.read({"alphas": wrong}, "x.yaml")


def test_replacement_adds_an_ingredient_again_and_stops_when_a_pass_adds_nothing():
    table = {"ab": 92, "ac": 1, "abc": 91, "aab": 93, "aabb": 92, "aabc": 93, "aaab": 93}
    selection = Made({"a": 90, "b": 88, "c": 86}, table)
    (outcome,) = REPLACEMENT.run(selection)
    assert outcome.candidate == weight_soup([("a", 2), ("b", 1)], 3)
    assert outcome.held_out.correct == 93
    # Pass 1 from b on; pass 2 adds a; pass 3 adds nothing. 2a + 2b is a + b: the same soup.
    assert selection.asked == ["ab", "abc", "aab", "ab", "aabc", "aaab", "ab", "aabc"]


def test_pruned_drops_from_the_worst_on_what_does_not_help():
    table = {"abc": 80, "ab": 80, "a": 90, "b": 70}
    selection = Made({"a": 90, "b": 88, "c": 86}, table | {"ac": 79, "bc": 79})
    selection._singles = {}
    (outcome,) = PRUNED.run(selection)
    # c goes (80 is not less), then b goes (90), then a is the last and stays.
    assert outcome.candidate == mean_of(["a"])
    assert [s.accepted for s in outcome.trace] == [True, True, True]
    assert selection.asked == ["ab", "a"]


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 2**32), early=st.booleans())
def test_pruned_and_replacement_decide_as_the_plain_procedures(count, seed, early):
    names = [chr(97 + i) for i in range(count)]

    class Random(dict):
        def __missing__(self, key):
            self[key] = int(np.random.default_rng([seed, *map(ord, key)]).integers(40, 63))
            return self[key]

    table = Random()
    counts = sorted((table[n] for n in names), reverse=True)
    singles = dict(zip(names, counts, strict=True))
    table |= singles

    def score_of(members: list[str]) -> int:
        reduced = weight_soup([(m, 1) for m in members], len(members))
        return table["".join(sorted(sha * n for sha, n in reduced.parts))]

    kept = list(names)
    best = score_of(kept)
    for name in reversed(names):
        rest = [k for k in kept if k != name]
        if rest and score_of(rest) >= best:
            kept, best = rest, score_of(rest)
    (outcome,) = PRUNED.run(Made(singles, table, early))
    assert outcome.candidate == mean_of(kept)

    kept, best = [names[0]], singles[names[0]]
    for number in range(3):
        before = len(kept)
        for name in names[1:] if number == 0 else names:
            if score_of([*kept, name]) > best:
                kept, best = [*kept, name], score_of([*kept, name])
        if len(kept) == before:
            break
    (outcome,) = REPLACEMENT.run(Made(singles, table, early))
    assert outcome.candidate == mean_of(kept)
    assert outcome.held_out.correct == best


def test_equal_ingredients_are_reported_by_greedy():
    selection = Made({"a": 90, "b": 90, "c": 80}, {"ab": 90, "abc": 89})
    (outcome,) = GREEDY.run(selection)
    # The same hyperparameters (none) and the same answers, by another checkpoint.
    assert outcome.notes == ("trials a and b have the same hyperparameters and held-out answers",)


@pytest.mark.parametrize(
    ("cos", "k", "t"),
    [(1.0, 2, 1.0), (0.0, 2, 0.0), (0.5, 2, 2 / 3), (0.5, 3, 0.75)],
)
def test_model_stock_goes_as_far_as_the_angle_allows(cos, k, t):
    # Equal norms of 2: inner products 4 on the diagonal, 4 cos off it.
    gram = tuple(tuple(4.0 if i == j else 4.0 * cos for j in range(k)) for i in range(k))
    assert model_stock.ratio(gram) == pytest.approx(t)


def test_model_stock_leaves_what_nobody_changed_and_clamps_opposites():
    assert model_stock.ratio(((0.0, 0.0), (0.0, 0.0))) == 0.0
    assert model_stock.ratio(((1.0, -0.5), (-0.5, 1.0))) < 0  # clamped, and noted, by the recipe
    assert model_stock.ratio(((5.0,),)) == 1.0


NAMES = ("visual.conv1", "visual.blocks.0.w", "visual.blocks.1.w", "visual.blocks.2.w", "head.w")


def test_lines_scales_blocks_by_depth():
    depth = lines.depths(NAMES)
    assert [depth[n] for n in NAMES] == [(0, 2), (0, 2), (1, 2), (2, 2), (2, 2)]
    soup = lines.scaled("init", mean_of(["a"]), depth, 2)  # alpha .2
    shares = {n: row[1] / soup.denominator for n, row in soup.numerators().items()}
    # alpha + (1 - alpha) l / 2: .2 outside and in block 0, .6 in block 1, 1 in block 2 and head
    assert [shares[n] for n in NAMES] == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0])
    assert all(sum(row) == soup.denominator for row in soup.numerators().values())
    assert lines.scaled("init", mean_of(["a"]), depth, 10) == mean_of(["a"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES, ()),
        (  # of timm's densenet121
            ("features.conv0.weight", "features.denseblock1.denselayer1.conv1.weight", "head.w"),
            (
                "lines: the names of tensors (as features.conv0.weight) number fewer than two "
                "blocks: it is theta_1, whatever the alpha",
            ),
        ),
    ],
)
def test_lines_says_so_where_names_tell_no_depth(names, said):
    class Flat(Made):
        def scores(self, candidates):
            return [scores(80) for _ in candidates]

        def measure(self, requests):
            return [names]

    selection = Flat({"a": 90}, {})
    (found,) = lines.LINES.run(selection, baselines(selection))
    assert found.notes == said
    assert {s.candidate == mean_of(["a"]) for s in found.trace} == (
        {True} if said else {True, False}
    )


def test_lines_of_one_block_is_theta_1():
    depth = lines.depths(("layer1.0.w", "head.w"))
    assert lines.scaled("init", mean_of(["a"]), depth, 0) == mean_of(["a"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("visual.transformer.resblocks.11.mlp.c_fc.weight", 11),
        ("backbone.layer3.1.bn2.bias", 3),
        ("trunk.stages.2.blocks.4.norm.weight", 2),
        ("text.encoder.layer.7.output.dense.weight", 7),
        ("visual.ln_post.weight", None),
    ],
)
def test_blocks_are_found_in_the_names_of_open_clip_timm_and_transformers(name, block):
    found = BLOCK_NUMBER.search(name)
    assert (int(found.group(1)) if found else None) == block


def test_learned_steps_follow_the_chain_rule_of_softmax():
    """A loss of its own: sum_i alpha_i c_i, whose best is all weight on the least c."""

    class Bowl(Made):
        def measure(self, requests):
            (request,) = requests
            if isinstance(request, TensorNames):
                return [("x", "y")]
            rows = [row for _, row in request.soup.layers] or [request.soup.rest]
            costs = (3.0, 1.0, 2.0)
            loss = sum(n * c for row in rows for n, c in zip(row, costs, strict=True))
            layers = [costs] * len(request.soup.layers)
            slope = Slope(
                loss=loss / request.soup.denominator, coefficients=(*layers, costs), beta=0.0
            )
            return [slope]

        def scores(self, candidates):
            return [scores(50) for _ in candidates]

    selection = Bowl({"a": 90, "b": 88, "c": 86}, {})
    for recipe in (learned.LEARNED, learned.LEARNED_BY_LAYER):
        (outcome,) = recipe.run(selection, options={"epochs": 400, "lr": 0.05})
        assert outcome.candidate.coefficients[1] > 0.95
        assert sum(outcome.candidate.coefficients) == pytest.approx(1, abs=1e-12)
        assert outcome.options["beta"] == 1.0


def test_a_learned_soup_reads_every_ingredient_twice_a_step_or_once_if_all_fit(monkeypatch):
    pool = Made({"a": 90, "b": 88}, {}).pool.ingredients
    size = sum(i.checkpoint.size_bytes for i in pool)
    n = pool[0].held_out.n
    monkeypatch.setattr(learned, "available_memory", lambda: size - 1)
    assert learned.bytes_read(pool, learned.LearnedOptions(epochs=3, batch_size=n)) == 2 * 3 * size
    assert (
        learned.bytes_read(pool, learned.LearnedOptions(epochs=3, batch_size=n - 1)) == 2 * 6 * size
    )
    monkeypatch.setattr(learned, "available_memory", lambda: size)
    assert learned.bytes_read(pool, learned.LearnedOptions(epochs=3, batch_size=n - 1)) == size


def test_the_available_memory_is_some_of_what_the_machine_has():
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**6 < learned.available_memory() <= installed


def test_quantised_shares_sum_to_one_exactly():
    for shares in ([1 / 3] * 3, [0.1, 0.2, 0.7], [1e-9, 1 - 1e-9], [1.0]):
        assert sum(quantised(shares)) == QUANTUM


def test_the_largest_share_takes_what_rounding_leaves():
    # Rounded to 166667 twice and 666667, one too many; to 142857 seven times, one too few.
    assert quantised([1 / 6, 2 / 3, 1 / 6]) == (166667, 666666, 166667)
    assert quantised([*[1 / 7 - 1e-8] * 6, 1 / 7 + 6e-8]) == (*[142857] * 6, 142858)


class Slopes(Made):
    """The loss falls or rises along beta, as steeply as told; it is the same for all soups."""

    slope = 1.0

    def measure(self, requests):
        (request,) = requests
        self.asked.append(request)
        flat = (tuple(0.0 for _ in self._singles),) * (len(request.soup.layers) + 1)
        return [Slope(loss=0.1234567 * len(self.asked), coefficients=flat, beta=self.slope)]


def test_beta_follows_the_chain_rule_of_its_logarithm_and_adam_with_both_corrections():
    selection = Slopes({"a": 90, "b": 88}, {})
    point = descent.descend(selection, [()], lr=0.5, steps=2, batch_size=50)
    # Step 1 is -lr. The gradients by log beta are 1 and exp(-.5) = .606531, so that in step 2
    # m = (.09 + .0606531) / .19 = .792911, v = (.999 + .367879) / 1.999 = .683782,
    # m / sqrt(v) = .958883, and log beta = -.5 - .4794415.
    assert [request.beta for request in selection.asked] == pytest.approx([1.0, math.exp(-0.5)])
    assert point.beta == round(math.exp(-0.9794415), 6) == 0.375521
    assert point.loss == 0.246913
    assert point.shares.tolist() == [[0.5, 0.5]]
    (first, second) = (request.rows for request in selection.asked)
    assert (len(first), sorted([*first, *second])) == (50, list(range(100)))
    drawn = random.Random(0).sample(range(100), 100)
    assert (list(first), list(second)) == (sorted(drawn[:50]), sorted(drawn[50:]))


def test_each_epoch_has_another_order_and_a_last_batch_of_what_is_left():
    selection = Slopes({"a": 90, "b": 88}, {})
    descent.descend(selection, [("x",), ("y", "z")], lr=0.1, steps=4, batch_size=60)
    rows = [request.rows for request in selection.asked]
    assert [len(r) for r in rows] == [60, 40, 60, 40]
    assert rows[0] != rows[2]
    soup = selection.asked[0].soup
    assert soup.checkpoints == ("a", "b")
    assert soup.layers == ((("x",), (500000, 500000)), (("y", "z"), (500000, 500000)))
    assert (soup.rest, soup.denominator) == ((500000, 500000), 10**6)


def test_adam_by_hand_with_the_signs_of_the_gradient_first_and_a_mean_of_squares_then():
    adam = descent.Adam(0.1, 2)
    assert adam.step(np.array([3.0, -0.5])) == pytest.approx([-0.1, 0.1])
    # m = .09 * 3 + .1 * 1 over .19 = 1.947368, v = (.999 * 9 + 1) / 1.999 = 4.997999; and
    # m = -.045 / .19 = -.236842, v = .999 * .25 / 1.999 = .124937.
    expected = [-0.1 * 1.947368 / 2.235621, 0.1 * 0.236842 / 0.353465]
    assert adam.step(np.array([1.0, 0.0])) == pytest.approx(expected, rel=1e-5)
    tiny = descent.Adam(0.1, 1)  # as large as epsilon: half a step
    assert tiny.step(np.array([1e-8])) == pytest.approx([-0.05])


def test_the_gradient_by_w_is_that_of_softmax():
    slope = Slope(loss=0.0, coefficients=((1.0, 5.0), (4.0, 2.0), (3.0, 7.0)), beta=0.0)
    w = np.log([[1.0, 3.0], [2.0, 2.0]])  # shares 1/4 and 3/4; 1/2 twice
    # Means of the slopes are 4 and 3: 1/4 (1 - 4), 3/4 (5 - 4), 1/2 (4 - 3), 1/2 (2 - 3).
    assert descent.by_w(slope, w, False) == pytest.approx([-0.75, 0.75, 0.5, -0.5])
    # Of all tensors together: the last row, 3 and 7 with mean 6.
    assert descent.by_w(slope, w[:1], True) == pytest.approx([-0.75, 0.75])


class Mixtures(Made):
    """The anchor's temperature is 4, others' 2; scores are as `right` of a candidate says."""

    def __init__(self, right, nll=lambda c: 0.5):
        super().__init__({"a": 90, "b": 88}, {})
        self._right, self._nll = right, nll

    def measure(self, requests):
        self.asked += requests
        return [self._answer(r) for r in requests]

    def _answer(self, request):
        if isinstance(request, Temperature):
            return 4.0 if request.candidate == mean_of(["anchor"]) else 2.0
        if isinstance(request, Failures):
            return FailureSet(features=REF, size=1000)
        # Of the nearest: all at 2. Of the tenth: 0 to 10, in disorder. Of the hundredth: all at 0.
        return {1: (2.0,) * 11, 10: (3.0, 0.0, *range(10, 3, -1), 2.0, 1.0), 100: (0.0,) * 11}[
            request.k
        ]

    def scores(self, candidates):
        return [replace(scores(self._right(c)), nll=self._nll(c)) for c in candidates]


def single(selection) -> Earlier:
    return Earlier(tuple(BY_NAME["best_single"].run(selection)))


def test_ose_gives_each_model_its_own_temperature_and_its_own_share():
    def right(candidate) -> int:
        """Most where the fine-tuned model has .3 of the outputs."""
        share = dict(zip(candidate.checkpoints, candidate.coefficients, strict=True)).get("a", 0)
        return 90 - round(20 * abs(share - 0.3))

    selection = Mixtures(right)
    logits, probabilities = OSE.run(selection, single(selection))
    a, anchor = mean_of(["a"]), mean_of(["anchor"])
    assert [c.candidate.parts for c in probabilities.trace][::5] == [
        ((anchor, 1, 4.0),),
        ((a, 1, 2.0), (anchor, 3, 4.0)),
        ((a, 1, 2.0), (anchor, 1, 4.0)),
        ((a, 3, 2.0), (anchor, 1, 4.0)),
        ((a, 1, 2.0),),
    ]
    assert probabilities.candidate.parts == ((a, 3, 2.0), (anchor, 7, 4.0))
    assert logits.candidate.parts == ((a, 3, 1.0), (anchor, 7, 1.0))
    assert [o.options["alpha"] for o in (logits, probabilities)] == [0.3, 0.3]
    assert [len(o.trace) for o in (logits, probabilities)] == [21, 21]
    assert [step.accepted for step in logits.trace] == [k == 6 for k in range(21)]


def test_ose_prefers_the_smaller_share_on_a_tie():
    selection = Mixtures(lambda candidate: 80)
    assert [o.options["alpha"] for o in OSE.run(selection, single(selection))] == [0.0, 0.0]


def test_the_fine_tuned_model_alone_is_among_the_choices():
    def right(candidate) -> int:
        """Three for each twentieth of the fine-tuned model."""
        share = dict(zip(candidate.checkpoints, candidate.coefficients, strict=True)).get("a", 0)
        return 10 + round(60 * share)

    selection, a = Mixtures(right), mean_of(["a"])
    earlier = single(selection)
    logits, probabilities = OSE.run(selection, earlier)
    assert logits.candidate.parts == ((a, 1, 1.0),)
    assert probabilities.candidate.parts == ((a, 1, 2.0),)
    assert [o.options["alpha"] for o in (logits, probabilities)] == [1.0, 1.0]
    assert [o.held_out.correct for o in (logits, probabilities)] == [70, 70]
    _, best, within = WISE_FT.run(selection, earlier)
    assert (best.candidate, best.options["alpha"], within.options["alpha"]) == (a, 1.0, 1.0)

    class Deep(Mixtures):
        def _answer(self, request):
            return ("blocks.0.w", "blocks.1.w")

    (found,) = lines.LINES.run(Deep(lambda c: 80 if c == a else 70), earlier)
    assert (found.candidate, found.options["alpha"]) == (a, 1.0)
    (found,) = lines.LINES.run(Deep(lambda c: 70), earlier)  # on a tie the least of theta_1
    assert (found.options["alpha"], found.candidate.numerators()["blocks.0.w"]) == (0.0, (10, 0))


def test_vrf_tries_what_the_distances_say_and_takes_the_best_nll_among_equals():
    def vrf(nll, right=lambda c: 80):
        tried = []

        def counted(candidate) -> int:
            tried.append(candidate)
            return right(candidate)

        selection = Mixtures(counted, nll)
        (outcome,) = VRF.run(selection, single(selection))
        return outcome, tried, selection.asked

    def at(k, a, b, value):
        """`value` for that one alone, else .5."""
        return lambda c: value if (getattr(c, "k", 0), getattr(c, "a", 0)) == (k, a) and (
            c.b == pytest.approx(b)
        ) else 0.5  # fmt: skip

    outcome, tried, asked = vrf(at(10, 7.0, 2.4, 0.25))
    assert [r.k for r in asked if isinstance(r, Distances)] == [1, 10, 100]
    # Of 1000: .001, .01 and .1. Spreads: between equal distances the distance itself, else 1;
    # of 0 to 10 between the 10 % and the 90 % quantile, 8.
    found = [(c.k, c.a, round(c.b, 6)) for c in tried[21:]]
    assert found == [
        *((1, 2.0, b) for b in (0.2, 0.6, 2.0, 6.0)),
        *((10, float(a), b) for a in range(11) for b in (0.8, 2.4, 8.0, 24.0)),
        *((100, 0.0, b) for b in (0.1, 0.3, 1.0, 3.0)),
    ]
    assert all(c.temperatures == (2.0, 4.0) for c in tried[21:])
    assert {(c.fine_tuned, c.reference) for c in tried[21:]} == {
        (mean_of(["a"]), mean_of(["anchor"]))
    }
    assert outcome.candidate == tried[21 + 4 + 7 * 4 + 1]
    assert outcome.options == {"theta_1": "best_single", "failures": 1000, "k": 10, "a": 7.0,
                               "b": outcome.candidate.b}  # fmt: skip
    assert outcome.held_out.nll == 0.25
    assert [(s.candidate, s.result.nll, s.accepted) for s in outcome.trace] == [
        (outcome.candidate, 0.25, True)
    ]
    # Worse calibrated, it is not taken, and of equals the first is: the anchor alone.
    outcome, tried, _ = vrf(at(10, 7.0, 2.4, 0.75))
    assert outcome.candidate == tried[0]
    assert outcome.options["omega"] == 0.0
    # More right answers count for more than a better NLL.
    outcome, tried, _ = vrf(at(10, 7.0, 2.4, 0.25), lambda c: 81 if len(c.members) == 1 else 80)
    assert outcome.options["omega"] == 0.0
    share = 3 / 20
    outcome, tried, _ = vrf(
        at(10, 7.0, 2.4, 0.25), lambda c: 81 if c.coefficients[:1] == (share,) else 80
    )
    assert outcome.options["omega"] == share


def test_a_small_failure_set_has_one_neighbour_at_least_and_none_twice():
    class Small(Mixtures):
        def _answer(self, request):
            if isinstance(request, Failures):
                return FailureSet(features=REF, size=25)
            return (1.0, 2.0) if isinstance(request, Distances) else super()._answer(request)

    selection = Small(lambda candidate: 80)
    VRF.run(selection, single(selection))
    # .025, .25 and 2.5 of 25
    assert [r.k for r in selection.asked if isinstance(r, Distances)] == [1, 2]


def test_a_greedy_ensemble_tries_the_others_one_by_one_and_none_twice():
    class Voted(Made):
        def _correct(self, c):
            name = "".join(sorted(member.checkpoints[0] * n for member, n, _ in c.parts))
            self.asked.append(name)
            return self._singles[name] if name in self._singles else self._table[name]

        def first_reaching(self, candidates, bound, accept):
            for i, candidate in enumerate(candidates):
                found = self.scores([*candidates[:i], candidate])
                if reaches(found[-1], round(bound * N), accept):
                    return Reached(results=tuple(found), hit=True)
            return Reached(results=tuple(found), hit=False)

    table = {"ab": 89, "ac": 90, "acd": 91, "aab": 91, "aac": 91, "aad": 91, "aa": 90}
    selection = Voted({"a": 90, "b": 88, "c": 86, "d": 80}, table)
    (outcome,) = BY_NAME["greedy_ensemble"].run(selection)
    members = [mean_of([sha]) for sha in "acd"]
    assert outcome.candidate.parts == tuple((m, 1, 1.0) for m in members)
    assert outcome.held_out.correct == 91
    assert [step.accepted for step in outcome.trace] == [True, False, True, True]


LAYERED = LayerSoup(checkpoints=("a", "b"), layers=((("x",), (1, 3)),), rest=(2, 2), denominator=4)


def test_a_point_on_the_way_to_a_soup_by_layer_by_hand():
    # 1/4 of the way: 3/4 = 12/16 of the anchor, and numerators over 16.
    assert interpolate(mean_of(["z"]), LAYERED, 1, 4) == LayerSoup(
        checkpoints=("z", "a", "b"),
        layers=((("x",), (12, 1, 3)),),
        rest=(12, 2, 2),
        denominator=16,
    )
    assert interpolate(mean_of(["z"]), LAYERED, 3, 4).layers == ((("x",), (4, 3, 9)),)
    assert interpolate(mean_of(["z"]), LAYERED, 0, 4) == mean_of(["z"])
    assert interpolate(mean_of(["z"]), LAYERED, 4, 4) == LAYERED
    # 1/2 z + 1/2 (a/3 + 2b/3)
    third = weight_soup([("a", 1), ("b", 2)], 3)
    assert interpolate(mean_of(["z"]), third, 2, 4) == weight_soup(
        [("z", 3), ("a", 1), ("b", 2)], 6
    )


def test_lines_to_a_soup_by_layer_by_hand():
    depth = lines.depths(("blocks.0.w", "blocks.3.w", "x", "head.w"))
    assert list(depth.values()) == [(0, 1), (1, 1), (0, 1), (1, 1)]
    # alpha .3 of theta_1 over 10 * 4: 28 of theta_0 where l = 0, none where l = 1.
    assert lines.scaled("z", LAYERED, depth, 3) == LayerSoup(
        checkpoints=("z", "a", "b"),
        layers=(
            (("blocks.0.w",), (28, 6, 6)),
            (("blocks.3.w", "head.w"), (0, 20, 20)),
            (("x",), (28, 3, 9)),
        ),
        rest=(0, 20, 20),
        denominator=40,
    )


def test_the_best_alpha_of_lines_by_hand():
    class Peak(Made):
        """Best where block 0 has .4 of theta_1."""

        def measure(self, requests):
            return [("blocks.0.w", "blocks.1.w")]

        def scores(self, candidates):
            shares = [
                1.0 if c == mean_of(["a"]) else 1 - dict(zip(c.checkpoints, c.numerators()[
                    "blocks.0.w"], strict=True))["anchor"] / c.denominator
                for c in candidates
            ]  # fmt: skip
            return [scores(90 - round(20 * abs(share - 0.4))) for share in shares]

    selection = Peak({"a": 90}, {})
    (found,) = lines.LINES.run(selection, single(selection))
    assert (found.name, found.options) == ("lines(best_single)", {"theta_1": "best_single",
                                                                  "alpha": 0.4})  # fmt: skip
    assert found.held_out.correct == 90
    assert [step.accepted for step in found.trace] == [k == 4 for k in range(11)]
    assert found.trace[10].candidate == mean_of(["a"])


def test_model_stock_by_hand_tensor_by_tensor():
    grams = {
        "half": ((4.0, 2.0), (2.0, 4.0)),  # cos 1/2: t = 2/3
        "same": ((1.0, 1.0), (1.0, 1.0)),
        "none": ((0.0, 0.0), (0.0, 0.0)),
        "apart": ((1.0, -0.5), (-0.5, 1.0)),  # t = -1 / .5
        "as half": ((1.0, 1.0), (1.0, 4.0)),  # lengths 1 and 2
        "opposed": ((1.0, -1.0), (-1.0, 1.0)),  # below 1 + cos = 0
        "a little": ((1.0, -0.2), (-0.2, 1.0)),  # t = -.4 / .8
    }

    class Given(Made):
        def measure(self, requests):
            return [grams]

        def scores(self, candidates):
            self.asked += candidates
            return [scores(50)]

    selection = Given({"a": 90, "b": 88}, {})
    (found,) = model_stock.MODEL_STOCK.run(selection)
    assert found.candidate == LayerSoup(
        checkpoints=("anchor", "a", "b"),
        layers=(
            (("none", "apart", "opposed", "a little"), (2000000, 0, 0)),
            (("half", "as half"), (666666, 666667, 666667)),
            (("same",), (0, 1000000, 1000000)),
        ),
        rest=(2000000, 0, 0),
        denominator=2000000,
    )
    assert selection.asked == [found.candidate]
    assert found.notes == ("model_stock: t clamped to [0, 1] for apart, opposed, a little",)
    alone = Given({"a": 90}, {})
    grams = {"one": ((3.0,),)}
    (found,) = model_stock.MODEL_STOCK.run(alone)
    assert (found.candidate, found.notes) == (mean_of(["a"]), ())
    assert alone.asked == [mean_of(["a"])]
    # The mean cosine of three, of which one has no direction: (1/2 + 0 + 0) / 3.
    three = ((4.0, 2.0, 0.0), (2.0, 4.0, 0.0), (0.0, 0.0, 0.0))
    assert model_stock.ratio(three) == pytest.approx(3 / 6 / (1 + 2 / 6))


def test_a_line_starts_from_the_best_soup_if_it_is_another_model_ties_by_name():
    selection = Made({"a": 90, "b": 88}, {})
    (best,) = BY_NAME["best_single"].run(selection)

    def soup(name: str, members: str, correct: int):
        return replace(best, name=name, recipe="greedy", candidate=mean_of(list(members)),
                       held_out=scores(correct))  # fmt: skip

    def found(*soups):
        return starts(selection, Earlier((best, *soups), soups))

    a, ab = mean_of(["a"]), mean_of(["a", "b"])
    first = ("best_single", a)
    assert found() == [first]
    assert found(soup("x", "ab", 80), soup("y", "b", 79)) == [first, ("x", ab)]
    assert found(soup("x", "b", 80), soup("y", "ab", 81)) == [first, ("y", ab)]
    assert found(soup("y", "b", 80), soup("x", "ab", 80)) == [first, ("x", ab)]
    assert found(soup("x", "a", 90), soup("y", "ab", 89)) == [first]  # the best is that model


@pytest.mark.parametrize(("count", "more"), [(2, ""), (8, ""), (9, ", ...")])
def test_eight_trials_are_named_where_a_theta_1_is_called_by_no_name(count, more):
    names = [f"t{i}" for i in range(count)]
    selection = Made(dict.fromkeys(names, 90), {})
    said = f"and {count} trials' keys begin so. Soups: best_single; ask for others too (--all). "
    said += f"Trials: {', '.join(names[:8])}{more}."
    with pytest.raises(ConfigError, match=re.escape(said) + "$"):
        WISE_FT.run(selection, single(selection), {"theta_1": "t"})


def test_a_random_order_is_that_of_its_seed_and_is_told():
    singles = {"a": 90, "b": 88, "c": 86, "d": 80}
    table = defaultdict(lambda: 0)
    for seed in (3, 4):
        order = list("abcd")
        random.Random(seed).shuffle(order)
        (found,) = GREEDY.run(Made(singles, table), options={"order": "random", "seed": seed})
        assert found.options == {"accept": "ge", "order": "random", "seed": seed}
        assert found.candidate == mean_of(order[:1])
        assert found.held_out.correct == found.trace[0].result.correct == singles[order[0]]
        tried = [step.candidate for step in found.trace]
        assert tried == [mean_of(order[:1]), *(mean_of([order[0], o]) for o in order[1:])]


def test_a_fisher_soup_is_of_the_whole_pool_each_with_its_own_information():
    class Known(Made):
        def measure(self, requests):
            self.asked += [(r.checkpoint, r.samples) for r in requests]
            return [CheckpointRef(sha256=f"fisher of {r.checkpoint}", size_bytes=1)
                    for r in requests]  # fmt: skip

        def scores(self, candidates):
            return [scores(70) for _ in candidates]

    selection = Known({"a": 90, "b": 88}, {})
    (found,) = BY_NAME["fisher"].run(selection, options={"samples": 7})
    assert found.candidate.parts == (("a", "fisher of a", 1), ("b", "fisher of b", 1))
    assert (found.options, found.held_out.correct) == ({"samples": 7}, 70)
    assert selection.asked == [("a", 7), ("b", 7)]


def test_an_ensemble_of_probabilities_has_a_temperature_for_each_model_and_one_of_logits_none():
    class Warm(Made):
        def measure(self, requests):
            return [{"a": 2.0, "b": 3.0}[r.candidate.checkpoints[0]] for r in requests]

        def scores(self, candidates):
            return [scores(70) for _ in candidates]

    a, b = mean_of(["a"]), mean_of(["b"])
    for space, temperatures in (("probabilities", (2.0, 3.0)), ("logits", (1.0, 1.0))):
        selection = Warm({"a": 90, "b": 88}, {})
        (found,) = BY_NAME["ensemble"].run(selection, options={"space": space})
        assert found.candidate.parts == tuple(zip((a, b), (1, 1), temperatures, strict=True))
        assert (found.candidate.denominator, found.candidate.space) == (2, space)
        assert found.options == {"space": space}
        (found,) = BY_NAME["greedy_ensemble"].run(
            selection_of_equals(temperatures), options={"space": space, "accept": "gt"}
        )
        assert found.candidate.parts == ((a, 1, temperatures[0]),)  # equal is not enough
        assert found.options == {"space": space, "accept": "gt"}


def selection_of_equals(temperatures):
    """Two ingredients; whatever is asked is right on 80 of 100."""

    class Equal(Mixtures):
        def first_reaching(self, candidates, bound, accept):
            assert (bound, accept) == (0.8, "gt")
            return Reached(results=tuple(self.scores(candidates)), hit=False)

        def _answer(self, request):
            return temperatures["ab".index(request.candidate.checkpoints[0])]

    return Equal(lambda candidate: 80)


def test_options_that_are_not_there_or_not_allowed_are_told_with_what_is():
    said = {
        ("greedy", "order", "best"): "Allowed: held_out, random.",
        ("greedy", "seed", -1): "Allowed: 0 to 2.14748e+09, whole.",
        ("learned", "lr", 0.0): "Allowed: 1e-05 to 10.",
        ("learned", "epochs", 1001): "Allowed: 1 to 1000, whole.",
        ("wise_ft", "eps", 1.5): "Allowed: 0 to 1.",
        ("wise_ft", "theta_1", ""): "Allowed: text: the name of a soup of this run, or how",
        ("uniform", "x", 1): "has no option 'x'. Its options: none.",
        ("learned", "x", 1): "has no option 'x'. Its options: lr, steps, epochs, batch_size.",
    }
    for (recipe, name, wrong), words in said.items():
        with pytest.raises(ConfigError, match=rf"^x\.yaml: recipe {recipe}.*{re.escape(words)}"):
            BY_NAME[recipe].read({name: wrong}, "x.yaml")


def test_learned_notes_what_it_chose_and_what_machines_without_proc_say(monkeypatch, tmp_path):
    class Flat(Slopes):
        def measure(self, requests):
            if isinstance(requests[0], TensorNames):
                self.asked.append(requests[0])
                return [("x", "y")]
            return super().measure(requests)

        def scores(self, candidates):
            return [scores(60) for _ in candidates]

    selection = Flat({"a": 90, "b": 88}, {})
    (found,) = learned.LEARNED.run(selection, options={"epochs": 1, "batch_size": 100, "lr": 0.1})
    assert found.candidate == mean_of(["a", "b"])
    # One step of Adam is -lr, of log beta: exp(-.1)
    assert found.options == {"epochs": 1, "beta": 0.904837, "loss": 0.123457}
    assert [(s.candidate, s.result.correct, s.accepted) for s in found.trace] == [
        (found.candidate, 60, True)
    ]
    # Three steps of two batches: a pass, and half of the next one, in another order.
    selection = Flat({"a": 90, "b": 88}, {})
    (found,) = learned.LEARNED.run(selection, options={"steps": 3, "batch_size": 50})
    first, second, third = (request.rows for request in selection.asked)
    assert sorted(first + second) == list(range(100))
    assert len(third) == 50
    assert third not in (first, second)
    assert found.options["steps"] == 3
    assert "epochs" not in found.options
    selection = Flat({"a": 90, "b": 88}, {})
    (found,) = learned.LEARNED_BY_LAYER.run(selection, options={"epochs": 1, "batch_size": 100})
    assert selection.asked[0].checkpoint == "a"
    assert found.candidate.layers == ((("x",), (500000,) * 2), (("y",), (500000,) * 2))
    said = tmp_path / "meminfo"
    monkeypatch.setattr(learned, "Path", lambda path: said)
    assert learned.available_memory() == 0
    said.write_text("MemTotal: 9 kB\n")
    assert learned.available_memory() == 0
    said.write_text("MemTotal: 9 kB\nMemAvailable:   3 kB\n")
    assert learned.available_memory() == 3072


def test_what_every_recipe_costs_for_four_ingredients_and_a_hundred_samples():
    """(decided, scored, models, passes over train, single training samples, files, mixtures)."""
    by_hand = {
        "anchor": (0, 1, 1, 0, 0, 0, 0),
        "best_single": (0, 0, 0, 0, 0, 0, 0),
        "update_bn": (0, 5, 2, 0, 0, 0, 5),  # the ingredients and the anchor
        "uniform": (0, 1, 1, 0, 0, 0, 1),
        "greedy": (3, 1, 1, 0, 0, 0, 3),
        "replacement": (12, 1, 1, 0, 0, 0, 12),  # three passes
        "pruned": (4, 2, 1, 0, 0, 0, 5),
        "proxy": (0, 1, 1, 0, 0, 0, 1),
        "greedy_similar": (3, 1, 1, 0, 0, 0, 3),
        "slerp": (0, 9, 1, 0, 0, 0, 9),  # the end points are scored already
        "soce": (0, 37, 1, 0, 0, 0, 37),  # (9 over 2) ways to write 10 as three, and the mean
        "learned": (500, 1, 1, 0, 0, 0, 501),  # a step takes all samples
        "learned_by_layer": (500, 1, 1, 0, 0, 0, 501),
        "learned_signed": (100, 1, 1, 0, 0, 0, 101),
        "cma_es": (0, 101, 1, 0, 0, 0, 101),  # and the mean, from which it starts
        "fisher": (0, 1, 1, 0, 400, 4, 1),  # a hundred samples each
        "model_stock": (0, 1, 1, 0, 0, 0, 1),
        "task_arithmetic": (0, 12, 1, 0, 0, 0, 12),
        "ties": (0, 12, 1, 0, 0, 0, 12),
        "dare": (0, 12, 1, 0, 0, 0, 12),
        # Two lines: 19 inner points, and five to draw of which one is no mixture.
        "wise_ft": (0, 38, 10, 0, 0, 0, 46),
        "lines": (0, 20, 2, 0, 0, 0, 20),
        "ensemble": (0, 0, 0, 0, 0, 0, 0),
        "greedy_ensemble": (0, 0, 0, 0, 0, 0, 0),
        "ose": (0, 0, 0, 0, 0, 0, 0),
        "vrf": (6, 0, 0, 5, 0, 0, 0),
        "dawin": (0, 0, 0, 0, 0, 0, 0),
    }
    pool = PoolSize(k=4, held_out=100)
    assert {r.name: tuple(r.cost(pool, r.options())) for r in RECIPES} == by_hand
    none = {name: {} for name in by_hand}
    assert tuple(total_cost(pool, none)) == tuple(map(sum, zip(*by_hand.values(), strict=True)))

    def cost(name, k=4, **options):
        recipe = BY_NAME[name]
        return tuple(recipe.cost(PoolSize(k, 100), recipe.read(options, "x.yaml")))

    assert cost("greedy", k=0)[0] == 0
    assert cost("greedy", k=1)[0] == 0
    assert cost("learned", epochs=3, batch_size=30) == (3, 1, 1, 0, 0, 0, 13)  # four steps each
    assert cost("learned", steps=9, batch_size=30) == (3, 1, 1, 0, 0, 0, 10)  # 2.25 passes
    # One line; 0 and 1 are its end points.
    assert cost("wise_ft", theta_1="a", alphas=[0, 0.25, 0.5, 1]) == (0, 2, 5, 0, 0, 0, 6)


def test_a_learned_soup_of_old_is_not_taken_for_one_of_five_hundred_steps():
    for recipe in (learned.LEARNED, learned.LEARNED_BY_LAYER):
        assert recipe.complete({}) == {"steps": 500}
        assert recipe.complete({"lr": 0.1}) == {"steps": 500, "lr": 0.1}
        assert recipe.complete({"steps": 7}) == {"steps": 7}
        assert recipe.complete({"epochs": 5}) == {"epochs": 5}  # as it was recorded then
    assert BY_NAME["greedy"].complete({"accept": "gt"}) == {"accept": "gt"}


def test_the_defaults_of_all_options_and_who_has_a_colour_of_its_own():
    given = {r.name: structs.asdict(r.options()) for r in RECIPES}
    steps = {"lr": 0.05, "steps": 500, "epochs": None, "batch_size": 256}
    assert {name: options for name, options in given.items() if options} == {
        "greedy": {"accept": "ge", "order": "held_out", "seed": 0},
        "replacement": {"passes": 3},
        "greedy_similar": {"least": None, "most": 0.999, "accept": "ge"},
        "learned": steps,
        "learned_by_layer": steps,
        "learned_signed": {**steps, "lr": 0.01, "steps": 100},
        "cma_es": {"evaluations": 100, "members": 4, "seed": 0},
        "soce": {"correlated": 0.5},
        "fisher": {"samples": 100},
        "ties": {"keep": 0.2},
        "dare": {"drop": 0.9, "seed": 0},
        "wise_ft": {"alphas": None, "eps": 0.01, "theta_1": None, "dial": None},
        "ensemble": {"space": "logits"},
        "greedy_ensemble": {"accept": "ge", "space": "logits"},
        "ose": {"dial": None},
    }
    own = {r.name for r in RECIPES if r.style.own}
    assert own == {"anchor", "best_single", "uniform", "greedy"}


def test_all_leaves_out_what_is_costly_or_for_studies():
    left = {r.name for r in RECIPES if not r.with_all}
    assert left == {"learned_signed", "cma_es", "soce", "task_arithmetic", "ties", "dare"}
    spec = demo()  # it lists uniform, greedy and wise_ft
    kept = {r.name for r in RECIPES if r.kind != "baseline"} - left
    assert set(chosen_recipes([spec], [], everything=True)) == kept
    assert set(chosen_recipes([spec], ["ties"], everything=True)) == kept | {"ties"}
    listed = spec.model_copy(update={"recipes": {"dare": {"drop": 0.5}}})
    chosen = chosen_recipes([listed], [], everything=True)
    assert set(chosen) == kept | {"dare"}
    assert chosen["dare"] == {"drop": 0.5}


def test_every_recipe_says_what_it_is():
    assert [r.name for r in RECIPES] == list(BY_NAME)
    for recipe in RECIPES:
        assert recipe.paper
        assert recipe.costs
        assert recipe.summary
        assert recipe.style.label
        assert recipe.options() == recipe.read({}, "x.yaml")
