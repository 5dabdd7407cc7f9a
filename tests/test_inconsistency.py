"""How two models differ: numbers worked out by hand, and other ways to the same ones."""

import numpy as np
import pytest
from msgspec import UNSET
from scipy.special import softmax
from shared import board, inputs_of
from test_findings import noisy

from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.records import Objective
from soupray.core.requests import Embedding
from soupray.diagnostics.inconsistency import (
    INCONSISTENCY,
    Inconsistency,
    compared,
    feature_rows,
    gain_points,
    measure_inconsistency,
)
from soupray.maths.disagreement import (
    buckets_of,
    cka,
    confidence_angles,
    correlation,
    losses_of,
    prediction_divergence,
)
from soupray.maths.metrics import nll
from soupray.testing.linear import toy, truth

RNG = np.random.default_rng(0)


def inputs_with_ensemble(world):
    shas = world.pool.checkpoints
    pair = ensemble_of([(mean_of([sha]), 1, 1.0) for sha in shas[:2]], 2, "logits")
    made = board("uniform", best_single=mean_of(shas[:1]), uniform=mean_of(shas), ensemble=pair)
    return inputs_of(world, made)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy"), noisy(4, 1.0))


@pytest.fixture(scope="module")
def made(world) -> Inconsistency:
    return measure_inconsistency(inputs_with_ensemble(world))


def test_divergence_by_hand():
    """p = (1/2, 1/2), q = (3/4, 1/4): sum (p - q)(log p - log q) = 1/4 log 3, and half of it."""
    a, b = np.zeros((1, 2)), np.log([[0.75, 0.25]])
    assert prediction_divergence(a, b) == pytest.approx(np.log(3) / 8)
    assert prediction_divergence(b, a) == prediction_divergence(a, b)
    assert prediction_divergence(b, b + 3) == pytest.approx(0)


def test_divergence_is_the_mean_of_both_directions():
    p, q = (softmax(RNG.normal(size=(30, 5)), axis=1) for _ in range(2))
    both = [(x * np.log(x / y)).sum(axis=1).mean() for x, y in ((p, q), (q, p))]
    assert prediction_divergence(np.log(p), np.log(q)) == pytest.approx(np.mean(both))


def test_cka_by_hand():
    """Centred: (-1, 1), and (-1, 1) with (0, 0): one direction. The others are at right angles."""
    a = np.array([[0.0], [2.0]])
    assert cka(a, np.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx(1)
    four = np.array([[1.0], [1], [-1], [-1]])
    assert cka(four, np.array([[1.0], [-1], [1], [-1]])) == pytest.approx(0)
    assert cka(four, np.full((4, 3), 7.0)) is None  # constant features


@pytest.mark.parametrize("shape", [(12, 20, 9), (50, 4, 6)])
def test_cka_is_that_of_gram_matrices(shape):
    """HSIC of linear kernels, centred by H = 1 - 1/n; rotations and scales change nothing."""
    n, d, e = shape
    x, y = RNG.normal(size=(n, d)), RNG.normal(size=(n, e))
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert cka(x, y) == pytest.approx(expected)
    turn, _ = np.linalg.qr(RNG.normal(size=(d, d)))
    assert cka(3 * x @ turn + 5, y) == pytest.approx(expected)
    assert cka(x, x) == pytest.approx(1)


def test_angles_of_confidence():
    found = confidence_angles(np.array([0.5, 1, 0, 3**0.5 / 4]), np.array([0.5, 0, 1, 0.25]))
    assert found == pytest.approx([45, 90, 0, 60])


@pytest.mark.parametrize(
    "objective",
    [UNSET, Objective(kind="multi_label"), Objective(kind="regression", tolerance=0.1)],
)
def test_the_mean_of_losses_is_the_loss(objective):
    z = RNG.normal(size=(20, 3))
    labels = RNG.integers(0, 3, 20) if objective is UNSET else RNG.integers(0, 2, (20, 3))
    found = losses_of(z, labels, objective)
    assert found.shape == (20,)
    assert found.mean() == pytest.approx(nll(z, labels, objective))


def test_buckets_are_joined_where_they_are_small():
    values = np.arange(100.0)
    ten = buckets_of(values, 10, least=1)
    assert [len(b.rows) for b in ten.buckets] == [10] * 10
    assert (ten.buckets[1].low, ten.buckets[1].high) == (10, 19)
    four = buckets_of(values, 10, least=25)
    assert [len(b.rows) for b in four.buckets] == [30, 30, 40]
    assert four.asked == 10
    assert [len(b.rows) for b in buckets_of(values[:20], 5).buckets] == [20]  # all that there are


def test_equal_values_are_in_one_bucket():
    values = np.array([3.0] * 50 + [1.0] * 30 + [2.0] * 20)
    found = buckets_of(values, 10, least=1).buckets
    assert [(b.low, b.high, len(b.rows)) for b in found] == [(1, 1, 30), (2, 2, 20), (3, 3, 50)]
    assert sorted(np.concatenate([b.rows for b in found])) == list(range(100))
    few = buckets_of(values, 10, least=25).buckets
    assert [(b.low, b.high, len(b.rows)) for b in few] == [(1, 1, 30), (2, 3, 70)]


def test_correlation_needs_variation():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1, 2], [1, 2]) is None


def test_models_are_entries_then_trials_each_once(world, made):
    shas = world.pool.checkpoints
    names = [m.name for m in made.models]
    assert names == ["best_single", "uniform", "ensemble", *(
        i.trial.key for i in world.pool.ingredients[1:]
    )]  # fmt: skip
    assert [m.features for m in made.models] == [True, True, False, True, True, True]
    assert compared(inputs_with_ensemble(world))["best_single"] == mean_of(shas[:1])


def test_matrices_are_those_of_the_answers(world, made):
    models = list(compared(inputs_with_ensemble(world)).values())
    right = [s.right_mask() for s in world.evaluator.scores(models, world.basis.split("test"))]
    found = np.array(made.inconsistency)
    assert found == pytest.approx(np.array([[(a != b).mean() for b in right] for a in right]))
    # The linear world's features are the pixels: the same for all models.
    assert made.cka_complement[0][1] == pytest.approx(0)
    assert made.cka_complement[0][2] is None  # an ensemble has none


def test_an_ensemble_of_two_is_the_evaluators(world, made):
    models = list(compared(inputs_with_ensemble(world)).values())
    assert len(made.pairs) == 15
    for pair in made.pairs:
        i, j = pair.models
        if 2 in pair.models:
            continue
        both = ensemble_of([(models[i], 1, 1.0), (models[j], 1, 1.0)], 2, "logits")
        (scores,) = world.evaluator.scores([both], world.basis.split("test"))
        assert pair.accuracy == scores.accuracy
        accuracies = (made.models[i].accuracy, made.models[j].accuracy)
        assert pair.gain == pytest.approx(scores.accuracy - np.mean(accuracies))
        assert pair.over_better == pytest.approx(scores.accuracy - max(accuracies))
    points = gain_points(made)
    assert [p["gain"] for p in points] == [100 * p.gain for p in made.pairs]
    expected = np.corrcoef([p["inconsistency"] for p in points], [p["gain"] for p in points])
    assert made.correlation == pytest.approx(expected[0, 1])


def test_features_are_those_of_a_forward_pass(world):
    inputs = inputs_with_ensemble(world)
    rows = feature_rows(inputs)
    assert rows.all()  # fewer samples than are compared at most
    rows[::2] = False
    model = mean_of(world.pool.checkpoints[:1])
    asked = Embedding(model=model, rows="")
    assert type(asked).kept
    found = world.evaluator.features(model, rows, world.basis.split("test"))
    images, _ = world.data.samples(world.basis.split("test"))
    pixels = np.asarray(images)[rows].reshape(len(found), -1) / 255 - 0.5
    assert found == pytest.approx(pixels, abs=1e-6)


def test_the_table_and_the_figure_have_all_models(made):
    section = INCONSISTENCY.section(made)
    (table,), (matrix, gains) = section.tables, section.figures
    assert len(table.rows) == 6
    assert table.columns[-1] == "with"
    data = next(iter(matrix.spec["datasets"].values()))
    assert len(data) == 36
    assert gains.name == "ensemble_gain"
    assert "correlation" in " ".join(section.sentences)


def test_one_model_is_left_out_and_equal_models_have_no_kappa(tmp_path):
    alone = toy(tmp_path, [truth()])
    assert "nothing to compare" in INCONSISTENCY.left_out(inputs_with_ensemble_of_one(alone))
    same = toy(tmp_path / "same", [truth()] * 3)
    made = measure_inconsistency(inputs_with_ensemble_of_one(same))
    assert len(made.models) == 1
    assert made.pairs == ()
    assert INCONSISTENCY.section(made).sentences == ("There is one model: nothing to compare.",)


def inputs_with_ensemble_of_one(world):
    return inputs_of(world, board("best_single", best_single=mean_of(world.pool.checkpoints[:1])))


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_other_objectives_have_no_divergence_but_ensembles(tmp_path, kind):
    world = toy(tmp_path, noisy(3, 0.4), objective=Objective(kind=kind, tolerance=0.5))
    inputs = inputs_with_ensemble(world)
    assert INCONSISTENCY.left_out(inputs) is None
    made = measure_inconsistency(inputs)
    assert {p.divergence for p in made.pairs} == {None}
    assert any(p.accuracy > 0 for p in made.pairs)
    INCONSISTENCY.section(made)
