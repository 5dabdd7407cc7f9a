"""Single models and soups with BatchNorm statistics that are made alike.

The model is logits = W (x - mean) / sqrt(var + eps) with x of four pixels, so that numpy says what
is right with any statistics. Training left three models with different ones: A's are good, B has
the best W and a mean that no pixel has, C is between them.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from shared import demo, ingredient, inputs_of, scores, sha, trial
from test_live_model import NormedTask

from soupray.cli.board import show_leaderboard
from soupray.core.candidates import (
    WeightSoup,
    as_trained,
    ensemble_of,
    estimated,
    mean_of,
    soups_of_one,
)
from soupray.core.errors import ConfigError
from soupray.core.records import Basis, CheckpointRef, Setting, encode
from soupray.core.task_vectors import DareSoup
from soupray.core.trials import Ingredient, Pool, pool_of
from soupray.data.cache import Data
from soupray.diagnostics.pairs import measure_pairs, segment
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.inference.predictor import ModelSource, Predictor
from soupray.maths.metrics import mcnemar
from soupray.recipes import run_recipes
from soupray.reporting.ranking import as_csv, explained, forward_passes, leaderboard
from soupray.reporting.recipe_file import RecipeFile, read_recipe, weights_of
from soupray.soup.check import treated_alike
from soupray.soup.run import baselines, choices_path, report, to_report
from soupray.soup.session import Session
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.store.weights_file import tensor_digests
from soupray.testing.linear import CLASSES, make_data, truth

EPS = 1e-5
"""Of torch's BatchNorm."""


class Trained(NamedTuple):
    """A world of models whose training moved BatchNorm statistics."""

    data: Data
    checkpoints: Checkpoints
    basis: Basis
    pool: Pool
    evaluator: StoredEvaluator
    a: str
    b: str
    c: str

    def selection(self) -> HeldOutSelection:
        splits = [self.basis.split("held_out"), self.basis.split("train")]
        return HeldOutSelection(self.evaluator, self.pool, splits)

    def session(self) -> Session:
        return Session(None, None, self.pool, self.basis, (), self.evaluator, {})

    def pixels(self, split: str) -> np.ndarray:
        """[N, 4], as the model reads them."""
        images = np.asarray(self.data.samples(self.basis.split(split))[0])
        return images.reshape(len(images), -1) / 255 - 0.5

    def right(self, head: torch.Tensor, mean: object, var: object, split: str = "held_out") -> int:
        """How many samples the formula gets right."""
        z = (self.pixels(split) - mean) / np.sqrt(np.asarray(var) + EPS)
        labels = np.asarray(self.data.samples(self.basis.split(split))[1])
        return int(((z @ head.numpy().T).argmax(axis=1) == labels).sum())

    def alike(self, head: torch.Tensor, split: str = "held_out") -> int:
        """The same with the statistics of all training samples."""
        x = self.pixels("train")
        return self.right(head, x.mean(axis=0), x.var(axis=0, ddof=1), split)


def noisy(seed: int, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return truth() + noise * torch.randn(CLASSES, 4, generator=generator)


HEADS = [noisy(2, 0.8), noisy(20, 0.1), noisy(40, 0.8)]
MEANS = (0.04, np.array([3.0, 0.0, 0.0, 0.0]), 0.15)
VARIANCE = 1 / 12
"""Of a pixel, which is uniform from -1/2 to 1/2."""


def tensors(head: torch.Tensor, mean: object, var: float) -> dict[str, torch.Tensor]:
    return {
        "norm.weight": torch.ones(4),
        "norm.bias": torch.zeros(4),
        "norm.running_mean": torch.as_tensor(np.broadcast_to(mean, 4).copy()).float(),
        "norm.running_var": torch.full((4,), var),
        "head.weight": head,
    }


def ingredient_of(key: str, weights: dict[str, torch.Tensor], world) -> Ingredient:
    checkpoints, evaluator, cache, basis, setting = world
    ref = checkpoints.save(weights, {"trial": key})
    held_out = basis.split("held_out")
    evaluator.scores([mean_of([ref.sha256])], held_out)
    found = cache.find(mean_of([ref.sha256]), held_out)
    made = ingredient(key, found.scores)
    return msgspec.structs.replace(
        made,
        trial=msgspec.structs.replace(trial(key), setting=setting),
        checkpoint=ref,
        tensors=tensor_digests(weights),
        init=basis.init.sha256,
        logits=found.logits,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data, setting = make_data(folder / "data"), Setting(batch_size=8)
    checkpoints = Checkpoints(open_store("memory://"), folder / "weights")
    init = checkpoints.save(tensors(truth() * 0.3, 0.1, 0.09), {"init": "toy"})
    basis = Basis(key="toy", splits=data.splits, init=init, anchor=init, anchor_name="init")
    workers = LocalWorkers(NormedTask(), data, checkpoints, setting)
    evaluator = StoredEvaluator(Site(workers, workers.cache, setting))
    world = (checkpoints, evaluator, workers.cache, basis, setting)
    made = [
        ingredient_of(key, tensors(head, mean, VARIANCE), world)
        for key, head, mean in zip("abc", HEADS, MEANS, strict=True)
    ]
    shas = [i.checkpoint.sha256 for i in made]
    return Trained(data, checkpoints, basis, pool_of(basis, made), evaluator, *shas)


def with_tensors(name: str, method: str = "ft", init: str = "anchor", **of: str) -> Ingredient:
    named = {f"bn.{kind}": sha(content) for kind, content in of.items()}
    made = ingredient(name, scores(5))
    return msgspec.structs.replace(
        made,
        trial=msgspec.structs.replace(made.trial, method=method),
        tensors={"head.weight": sha(name), **named},
        init=sha(init),
    )


def pool(*ingredients: Ingredient) -> Pool:
    ref = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
    return Pool(init=ref, anchor=ref, ingredients=ingredients)


ALL = {sha(name) for name in ("anchor", "a", "b")}


@pytest.mark.parametrize(
    ("ingredients", "moved"),
    [
        ([with_tensors("a"), with_tensors("b")], set()),  # no BatchNorm
        ([with_tensors("a", running_mean="1"), with_tensors("b", running_mean="1")], set()),
        ([with_tensors("a", running_mean="1"), with_tensors("b", running_mean="2")], ALL),
        ([with_tensors("a", running_var="1"), with_tensors("b", running_var="2")], ALL),
        # One ingredient has nobody to differ from.
        ([with_tensors("a", running_mean="1")], ALL - {sha("b")}),
        ([with_tensors("a", "lp", running_mean="1")], set()),
        # Of another theta_0, in a pool of several specs: neither it nor this anchor moved.
        ([with_tensors("a"), with_tensors("b", "lp", init="other", running_mean="1")], set()),
        ([with_tensors("a"), with_tensors("b", init="other", running_mean="1")], {sha("b")}),
    ],
)
def test_statistics_moved_where_ingredients_of_one_theta_0_differ_in_them(ingredients, moved):
    assert pool(*ingredients).moved == moved
    names = [i.checkpoint.sha256 for i in ingredients]
    found = soups_of_one(names, pool(*ingredients))
    assert [as_trained(model) for model in found] == [name not in moved for name in names]


def test_an_estimated_model_is_a_record_of_its_own_and_all_others_keep_their_digests():
    one = mean_of([sha("a")])
    assert encode(one) == (
        b'{"denominator":1,"parts":[["%s",1]],"type":"weight_soup"}' % sha("a").encode()
    )
    assert estimated(sha("a")) != one
    assert estimated(sha("a")).digest != one.digest
    with pytest.raises(ValueError, match="statistics is for one part, and the soup has 2"):
        WeightSoup(parts=((sha("a"), 1), (sha("b"), 1)), denominator=2, statistics="estimated")


def test_with_estimated_statistics_a_model_is_right_where_the_formula_says(trained):
    held_out = trained.basis.split("held_out")
    own = trained.evaluator.scores([mean_of([s]) for s in trained[-3:]], held_out)
    by_hand = [trained.right(h, m, VARIANCE) for h, m in zip(HEADS, MEANS, strict=True)]
    assert [s.correct for s in own] == by_hand == [48, 19, 44]
    found = trained.evaluator.scores([estimated(s) for s in trained[-3:]], held_out)
    # What the tests below are about: statistics hide that B is the best model.
    assert [s.correct for s in found] == [trained.alike(h) for h in HEADS] == [47, 65, 53]


def test_saved_and_read_back_it_is_a_checkpoint_that_gives_the_same_logits(trained):
    test = trained.basis.split("test")
    ref = trained.evaluator.save(estimated(trained.b))
    weights, before = (trained.checkpoints.load(s) for s in (ref.sha256, trained.b))
    x = trained.pixels("train")
    assert np.allclose(weights["norm.running_mean"], x.mean(axis=0), atol=1e-6)
    assert np.allclose(weights["norm.running_var"], x.var(axis=0, ddof=1), atol=1e-6)
    assert all(torch.equal(weights[n], before[n]) for n in ("head.weight", "norm.weight"))
    one, other = (
        trained.evaluator.predictions(model, test)
        for model in (estimated(trained.b), mean_of([ref.sha256]))
    )
    assert np.array_equal(one.logits, other.logits)


def test_results_of_an_estimated_model_are_those_of_its_training_data(trained, tmp_path):
    """Other training data, other statistics: what is stored for these is not found."""
    held_out = trained.basis.split("held_out")
    cache = trained.evaluator._home.cache
    trained.evaluator.scores([estimated(trained.a)], held_out)
    assert cache.find(estimated(trained.a), held_out) is not None
    assert cache.statistics(estimated(trained.a)) is not None
    assert cache.statistics(mean_of([trained.a])) is None
    other = msgspec.structs.replace(trained.basis.split("train"), digest=sha("other"))
    elsewhere = type(cache)(trained.checkpoints, Setting(batch_size=8), other)
    assert elsewhere.find(estimated(trained.a), held_out) is None
    assert elsewhere.statistics(estimated(trained.a)) is None


def test_a_soup_of_task_vectors_has_estimated_statistics_also_with_one_whole_model(trained):
    """Its coefficients are 0 and 1: a single model as trained would keep its own, with 19 right."""
    zero = trained.basis.init.sha256
    soup = DareSoup(origin=zero, models=(trained.b,), drop=0.0, seed=0, scale=1.0)
    assert soup.coefficients == (0.0, 1.0)
    (found,) = trained.evaluator.scores([soup], trained.basis.split("held_out"))
    assert found.correct == trained.alike(HEADS[1]) == 65


ASKED = (
    "uniform",
    "greedy",
    "replacement",
    "pruned",
    "ensemble",
    "greedy_ensemble",
    "wise_ft",
    "ose",
)


@pytest.fixture(scope="module")
def outcomes(trained) -> dict:
    wanted = {name: {} for name in (*baselines(trained.pool), *ASKED)}
    return {o.name: o for o in run_recipes(trained.selection(), wanted)}


def test_both_baselines_are_there_with_both_statistics(trained, outcomes):
    assert outcomes["best_single"].candidate == mean_of([trained.a])
    assert outcomes["best_single(bn)"].candidate == estimated(trained.b)
    counts = {name: outcomes[name].held_out.correct for name in outcomes}
    assert (counts["best_single"], counts["best_single(bn)"]) == (48, 65)
    assert counts["init(bn)"] == trained.alike(truth() * 0.3) == 64
    assert counts["init"] == trained.right(truth() * 0.3, 0.1, 0.09) == 57


def test_pools_whose_statistics_did_not_move_have_the_baselines_that_they_had(trained):
    still = pool(with_tensors("a", running_mean="1"), with_tensors("b", running_mean="1"))
    assert baselines(still) == ["anchor", "best_single"]
    assert baselines(trained.pool) == ["anchor", "best_single", "update_bn"]


def test_choices_of_pools_whose_statistics_did_not_move_are_found_where_they_were():
    # A change here makes the stored choices of every user unfindable.
    two = pool(ingredient("a", scores(9)), ingredient("b", scores(8)))
    wanted = {name: {} for name in (*baselines(two), "greedy")}
    path = "sweeps/digits/choices/0d208776cc14192987f8ab1e79f8a1aa.json"
    assert choices_path([demo()], two, wanted) == path


def test_greedy_recipes_start_with_the_best_model_whatever_its_statistics(trained, outcomes):
    """With A as trained (48 right) first, its mean with C (as trained 44) would have been kept."""
    assert trained.alike((HEADS[0] + HEADS[2]) / 2) > 48
    assert trained.alike((HEADS[0] + HEADS[1]) / 2) == 60
    assert trained.alike(sum(HEADS) / 3) == 59
    greedy = outcomes["greedy"]
    assert greedy.trace[0].candidate == estimated(trained.b)
    for name in ("greedy", "replacement", "greedy_ensemble", "pruned"):
        assert outcomes[name].held_out.correct >= trained.alike(HEADS[1]), name
    assert greedy.candidate == estimated(trained.b)


def test_an_ensemble_has_each_model_with_the_statistics_that_do_better(trained, outcomes):
    """48 or 47 right, 19 or 65, 44 or 53: A keeps its own."""
    better = {s: estimated(s) for s in (trained.b, trained.c)}
    better[trained.a] = mean_of([trained.a])
    parts = [(better[s], 1, 1.0) for s in trained.pool.checkpoints]
    assert outcomes["ensemble"].candidate == ensemble_of(parts, 3, "logits")


def test_the_lines_of_wise_ft_end_at_models_with_the_better_statistics(trained, outcomes):
    line = outcomes["wise_ft(best_single(bn), best)"].trace
    assert line[0].candidate == estimated(trained.basis.anchor.sha256)  # 64 right, as trained 57
    assert line[-1].candidate == estimated(trained.b)
    quarter = trained.alike(0.75 * 0.3 * truth() + 0.25 * HEADS[1])
    assert line[5].result.correct == quarter
    assert not any(name.startswith("wise_ft(best_single,") for name in outcomes)


@pytest.fixture(scope="module")
def board(trained, outcomes):
    made = list(outcomes.values())
    reported = report(trained.evaluator, to_report(made, trained.pool), trained.basis)
    return leaderboard(made, trained.pool, trained.basis, reported)


def test_entries_are_compared_with_both_best_single_models(trained, board):
    right = {
        name: trained.evaluator.scores([model], trained.basis.split("test"))[0].right_mask()
        for name, model in (("a", mean_of([trained.a])), ("b", estimated(trained.b)))
    }
    for entry in board:
        if entry.name == "best_single(bn)":
            only_b, only_a = (int((right[x] & ~right[y]).sum()) for x, y in ("ba", "ab"))
            versus = entry.test_versus_best_single
            assert (versus.only_this, versus.only_best_single) == (only_b, only_a)
            assert versus.p == mcnemar(only_b, only_a)
            assert entry.test_versus_updated.p == 1
        if entry.name == "best_single":
            assert entry.test_versus_best_single.p == 1
            assert entry.test_versus_updated.only_this == only_a
    header = as_csv(board).splitlines()[0].split(",")
    assert header[-4:] == [
        "p_vs_best_single",
        "p_vs_best_single(bn)",
        "forward_passes",
        "size_bytes",
    ]


def test_what_statistics_explain_is_counted_and_said(trained, board, capsys):
    found = explained(board, "accuracy")
    assert (found.before.name, found.after.name) == ("best_single", "best_single(bn)")
    counts = {e.name: e.held_out.correct for e in board}
    before, after = counts["best_single"], counts["best_single(bn)"]
    several = [e for e in board if len(e.ingredients) > 1]
    assert {e.name for e in found.above_before} == {
        e.name for e in several if e.held_out.correct > before
    }
    assert {e.name for e in found.above_after} == {
        e.name for e in several if e.held_out.correct > after
    }
    assert 0 <= len(found.above_after) < len(found.above_before)
    about = {"metric": "accuracy", "precision": "fp32", "targets": None, "own_metric": None}
    spec = type("Spec", (), about)()
    show_leaderboard(board, trained.basis, spec)
    said = " ".join(capsys.readouterr().out.split())
    assert "They alone bring the best single model from 53.3 to 72.2 held-out (" in said  # of 90
    assert (
        f"Of {len(found.above_before)} entries of several models above best_single, "
        f"{len(found.above_after)} are above it; the gain of the others is one of statistics, not "
        "of averaging"
    ) in said


def test_estimated_statistics_make_another_body():
    """Heads on one body share a forward pass; with other statistics the body is another one."""
    a, b = sha("a"), sha("b")
    bodies = dict.fromkeys((a, b), "body")
    both = [(mean_of([a]), 1, 1.0), (mean_of([b]), 1, 1.0)]
    assert forward_passes(ensemble_of(both, 2, "logits"), bodies) == 1
    assert forward_passes(ensemble_of([*both, (estimated(a), 1, 1.0)], 3, "logits"), bodies) == 2


def test_pairs_are_measured_with_statistics_made_alike(trained):
    session = treated_alike(trained.session())
    by_key = {i.trial.key: i.held_out.correct for i in session.pool.ingredients}
    assert by_key == dict(zip("abc", map(trained.alike, HEADS), strict=True))
    assert [i.trial.key for i in session.pool.ingredients] == [
        i.trial.key for i in trained.pool.ingredients
    ]
    made = measure_pairs(inputs_of(trained))
    assert made.statistics == "estimated"
    n = trained.basis.split("held_out").size
    heads = dict(zip("abc", HEADS, strict=True))
    for pair in made.pairs:
        one, other = (heads[key] for key in pair.trials)
        assert pair.accuracies == (trained.alike(one) / n, trained.alike(other) / n)
        assert pair.soup.accuracy == trained.alike((one + other) / 2) / n
        # With equal statistics the logits are linear along the segment: soup and ensemble agree.
        assert pair.measured == pytest.approx(0, abs=1e-6)
    ends = segment(trained.pool, 0, 1)
    assert (ends[0], ends[-1]) == tuple(map(estimated, trained.pool.checkpoints[:2]))


def recipe(trained: Trained, **edits: object) -> RecipeFile:
    model = estimated(trained.b)
    trained.evaluator.scores([model], trained.basis.split("test"))
    made = RecipeFile(
        name="best_single(bn)",
        recipe="update_bn",
        options={},
        candidate=model,
        ingredients={trained.b: "b"},
        statistics=trained.evaluator.statistics([model]),
        sha256=None,
        spec={},
    )
    return msgspec.structs.replace(made, **edits)


@torch.inference_mode()
def test_a_recipe_file_of_it_loads_the_model_that_was_evaluated(trained):
    test = trained.basis.split("test")
    made, stored = recipe(trained), trained.checkpoints
    source = ModelSource(
        NormedTask(),
        lambda member: weights_of(member, made, stored),
        stored.load_blob,
        Setting(batch_size=8),
    )
    samples = np.array(trained.data.samples(test)[0])
    found = Predictor(made, {"": source}).logits(samples)
    expected = trained.evaluator.predictions(estimated(trained.b), test).logits
    assert np.array_equal(found, expected)


def test_a_recipe_file_without_its_statistics_is_refused(trained, tmp_path: Path):
    path = tmp_path / "x.recipe.json"
    text = msgspec.json.decode(encode(recipe(trained)))
    path.write_bytes(encode(text | {"statistics": {}}))
    with pytest.raises(ConfigError, match="has estimated BatchNorm statistics, and the file does"):
        read_recipe(path)
    path.write_bytes(encode(text))
    assert read_recipe(path) == recipe(trained)
