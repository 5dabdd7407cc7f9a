"""Measures of weights, each against another way of computing it."""

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from soupray.core.candidates import QUANTUM, FisherSoup, LayerSoup, mean_of
from soupray.core.errors import EvaluationError
from soupray.core.records import Predictions, pack_right, unpack_right
from soupray.core.requests import (
    Deviation,
    Distances,
    Failures,
    Features,
    Fisher,
    Gradient,
    Gram,
    Margins,
    Right,
    Temperature,
    TensorNames,
)
from soupray.evaluation.cache import save_logits
from soupray.testing.linear import CLASSES, Toy, toy


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), 4)


def ask(world: Toy, request, split="held_out"):
    (answer,) = world.evaluator.measure([request], world.basis.split(split))
    return answer


def weights(world: Toy, sha: str) -> torch.Tensor:
    return world.checkpoints.load(sha)["head.weight"].double()


def data(world: Toy, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = world.data.samples(world.basis.split(split))
    x = torch.from_numpy(np.array(images)).double().flatten(1) / 255 - 0.5
    return x, torch.from_numpy(np.array(labels))


def test_the_gram_matrix_is_of_differences_from_the_origin(world):
    shas = tuple(world.pool.checkpoints)
    gram = ask(world, Gram(checkpoints=shas, origin=world.pool.init.sha256))
    origin = weights(world, world.pool.init.sha256)
    deltas = torch.stack([(weights(world, s) - origin).flatten() for s in shas])
    assert list(gram) == ["head.weight"]
    assert np.allclose(gram["head.weight"], deltas @ deltas.T)


@pytest.mark.parametrize("rows", [(), (0, 3, 8, 40)])
def test_the_gradient_is_that_of_autograd_through_the_mixture(world, rows, monkeypatch):
    monkeypatch.setattr("soupray.evaluation.measures.GRADIENT_CHUNK", 5)  # of 12 elements
    shas = world.pool.checkpoints
    numerators = (QUANTUM // 2, QUANTUM // 4, QUANTUM // 8, QUANTUM // 8)
    soup = LayerSoup(
        checkpoints=tuple(shas),
        layers=((("head.weight",), numerators),),
        rest=(QUANTUM, 0, 0, 0),
        denominator=QUANTUM,
    )
    slope = ask(world, Gradient(soup=soup, beta=1.3, rows=rows))
    alpha = torch.tensor([n / QUANTUM for n in numerators], dtype=torch.float64)
    alpha.requires_grad_(True)
    beta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x, y = data(world, "held_out")
    chosen = list(rows) or list(range(len(y)))
    mixed = sum(a * weights(world, s) for a, s in zip(alpha, shas, strict=True))
    loss = F.cross_entropy(beta * (x[chosen] @ mixed.T), y[chosen])
    loss.backward()
    assert slope.loss == pytest.approx(loss.item(), abs=1e-5)
    assert slope.coefficients[0] == pytest.approx(alpha.grad.tolist(), abs=1e-5)
    assert slope.coefficients[1] == (0, 0, 0, 0)  # no tensor is left over
    assert slope.beta == pytest.approx(beta.grad.item(), abs=1e-5)


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_soup(world):
    shas = world.pool.checkpoints
    soup = LayerSoup(checkpoints=tuple(shas), layers=(), rest=(1, 1, 1, 1), denominator=4)
    with pytest.raises(EvaluationError, match=rf"soup {soup.digest[:12]}, .*beta = 3e\+38: .*`lr`"):
        ask(world, Gradient(soup=soup, beta=3e38, rows=()))


def test_fisher_information_is_the_mean_of_squared_gradients_of_drawn_labels(world):
    sha = world.pool.checkpoints[0]
    ref = ask(world, Fisher(checkpoint=sha, samples=60), "train")
    found = world.checkpoints.load(ref.sha256)["head.weight"]
    x, _ = data(world, "train")
    w = weights(world, sha)
    p = (x.float() @ w.float().T).double().softmax(dim=1)
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    # d log p_y / d w_cj = (1[c = y] - p_c) x_j
    one_hot = F.one_hot(drawn, CLASSES).double()
    expected = (((one_hot - p)[:, :, None] * x[:, None, :]) ** 2).mean(dim=0)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_a_fisher_soup_by_hand_and_with_equal_fishers(world, tmp_path):
    first, second = world.pool.checkpoints[:2]
    shape = weights(world, first).shape

    def stored(value: float) -> str:
        return world.checkpoints.save({"head.weight": torch.full(shape, value)}, {}).sha256

    soup = FisherSoup(parts=((first, stored(3.0), 1), (second, stored(1.0), 1)))
    expected = (3 * weights(world, first) + weights(world, second)) / 4
    assert torch.equal(world.weights(soup)["head.weight"], expected.float())
    equal = FisherSoup(parts=((first, stored(0.7), 1), (second, stored(0.7), 1)))
    mean = world.weights(mean_of([first, second]))["head.weight"]
    assert torch.allclose(world.weights(equal)["head.weight"], mean, rtol=1e-7)
    # Below the floor both count as the floor: again the mean.
    nothing = FisherSoup(parts=((first, stored(0.0), 1), (second, stored(1e-12), 1)))
    assert torch.allclose(world.weights(nothing)["head.weight"], mean, rtol=1e-7)


def test_the_failure_set_and_distances_by_brute_force(world):
    best, anchor = mean_of([world.pool.checkpoints[0]]), mean_of([world.pool.anchor.sha256])
    found = ask(world, Failures(fine_tuned=best, reference=anchor), "train")
    x, y = data(world, "train")
    right = (x @ weights(world, world.pool.checkpoints[0]).T).argmax(1) == y
    wrong = (x @ weights(world, world.pool.anchor.sha256).T).argmax(1) != y
    chosen = F.normalize(x[right & wrong])
    assert found.size == len(chosen) > 3
    stored = world.checkpoints.load(found.features.sha256)["features"]
    assert torch.allclose(stored.double(), chosen, atol=1e-6)
    distances = ask(world, Distances(fine_tuned=best, failures=found.features, k=3))
    queries = F.normalize(data(world, "held_out")[0])
    expected = (torch.cdist(queries, chosen) ** 2).sort(dim=1).values[:, 2]
    assert np.allclose(distances, expected, atol=1e-5)


def test_measures_of_a_model_are_of_the_precision_that_it_is_evaluated_in(tmp_path):
    world = toy(tmp_path, 2, precision="bf16")
    best, split = mean_of([world.pool.checkpoints[0]]), world.basis.split("train")
    low = world.evaluator.predictions(best, split)
    images = np.array(world.data.samples(split)[0])
    plain, _ = world.workers.live.predict(best, images)
    assert not np.array_equal(low.logits, plain)
    right = unpack_right(ask(world, Right(model=best), "train"), split.size)
    assert (right == (low.logits.argmax(1) == low.labels)).all()
    all_rows = pack_right(np.ones(split.size, bool))
    ref = ask(world, Features(model=best, rows=all_rows), "train")
    pixels = torch.from_numpy(images).float().flatten(1) / 255 - 0.5
    expected = F.normalize(pixels.bfloat16().float())
    stored = world.checkpoints.load(ref.sha256)["features"]
    assert torch.allclose(stored, expected, atol=1e-6)
    # Each sample is its own nearest neighbour, if its features are of the same precision.
    asked = Distances(fine_tuned=best, failures=ref, k=1)
    assert max(ask(world, asked, "train")) < 1e-6


def test_a_model_fails_nowhere_that_it_does_not_fail_itself(world):
    best = mean_of([world.pool.checkpoints[0]])
    empty = ask(world, Failures(fine_tuned=best, reference=best), "train")
    assert (empty.features, empty.size) == (None, 0)


def test_the_deviation_is_that_of_the_logits(world):
    best = mean_of([world.pool.checkpoints[0]])
    images, _ = world.data.samples(world.basis.split("held_out"))
    live = world.workers.live
    low, high = (live.predict(best, np.array(images), low)[0] for low in (True, False))
    assert ask(world, Deviation(candidate=best, samples=90)) == np.abs(low - high).max()


def test_the_deviation_from_stored_logits_runs_no_float32(world, monkeypatch):
    best = world.pool.ingredients[0]
    asked = Deviation(candidate=mean_of([best.checkpoint.sha256]), samples=7)
    expected = ask(world, asked)
    live, ran = world.workers.live, []
    predict = live.predict

    def noted(candidate, images, low=False):
        ran.append((len(images), low))
        return predict(candidate, images, low)

    monkeypatch.setattr(live, "predict", noted)
    assert ask(world, msgspec.structs.replace(asked, logits=best.logits)) == expected > 0
    assert ran == [(7, True)]


def test_margins_are_read_from_the_stored_logits(world):
    # The ingredient's logits, whatever its weights would answer.
    shown = Predictions(
        split=world.basis.split("held_out"),
        logits=np.array([[2.0, 0.5, 1.5], [2.0, 0.5, 1.5], [1.0, 1.0, 0.0]] * 30, np.float32),
        labels=np.array([0, 1, 1] * 30),
    )
    ref = save_logits(world.checkpoints, shown)
    asked = Margins(checkpoint=world.pool.checkpoints[0], logits=ref)
    assert ask(world, asked) == (0.5, -1.5, 0.0) * 30


def test_temperatures_and_names(world):
    assert ask(world, TensorNames(checkpoint=world.pool.init.sha256)) == ("head.weight",)
    assert ask(world, Temperature(candidate=mean_of(world.pool.checkpoints))) > 0
