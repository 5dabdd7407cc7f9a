"""Searches among many candidates on made-up tables: proxy, greedy_similar and dawin."""

import pytest
from msgspec.structs import replace
from test_recipes import Made, Mixtures, scores, single

from soupray.core.candidates import EntropyEnsemble, mean_of
from soupray.core.requests import Gram, Temperature
from soupray.recipes import BY_NAME, run_recipes
from soupray.recipes.similar import cosine, total, typical
from soupray.testing.linear import toy


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
