"""Recipes on made-up score tables: no tensor, no store, decisions known beforehand."""

import os
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from soupray.core.blocks import BLOCK_NUMBER
from soupray.core.candidates import QUANTUM, WeightSoup, mean_of, quantised, weight_soup
from soupray.core.errors import ConfigError
from soupray.core.ports import Reached
from soupray.core.records import (
    CheckpointRef,
    Ingredient,
    Pool,
    Rejected,
    Scores,
    Setting,
    Trial,
    pack_right,
)
from soupray.core.requests import Slope, TensorNames
from soupray.evaluation.evaluator import reaches
from soupray.recipes import BY_NAME, RECIPES, learned, lines, model_stock, run_recipes
from soupray.recipes.greedy import GREEDY
from soupray.recipes.pruned import PRUNED
from soupray.recipes.recipe import Earlier
from soupray.recipes.replacement import REPLACEMENT
from soupray.recipes.wise_ft import ALPHAS, WISE_FT, grid_of
from soupray.reporting.plots import line_candidates

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
    (line,) = line_candidates([*earlier.outcomes, *outcomes], selection.pool).values()
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


def test_every_recipe_says_what_it_is():
    assert [r.name for r in RECIPES] == list(BY_NAME)
    for recipe in RECIPES:
        assert recipe.paper
        assert recipe.costs
        assert recipe.summary
        assert recipe.style.label
        assert recipe.options() == recipe.read({}, "x.yaml")
