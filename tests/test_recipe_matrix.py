"""Every recipe on every kind of pool, with the real evaluator on linear models.

For models that are linear in their weights, averaging weights is averaging logits: each result is
checked against the other way of computing it.
"""

import numpy as np
import pytest
import torch

from soupray.core.candidates import (
    EntropyEnsemble,
    OutputCandidate,
    OutputEnsemble,
    VRFEnsemble,
    WeightSoup,
    mean_of,
)
from soupray.core.errors import EvaluationError
from soupray.evaluation.schedule import Answer
from soupray.evaluation.selection import HeldOutSelection
from soupray.inference.predictor import ModelSource, Predictor
from soupray.recipes import BY_NAME, run_recipes
from soupray.reporting.recipe_file import RecipeFile, weights_of
from soupray.testing.linear import Toy, toy, truth

RECIPES = list(BY_NAME)
SHORT = {name: {"steps": 12} for name in ("learned", "learned_by_layer", "learned_signed")}
SHORT["cma_es"] = {"evaluations": 30}
WANTED = {name: SHORT.get(name, {}) for name in RECIPES}
SOUPS = [
    *("uniform", "greedy", "replacement", "pruned", "proxy", "greedy_similar"),
    *("soce", "learned", "learned_by_layer", "learned_signed", "cma_es", "fisher"),
]


def equal_models(k: int) -> list[torch.Tensor]:
    one = truth() + 0.1 * torch.randn(truth().shape, generator=torch.Generator().manual_seed(7))
    return [one] * k


def with_a_trial_that_learnt_nothing() -> list[torch.Tensor]:
    return [truth() * 0.3, truth(), truth() * 1.2]


POOLS = {
    "six": lambda: 6,
    "one": lambda: 1,
    "two": lambda: 2,
    "equal": lambda: equal_models(7),
    "init": lambda: [truth() * 0.3] * 3,  # nothing was learnt: every trial is theta_0
    "one_unchanged": with_a_trial_that_learnt_nothing,
    "with_a_bad_one": lambda: [truth(), truth() * 1.1, -4 * truth()],
}


@pytest.fixture(scope="module", params=POOLS)
def case(request, tmp_path_factory) -> tuple[str, Toy, dict]:
    """(name, world, outcomes by name) with all recipes run."""
    world = toy(tmp_path_factory.mktemp(request.param), POOLS[request.param]())
    outcomes = run_recipes(world.selection(), WANTED)
    return request.param, world, {o.name: o for o in outcomes}


def of(outcomes: dict, recipe: str) -> list:
    return [o for o in outcomes.values() if o.recipe == recipe]


def full_logits(world: Toy, candidate, split="held_out") -> np.ndarray:
    return world.evaluator.predictions(candidate, world.basis.split(split)).logits


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_score_is_that_of_the_candidate_on_held_out_data(case, recipe):
    _, world, outcomes = case
    found = of(outcomes, recipe)
    assert bool(found) == (recipe != "update_bn")  # without BatchNorm, it has nothing to do
    labels = world.data.samples(world.basis.split("held_out"))[1]
    for outcome in found:
        right = full_logits(world, outcome.candidate).argmax(axis=1) == labels
        assert outcome.held_out.correct == right.sum()
        assert (outcome.held_out.right_mask() == right).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_coefficients_sum_to_one_and_belong_to_checkpoints(case, recipe):
    _, world, outcomes = case
    known = {*world.pool.checkpoints, world.pool.anchor.sha256}
    for outcome in of(outcomes, recipe):
        candidate = outcome.candidate
        assert set(candidate.checkpoints) <= known
        if not isinstance(candidate, VRFEnsemble | EntropyEnsemble):
            assert sum(candidate.coefficients) == pytest.approx(1)
            assert len(candidate.coefficients) == len(candidate.checkpoints)


@pytest.mark.parametrize("recipe", SOUPS)
def test_averaging_weights_is_averaging_logits_for_linear_models(case, recipe):
    name, world, outcomes = case
    for outcome in of(outcomes, recipe):
        if recipe == "fisher" and name in ("six", "two", "one_unchanged", "with_a_bad_one"):
            continue  # its coefficients differ from element to element
        c = outcome.candidate
        singles = [full_logits(world, mean_of([sha])).astype(float) for sha in c.checkpoints]
        mixed = sum(a * logits for a, logits in zip(c.coefficients, singles, strict=True))
        assert np.allclose(full_logits(world, c), mixed, atol=1e-5)


@pytest.mark.parametrize("case", ["one", "equal", "init"], indirect=True)
@pytest.mark.parametrize("recipe", [*SOUPS, "slerp", "model_stock", "wise_ft", "lines"])
def test_a_pool_of_equal_models_gives_that_model_bit_for_bit(case, recipe):
    _, world, outcomes = case
    single = world.weights(mean_of([world.pool.checkpoints[0]]))["head.weight"]
    anchor = world.weights(mean_of([world.pool.anchor.sha256]))["head.weight"]
    for outcome in of(outcomes, recipe):
        alpha, name = outcome.options.get("alpha", 1.0), outcome.options.get("theta_1")
        # A line may end at a multiple of that model: at the soup of task_arithmetic.
        end = world.weights(outcomes[name].candidate)["head.weight"] if name else single
        made = world.weights(outcome.candidate)["head.weight"]
        if recipe == "wise_ft":
            expected = ((1 - alpha) * anchor.double() + alpha * end.double()).float()
            assert torch.allclose(made, expected, atol=1e-6)
            assert 0 < alpha < 1 or torch.equal(made, end if alpha else anchor)
        else:
            assert torch.equal(made, end)


def test_nothing_that_selects_on_held_out_data_is_below_what_it_starts_from(case):
    _, _, outcomes = case
    best = outcomes["best_single"].held_out.correct
    for name in ("greedy", "replacement", "greedy_similar", "slerp", "greedy_ensemble"):
        assert outcomes[name].held_out.correct >= best
    assert outcomes["pruned"].held_out.correct >= outcomes["uniform"].held_out.correct
    for outcome in [*of(outcomes, "wise_ft"), *of(outcomes, "ose"), *of(outcomes, "vrf")]:
        if outcome.options.get("point", "best") == "best":
            anchor, start = of(outcomes, "anchor")[0], outcomes[outcome.options["theta_1"]]
            assert outcome.held_out.correct >= max(anchor.held_out.correct, start.held_out.correct)


def test_vrf_is_never_below_the_ensemble_with_a_constant_share(case):
    _, _, outcomes = case
    for outcome in of(outcomes, "vrf"):
        name = outcome.options["theta_1"]
        assert outcome.held_out.correct >= outcomes[f"ose({name}, probs)"].held_out.correct


def test_vrf_of_a_model_that_learnt_nothing_says_so_and_takes_a_constant_omega(tmp_path):
    world = toy(tmp_path, POOLS["init"]())
    found = run_recipes(world.selection(), {"best_single": {}, "vrf": {}})
    (outcome,) = [o for o in found if o.recipe == "vrf"]
    assert outcome.notes == (
        "vrf(best_single): the zero-shot failure set is empty (no training sample that the model "
        "gets right and the anchor wrong): omega is constant",
    )
    assert isinstance(outcome.candidate, OutputEnsemble)
    assert outcome.options.keys() == {"theta_1", "failures", "omega"}
    assert outcome.options["failures"] == 0


def test_the_uniform_soup_of_linear_models_is_right_where_their_ensemble_is(case):
    _, _, outcomes = case
    assert outcomes["uniform"].held_out.right == outcomes["ensemble"].held_out.right


def test_wise_ft_of_linear_models_is_the_ensemble_of_logits_with_the_same_alpha(case):
    _, _, outcomes = case
    for outcome in of(outcomes, "ose"):
        if outcome.options["space"] != "logits":
            continue
        start = outcomes[outcome.options["theta_1"]]
        wise = outcomes[f"wise_ft({start.name}, best)"]
        assert wise.options["alpha"] == outcome.options["alpha"]
        assert wise.held_out.correct == outcome.held_out.correct


def test_only_ensembles_cost_more_than_one_forward_pass(case):
    _, world, outcomes = case
    k = len(set(world.pool.checkpoints))
    for outcome in outcomes.values():
        passes = len(outcome.candidate.members)
        if outcome.recipe == "ensemble":
            assert passes == k
        elif not isinstance(outcome.candidate, OutputCandidate):
            assert passes == 1
        elif outcome.recipe in ("ose", "vrf", "dawin"):
            assert passes <= 2


def test_a_bad_ingredient_is_kept_out_by_what_looks_at_held_out_data(tmp_path):
    world = toy(tmp_path, POOLS["with_a_bad_one"]())
    bad = world.pool.checkpoints[-1]
    wanted = ["best_single", "greedy", "pruned", "greedy_ensemble", "learned"]
    outcomes = run_recipes(world.selection(), {name: SHORT.get(name, {}) for name in wanted})
    by_name = {o.name: o for o in outcomes}
    assert bad not in by_name["greedy"].candidate.checkpoints
    assert bad not in by_name["pruned"].candidate.checkpoints
    assert bad not in by_name["greedy_ensemble"].candidate.checkpoints
    learned = by_name["learned"].candidate
    assert isinstance(learned, WeightSoup)
    shares = dict(zip(learned.checkpoints, learned.coefficients, strict=True))
    assert shares[bad] == min(shares.values())


def test_running_again_asks_the_workers_for_nothing(tmp_path, monkeypatch):
    world = toy(tmp_path)
    wanted = WANTED
    first = run_recipes(world.selection(), wanted)

    def refuse(*arguments, **more):
        raise AssertionError("a forward pass, or a gradient")

    monkeypatch.setattr(world.workers.live, "load", refuse)
    assert run_recipes(world.selection(), wanted) == first


def test_a_learned_soup_that_was_cut_short_goes_on_where_it_was(tmp_path, monkeypatch):
    wanted = {"learned": {"epochs": 3, "batch_size": 30}}  # of 90 samples: nine steps
    expected = run_recipes(toy(tmp_path / "a", 3).selection(), wanted)
    world, steps = toy(tmp_path / "b", 3), []
    measure = world.workers.measure

    def mortal(requests, split):
        steps.extend(requests)
        if len(steps) == 5:
            raise EvaluationError("killed")
        return measure(requests, split)

    monkeypatch.setattr(world.workers, "measure", mortal)
    with pytest.raises(EvaluationError, match="killed"):
        run_recipes(world.selection(), wanted)
    assert run_recipes(world.selection(), wanted) == expected
    assert len(steps) == 5 + 5  # four were kept
    with_another = run_recipes(world.selection(), {"uniform": {}, **wanted})
    assert with_another[1:] == expected
    assert len(steps) == 5 + 5


def test_in_bfloat16_what_is_loaded_is_what_was_evaluated(tmp_path):
    # All of test is one batch: its shape changes low bits, of which bfloat16 has few.
    world = toy(tmp_path, batch_size=70, precision="bf16")
    outcomes = run_recipes(world.selection(), WANTED)
    assert any(isinstance(o.candidate, VRFEnsemble) for o in outcomes)
    images = np.array(world.data.samples(world.basis.split("test"))[0])
    for outcome in outcomes:
        recipe = RecipeFile(
            name=outcome.name,
            recipe=outcome.recipe,
            options={},
            candidate=outcome.candidate,
            ingredients={},
            statistics={},
            sha256=None,
            spec={},
        )
        source = ModelSource(
            world.task,
            lambda member, recipe=recipe: weights_of(member, recipe, world.checkpoints),
            world.checkpoints.load_blob,
            world.setting,
        )
        loaded = Predictor(recipe, {"": source}).logits(images)
        evaluated = full_logits(world, outcome.candidate, "test")
        assert np.array_equal(loaded, evaluated), outcome.name


@pytest.mark.parametrize("recipe", ["greedy", "replacement", "pruned"])
def test_the_cascade_chooses_what_float32_chooses(tmp_path, recipe):
    plain = toy(tmp_path / "a", 8)
    cheap = toy(tmp_path / "b", 8)
    (expected,) = run_recipes(plain.selection(), {recipe: {}})
    (found,) = run_recipes(cheap.selection(cascade=True), {recipe: {}})
    assert found.candidate == expected.candidate
    assert found.held_out == expected.held_out
    assert [s.accepted for s in found.trace] == [s.accepted for s in expected.trace]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1", "worst_class", "nll"])
def test_recipes_select_by_the_metric_that_is_asked_for(tmp_path, metric):
    world = toy(tmp_path, 5)
    splits = [world.basis.split("held_out"), world.basis.split("train")]
    selection = HeldOutSelection(world.evaluator, world.pool, splits, metric=metric)
    values = [selection.value(i.held_out) for i in selection.pool.ingredients]
    assert values == sorted(values, reverse=True)
    wanted = ["best_single", "uniform", "greedy", "pruned", "greedy_ensemble", "wise_ft", "vrf"]
    outcomes = {
        o.name: o for o in run_recipes(selection, {name: {} for name in ("anchor", *wanted)})
    }
    best = selection.value(outcomes["best_single"].held_out)
    assert best == values[0]
    assert selection.value(outcomes["greedy"].held_out) >= best
    assert selection.value(outcomes["greedy_ensemble"].held_out) >= best
    uniform = selection.value(outcomes["uniform"].held_out)
    assert selection.value(outcomes["pruned"].held_out) >= uniform
    curve = outcomes["wise_ft(best_single, best)"]
    assert selection.value(curve.held_out) == max(selection.value(s.result) for s in curve.trace)


def test_one_trial_that_is_theta_0_does_not_make_model_stock_theta_0(tmp_path):
    world = toy(tmp_path, with_a_trial_that_learnt_nothing())
    (stock,) = run_recipes(world.selection(), {"model_stock": {}})
    # Two of three in one direction, the third in none: mean cosine 1/3, t = 1 / (1 + 2/3) = .6
    init = world.checkpoints.load(world.pool.init.sha256)["head.weight"].double()
    mean = world.weights(mean_of(world.pool.checkpoints))["head.weight"].double()
    expected = (0.6 * mean + 0.4 * init).float()
    assert torch.allclose(world.weights(stock.candidate)["head.weight"], expected, atol=1e-5)
    assert stock.notes == ()


def test_ensembles_are_chosen_under_the_cascade_without_a_forward_pass(tmp_path, monkeypatch):
    world = toy(tmp_path, 5)

    def refuse(*arguments, **more):
        raise AssertionError("a forward pass")

    selection = world.selection(cascade=True)
    with monkeypatch.context() as patch:
        patch.setattr(world.workers.live, "load", refuse)
        (cheap,) = run_recipes(selection, {"greedy_ensemble": {}})
    assert selection.tau is None
    assert len(cheap.candidate.members) > 1
    run_recipes(selection, {"greedy": {}})  # its weights are what tau is about
    images, _ = world.data.samples(world.data.split("held_out"))  # 90, fewer than are compared
    best = mean_of([selection.pool.checkpoints[0]])
    low, high = (world.workers.live.predict(best, images, low)[0] for low in (True, False))
    assert selection.tau == 6 * float(np.abs(low - high).max()) > 0
    assert [cheap] == run_recipes(world.selection(), {"greedy_ensemble": {}})


def test_what_the_cascade_chose_is_not_taken_for_float32(tmp_path):
    world = toy(tmp_path, 5)
    (cheap,) = run_recipes(world.selection(cascade=True), {"greedy": {}})
    decided = set(world.checkpoints.store.list("decisions"))
    (plain,) = run_recipes(world.selection(), {"greedy": {}})
    assert plain.candidate == cheap.candidate
    # All are decided again, but for the choice itself, whose full float32 scores are known.
    again = set(world.checkpoints.store.list("decisions")) - decided
    assert len(again) == len(decided) - 1 > 0


def test_a_cascade_that_miscounts_what_it_accepts_is_an_error_and_no_result(tmp_path, monkeypatch):
    world = toy(tmp_path, 5)
    run = world.workers.run

    def too_sure(unit, *rest):
        """Low precision calls everything right, and is sure of it."""
        answer = run(unit, *rest)
        return Answer(np.ones_like(answer.right), np.zeros_like(answer.unsure))

    monkeypatch.setattr(world.workers, "run", too_sure)
    with pytest.raises(
        EvaluationError, match=r"the cascade counted 90 of 90 samples right, float32 \d+"
    ):
        run_recipes(world.selection(cascade=True), {"greedy": {}})
