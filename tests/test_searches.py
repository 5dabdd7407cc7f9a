"""Searches among many candidates: proxy, greedy_similar, dawin, soce, cma_es, learned_signed."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from test_recipes import Made, Mixtures, scores, single

from soupray.core.blocks import by_block
from soupray.core.candidates import EntropyEnsemble, LayerSoup, mean_of, weight_soup
from soupray.core.requests import Gram, Temperature, TensorNames
from soupray.recipes import BY_NAME, run_recipes, signed, soce
from soupray.recipes.similar import cosine, total, typical
from soupray.recipes.starts import Single
from soupray.testing.linear import toy, truth


class Losses(Made):
    """Scores by the members of an ensemble or a soup; the NLL is a table, all counts are equal."""

    def __init__(self, losses: dict[str, float]):
        super().__init__({name: 80 for name in losses if len(name) == 1}, {})
        self._losses = losses
        kept = [
            replace(i, held_out=replace(i.held_out, nll=losses[i.trial.key]))
            for i in self.pool.ingredients
        ]
        self.pool = replace(self.pool, ingredients=tuple(kept))

    def scores(self, candidates):
        self.asked += candidates
        names = ["".join(sorted(c.checkpoints)) for c in candidates]
        return [replace(scores(80), nll=self._losses[name]) for name in names]


def test_proxy_is_greedy_on_the_loss_of_averaged_logits_and_evaluates_one_soup():
    # b is the best; with a it is worse, with c equal, with c and d better.
    losses = {"a": 0.5, "b": 0.4, "c": 0.6, "d": 0.9, "ab": 0.41, "bc": 0.4, "bcd": 0.3}
    selection = Losses(losses)
    (found,) = BY_NAME["proxy"].run(selection)
    assert found.candidate == mean_of(["b", "c", "d"])
    assert found.options == {"ensemble_nll": 0.3}
    assert [step.accepted for step in found.trace] == [True, False, True, True]
    *ensembles, soup = selection.asked
    assert soup == found.candidate
    b, a = mean_of(["b"]), mean_of(["a"])
    assert ensembles[0].parts == ((b, 1, 1.0), (a, 1, 1.0))
    assert all(e.space == "logits" for e in ensembles)


def test_the_proxy_of_linear_models_is_the_loss_of_the_soup_for_one_forward_pass(
    tmp_path, monkeypatch
):
    world = toy(tmp_path, 6)
    loaded = []
    evaluate = world.workers.evaluate

    def counted(candidates, splits, done):
        loaded.extend(candidates)
        evaluate(candidates, splits, done)

    monkeypatch.setattr(world.workers, "evaluate", counted)
    (found,) = run_recipes(world.selection(), {"proxy": {}})
    assert loaded == [found.candidate]
    assert len(found.candidate.checkpoints) > 1
    assert found.held_out.nll == pytest.approx(found.options["ensemble_nll"], abs=1e-6)
    assert found.held_out.nll <= min(i.held_out.nll for i in world.pool.ingredients)


GRAM = (
    (4.0, 2.0, 0.0, 3.9),
    (2.0, 4.0, 1.0, 0.0),
    (0.0, 1.0, 1.0, 0.0),
    (3.9, 0.0, 0.0, 4.0),
)


def test_cosines_between_updates_by_hand():
    assert cosine(GRAM, [0], 1) == 0.5
    # Of the sum of 0 and 1, whose square is 4 + 2 + 2 + 4, with 2: 1 / sqrt(12).
    assert cosine(GRAM, [0, 1], 2) == pytest.approx(12**-0.5)
    assert cosine(((0.0, 0.0), (0.0, 1.0)), [0], 1) == 0.0
    # Pairs: .5, 0, .975, .5, 0, 0
    assert typical(GRAM) == 0.25
    assert typical(((4.0,),)) == -1.0
    half = tuple(tuple(x / 2 for x in row) for row in GRAM)
    assert total({"x": half, "y": half}) == GRAM


class Angles(Made):
    """A table of scores, and the Gram matrix above in two halves."""

    def measure(self, requests):
        assert requests == [Gram(checkpoints=tuple("abcd"), origin="anchor")]
        half = tuple(tuple(x / 2 for x in row) for row in GRAM)
        return [{"x": half, "y": half}]


def test_greedy_similar_tries_what_is_near_the_soup_of_its_turn():
    table = {"ab": 91, "abc": 92, "abd": 91, "abcd": 80, "ad": 99}
    selection = Angles({"a": 90, "b": 88, "c": 86, "d": 80}, table)
    (found,) = BY_NAME["greedy_similar"].run(selection, options={"most": 0.9})
    # c has no cosine with a, but 1 / sqrt(12) = .289 with a + b, more than the median .25. d has
    # .975 with a, and 3.9 / sqrt(12 * 4) = .563 with a + b, .541 with a + b + c.
    assert selection.asked == ["ab", "abc", "abcd"]
    assert found.candidate == mean_of(["a", "b", "c"])
    assert found.options == {"least": 0.25, "most": 0.9, "accept": "ge"}
    assert [step.accepted for step in found.trace] == [True, True, True, False]


def test_greedy_similar_without_a_filter_is_greedy():
    table = {"ab": 89, "ac": 90, "acd": 91}
    singles = {"a": 90, "b": 88, "c": 86, "d": 80}
    (plain,) = BY_NAME["greedy"].run(Made(singles, table))
    selection = Angles(singles, table)
    options = {"least": -1.0, "most": 1.0}
    (found,) = BY_NAME["greedy_similar"].run(selection, options=options)
    assert (found.candidate, found.trace) == (plain.candidate, plain.trace)
    (alone,) = BY_NAME["greedy_similar"].run(Angles(singles, table), options={"least": 1.0})
    assert alone.candidate == mean_of(["a"])


def test_dawin_mixes_the_anchor_and_the_fine_tuned_model_each_with_its_temperature():
    selection = Mixtures(lambda candidate: 70)
    (found,) = BY_NAME["dawin"].run(selection, single(selection))
    a, anchor = mean_of(["a"]), mean_of(["anchor"])
    assert found.candidate == EntropyEnsemble(parts=((a, 2.0), (anchor, 4.0)))
    assert (found.name, found.held_out.correct) == ("dawin(best_single)", 70)
    assert selection.asked == [Temperature(candidate=a), Temperature(candidate=anchor)]
    assert found.candidate.checkpoints == ("a", "anchor")
    assert found.candidate.coefficients == ()


def test_tensors_are_grouped_by_block_by_hand():
    names = ("a.blocks.1.w", "a.blocks.0.w", "head.w", "stem", "a.blocks.0.b", "z")
    assert by_block(names) == [
        ("stem", "z"),
        ("a.blocks.0.w", "a.blocks.0.b"),
        ("a.blocks.1.w",),
        ("head.w",),
    ]
    assert by_block(("head.w",)) == [("head.w",)]


class Bowl(Made):
    """The loss is the square of the distance of the first model's shares from .9 and .1."""

    def measure(self, requests):
        assert requests == [TensorNames(checkpoint="a")]
        return [("blocks.0.w", "head.w")]

    def scores(self, candidates):
        self.asked += candidates
        return [replace(scores(50), nll=self._loss(c)) for c in candidates]

    def _loss(self, candidate) -> float:
        if not isinstance(candidate, LayerSoup):
            return 1.0
        first, head = (row[0] / candidate.denominator for _, row in candidate.layers)
        return (first - 0.9) ** 2 + (head - 0.1) ** 2


def test_cma_es_finds_the_bottom_of_a_bowl_within_its_evaluations():
    selection = Bowl({"a": 90, "b": 88, "c": 86, "d": 80}, {})
    options = {"evaluations": 200, "members": 3}
    (found,) = BY_NAME["cma_es"].run(selection, options=options)
    # Two blocks of three models: 4 + floor(3 log 6) = 9 candidates a generation, 22 generations.
    assert found.options == {"evaluations": 1 + 198, "members": 3, "seed": 0}
    assert len(selection.asked) == 199
    assert selection.asked[0] == mean_of(["a", "b", "c"])
    assert found.held_out.nll == min(step.result.nll for step in found.trace) < 1e-3
    assert found.candidate.checkpoints == ("a", "b", "c")
    assert found.candidate.coefficients[0] == pytest.approx(0.5, abs=0.03)
    accepted = [step.result.nll for step in found.trace if step.accepted]
    assert accepted == sorted(accepted, reverse=True)
    again = Bowl({"a": 90, "b": 88, "c": 86, "d": 80}, {})
    assert BY_NAME["cma_es"].run(again, options=options) == [found]
    (other,) = BY_NAME["cma_es"].run(again, options={**options, "seed": 1})
    assert other.candidate != found.candidate


def test_cma_es_keeps_the_mean_where_nothing_is_better_and_one_model_as_it_is():
    class Flat(Bowl):
        def _loss(self, candidate) -> float:
            return 1.0

    (found,) = BY_NAME["cma_es"].run(Flat({"a": 90, "b": 88}, {}), options={"evaluations": 10})
    assert found.candidate == mean_of(["a", "b"])
    assert [step.accepted for step in found.trace] == [True, False]
    assert found.notes == ()
    (few,) = BY_NAME["cma_es"].run(Flat({"a": 90, "b": 88}, {}), options={"evaluations": 5})
    assert few.candidate == mean_of(["a", "b"])
    assert few.notes == (
        "cma_es: evaluations = 5 is less than one generation of 8 candidates: it is the mean of "
        "its members",
    )
    (alone,) = BY_NAME["cma_es"].run(Flat({"a": 90}, {}))
    assert (alone.candidate, len(alone.trace)) == (mean_of(["a"]), 1)


def by_class(*rights: int, there: int = 10):
    total = len(rights) * there
    made = scores(sum(rights), total)
    return replace(made, by_class=tuple((there, there, r) for r in rights))


def known(**rows) -> list[Single]:
    return [Single(mean_of([name]), row) for name, row in rows.items()]


def test_groups_of_classes_by_hand():
    # Over three models, classes 0 and 1 go up and down together, 2 the other way, 3 says nothing;
    # 4 has the deviations 1, 1, -2 against 1, 0, -1 of class 0: r = 3 / sqrt(12) = .866.
    rows = [by_class(9, 8, 1, 5, 6), by_class(8, 7, 2, 5, 6), by_class(7, 6, 3, 5, 3)]
    assert soce.groups(rows, 0.5) == [[0, 1, 4], [2]]
    assert soce.groups(rows, 0.9) == [[0, 1], [2], [4]]
    assert soce.pearson([1.0, 0.0, -1.0], [1.0, 1.0, -2.0]) == pytest.approx(3 / 12**0.5)


def test_experts_are_the_best_of_each_group_the_largest_groups_first():
    rows = known(a=by_class(9, 8, 1, 5, 6), b=by_class(8, 7, 2, 5, 6), c=by_class(7, 6, 3, 5, 3))
    assert [e.checkpoint for e in soce.experts(rows, 0.5)] == ["a", "c"]
    alike = known(a=by_class(5, 5), b=by_class(5, 5))
    assert [e.checkpoint for e in soce.experts(alike, 0.5)] == ["a"]
    without = known(a=scores(90), b=scores(80))  # no counts by class
    assert [e.checkpoint for e in soce.experts(without, 0.5)] == ["a"]


class Experts(Made):
    """Two experts; the scores are by the share of the first."""

    def __init__(self, rows, right):
        super().__init__(dict.fromkeys(rows, 0), {})
        kept = [replace(i, held_out=rows[i.trial.key]) for i in self.pool.ingredients]
        self.pool = replace(self.pool, ingredients=tuple(kept))
        self._right = right

    def scores(self, candidates):
        self.asked += candidates
        return [scores(self._right(c)) for c in candidates]


def test_soce_tries_all_tenths_and_prefers_the_mean_on_a_tie():
    rows = {"a": by_class(9, 1), "b": by_class(1, 9), "c": by_class(2, 2)}
    best = weight_soup([("a", 3), ("b", 7)], 10)
    selection = Experts(rows, lambda c: 60 if c == best else 50)
    (found,) = BY_NAME["soce"].run(selection)
    assert found.candidate == best
    assert found.options == {"correlated": 0.5, "experts": 2}
    assert len(selection.asked) == 9  # 5 / 10 is the mean
    (flat,) = BY_NAME["soce"].run(Experts(rows, lambda c: 50))
    assert flat.candidate == mean_of(["a", "b"])
    three = {"a": by_class(9, 1, 1), "b": by_class(1, 9, 1), "c": by_class(1, 1, 9)}
    selection = Experts(three, lambda c: 50)
    (found,) = BY_NAME["soce"].run(selection)
    assert (found.options["experts"], len(selection.asked)) == (3, soce.POINTS)
    one = {"a": by_class(9, 9), "b": by_class(1, 1)}
    (alone,) = BY_NAME["soce"].run(Experts(one, lambda c: 50))
    assert alone.candidate == mean_of(["a"])
    assert alone.notes == (
        "soce: one ingredient is the expert for all groups of classes: it is the soup",
    )


def random_vectors(k: int, size: int) -> np.ndarray:
    return np.random.default_rng(6).normal(size=(k, size))


def test_distances_from_the_mean_come_from_inner_products_around_any_origin():
    models = random_vectors(5, 40)
    for origin in (np.zeros(40), random_vectors(6, 40)[5]):
        delta = models - origin
        parts = {"x": delta[:, :25], "y": delta[:, 25:]}
        grams = {n: tuple(map(tuple, (d @ d.T).tolist())) for n, d in parts.items()}
        expected = np.linalg.norm(models - models.mean(0), axis=1)
        assert signed.distances(grams, ("x", "y", "no gradient")) == pytest.approx(expected)
        own = np.linalg.norm((models - models.mean(0))[:, :25], axis=1)
        assert signed.distances(grams, ("x",)) == pytest.approx(own)
    assert signed.distances(grams, ("no gradient",)).tolist() == [0.0] * 5
    equal = tuple(map(tuple, np.full((3, 3), 7.7).tolist()))
    assert signed.distances({"x": equal}, ("x",)).tolist() == [0.0] * 3


def test_signed_shares_are_the_paper_s_hyperplane_on_random_vectors():
    models = random_vectors(4, 30)
    x = 8 * random_vectors(7, 4)[6]
    centre = models.mean(0)
    unit = (models - centre) / np.linalg.norm(models - centre, axis=1, keepdims=True)
    published = centre + x @ unit
    lengths = np.linalg.norm(models - centre, axis=1)[None]
    shares = signed.shares_of(x[None], lengths)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() < 0
    assert (shares @ models)[0] == pytest.approx(published)
    # The gradient by x is the projection of the gradient by the weights, P grad in the code.
    gradient = random_vectors(9, 30)[8]
    by_shares = (models @ gradient)[None]
    assert signed.by_x(by_shares, lengths)[0] == pytest.approx(unit @ gradient)


def test_a_signed_soup_goes_beyond_the_models_and_a_learned_one_cannot(tmp_path):
    # The labels follow the truth. Of models with .4 and .5 of it, the best mean is the second one.
    world = toy(tmp_path, [truth() * 0.4, truth() * 0.5])
    options = {"steps": 60, "lr": 0.05}
    wanted = {"best_single": {}, "learned_by_layer": {"steps": 60}, "learned_signed": options}
    single, learned, found = run_recipes(world.selection(), wanted)
    shares = dict(zip(found.candidate.checkpoints, found.candidate.coefficients, strict=True))
    large = min(world.pool.ingredients, key=lambda i: i.held_out.nll).checkpoint.sha256
    assert shares.pop(large) > 2
    assert min(shares.values()) < -1
    losses = [o.held_out.nll for o in (found, learned, single)]
    assert losses[0] < losses[1] - 0.02
    assert losses[1] >= min(i.held_out.nll for i in world.pool.ingredients) - 1e-6
    assert found.options["steps"] == 60
    assert found.trace[0].candidate == found.candidate


def test_a_signed_soup_of_equal_models_stays_where_it_is(tmp_path):
    world = toy(tmp_path, [truth()] * 3)
    (found,) = run_recipes(world.selection(), {"learned_signed": {"steps": 3}})
    assert torch.equal(world.weights(found.candidate)["head.weight"], truth())
    assert found.candidate.layers[0][1] == (333334, 333333, 333333)
