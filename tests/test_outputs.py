"""Mixing outputs, by hand and against the other way of computing it."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.errors import ConfigError
from soupray.core.records import Predictions, Split
from soupray.maths import neighbours
from soupray.maths.metrics import score
from soupray.maths.neighbours import kth_by_matmul, kth_distances
from soupray.maths.outputs import Blender, entropy_logits, fit_temperature, trust, vrf_logits

A, B, C = (mean_of([name]) for name in "abc")
LOGITS = {
    A: np.array([[2.0, 0.0], [0.0, 1.0]], np.float32),
    B: np.array([[0.0, 1.0], [3.0, 0.0]], np.float32),
    C: np.array([[1.0, 1.0], [1.0, 5.0]], np.float32),
}


def blended(ensemble) -> np.ndarray:
    return Blender(LOGITS.__getitem__).logits(ensemble)


def test_the_mean_of_logits_by_hand():
    ensemble = ensemble_of([(A, 1, 1.0), (B, 3, 1.0)], 4, "logits")
    assert blended(ensemble).tolist() == [[0.5, 0.75], [2.25, 0.25]]


def test_the_mean_of_probabilities_is_of_calibrated_ones():
    ensemble = ensemble_of([(A, 1, 2.0), (B, 1, 0.5)], 2, "probabilities")
    expected = (softmax(LOGITS[A] / 2, axis=1) + softmax(LOGITS[B] / 0.5, axis=1)) / 2
    assert np.allclose(softmax(blended(ensemble), axis=1), expected, atol=1e-6)


def test_an_ensemble_of_one_is_that_model_bit_for_bit():
    wild = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    alone = Blender(lambda member: wild).logits(ensemble_of([(A, 1, 1.0)], 1, "logits"))
    assert (alone == wild).all()


def test_a_growing_ensemble_has_the_same_logits_as_a_fresh_one():
    generator = np.random.default_rng(1)
    members = [mean_of([str(i)]) for i in range(6)]
    logits = {m: generator.normal(size=(40, 5)).astype(np.float32) for m in members}
    asked = []

    def logits_of(member):
        asked.append(member)
        return logits[member]

    growing = Blender(logits_of)
    for space in ("logits", "probabilities"):
        for tried in ([0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 4], [5, 1], [5, 1, 0]):
            ensemble = ensemble_of([(members[i], 1, 1.5) for i in tried], len(tried), space)
            fresh = Blender(logits.__getitem__).logits(ensemble)
            assert (growing.logits(ensemble) == fresh).all()
    asked.clear()
    base = [(members[i], 1, 1.0) for i in range(4)]
    for last in (4, 5):
        growing.logits(ensemble_of([*base, (members[last], 1, 1.0)], 5, "logits"))
    assert asked == [*members[:4], members[4], members[5]]  # the sum of four was kept


def test_a_class_that_nobody_believes_in_is_unlikely_but_finite():
    sure = np.array([[1000.0, 0.0]], np.float32)
    mixed = Blender(lambda m: sure).logits(ensemble_of([(A, 1, 1.0)], 1, "probabilities"))
    assert np.isfinite(mixed).all()
    assert mixed[0, 0] == 0.0


def test_a_temperature_by_hand():
    # Two classes, logits +-1, right in 3 of 4: sigmoid(2 / T) = 3/4, so T = 2 / ln 3.
    logits = np.array([[1.0, -1.0]] * 4, np.float32)
    labels = np.array([0, 0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(2 / math.log(3), rel=1e-4)


def test_a_temperature_is_the_best_there_is_and_bounded():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(200, 4)).astype(np.float32) * 3
    labels = np.where(generator.random(200) < 0.6, logits.argmax(1), generator.integers(0, 4, 200))

    def nll(temperature):
        split = Split(name="x", role="held_out", digest="x", size=200, classes=4)
        scaled = (logits / temperature).astype(np.float32)
        return score(Predictions(split=split, logits=scaled, labels=labels)).nll

    best = fit_temperature(logits, labels)
    assert all(nll(best) <= nll(best * factor) + 1e-9 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    always_wrong = fit_temperature(logits, logits.argmin(1))
    assert always_wrong == pytest.approx(100, rel=1e-3)


def test_a_model_without_errors_has_temperature_1():
    """The lowest NLL is at the bound of 1/100: a soup of such outputs would be sure of errors."""
    logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    assert fit_temperature(logits, np.array([0, 1])) == 1
    assert fit_temperature(logits, np.array([0, 0])) > 1


def test_omega_as_published():
    # VRF, ImageNet B/32: a = 1.5, b = .6
    omega = trust(np.array([0.0, 1.5, 2.0]), 1.5, 0.6)
    assert omega == pytest.approx([0.924, 0.5, 0.303], abs=5e-4)


def test_vrf_is_the_fine_tuned_model_at_omega_1_and_the_reference_at_0():
    omega = np.array([1.0, 0.0])
    p = softmax(vrf_logits(LOGITS[A], LOGITS[B], (2.0, 0.5), omega), axis=1)
    expected = [softmax(LOGITS[A][0] / 2), softmax(LOGITS[B][1] / 0.5)]
    assert np.allclose(p, expected, atol=1e-6)


def test_vrf_with_a_constant_omega_is_the_ensemble_with_that_share():
    mixed = vrf_logits(LOGITS[A], LOGITS[B], (2.0, 0.5), np.full(2, 0.25))
    ensemble = ensemble_of([(A, 1, 2.0), (B, 3, 0.5)], 4, "probabilities")
    assert np.allclose(mixed, blended(ensemble), atol=1e-6)


def test_neighbours_are_those_of_brute_force():
    generator = np.random.default_rng(3)
    points, queries = (generator.normal(size=(n, 8)).astype(np.float32) for n in (60, 40))
    squared = ((queries[:, None].astype(float) - points[None]) ** 2).sum(axis=2)
    for k in (1, 3, 60):
        expected = np.sort(squared, axis=1)[:, k - 1]
        assert np.allclose(kth_distances(queries, points, k), expected, atol=1e-4)
    assert (kth_distances(points, points, 1) >= 0).all()
    assert np.allclose(kth_distances(points, points, 1), 0, atol=1e-4)


@pytest.mark.parametrize("k", [0, 61])
def test_more_neighbours_than_points_is_an_error_that_says_so(k):
    points = np.zeros((60, 2), np.float32)
    with pytest.raises(ConfigError, match=f"k = {k} neighbours of a set of 60 points"):
        kth_distances(points, points, k)


def test_many_neighbours_are_searched_in_blocks_of_queries(monkeypatch):
    generator = np.random.default_rng(4)
    points, queries = (generator.normal(size=(n, 8)).astype(np.float32) for n in (300, 70))
    at_once = {k: kth_distances(queries, points, k) for k in (1, 30, 300)}
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 32 * 30 * (4 + 8))
    asked = []
    flat = neighbours.flat_index

    def watched(*about):
        index = flat(*about)
        search = index.search
        index.search = lambda part, k: asked.append(len(part)) or search(part, k)
        return index

    monkeypatch.setattr(neighbours, "flat_index", watched)
    for k, expected in at_once.items():
        assert np.allclose(kth_distances(queries, points, k), expected, atol=1e-5)
    assert asked == [70, 32, 32, 6, *[3] * 23, 1]


@pytest.mark.parametrize("rows", [0, 1, 7, 70])
def test_neighbours_by_matmul_are_those_of_brute_force_and_of_faiss(rows, monkeypatch):
    generator = np.random.default_rng(5)
    points, queries = (generator.normal(size=(n, 8)).astype(np.float32) for n in (300, 70))
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", rows * 300 * 4)
    squared = np.sort(((queries[:, None].astype(float) - points[None]) ** 2).sum(axis=2), axis=1)
    for k in (1, 30, 300):
        found = kth_by_matmul(queries, points, k, "cpu")
        assert np.allclose(found, squared[:, k - 1], atol=1e-4)
        assert np.allclose(found, kth_distances(queries, points, k), atol=1e-5)
    assert (kth_by_matmul(points, points, 1, "cpu") >= 0).all()


def test_as_many_distances_by_matmul_are_made_at_a_time_as_there_is_memory_for(monkeypatch):
    points, queries = np.zeros((300, 8), np.float32), np.zeros((20, 8), np.float32)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 7 * 300 * 4)  # seven rows, in float32
    addmm, asked = torch.addmm, []
    monkeypatch.setattr(
        torch, "addmm", lambda x, q, p, alpha: asked.append(len(q)) or addmm(x, q, p, alpha=alpha)
    )
    kth_by_matmul(queries, points, 2, "cpu")
    assert asked == [7, 7, 6]


def test_on_a_gpu_what_faiss_does_not_select_is_found_by_matmul(monkeypatch):
    points = np.zeros((neighbours.FAISS_GPU_K + 1, 2), np.float32)
    asked = []
    monkeypatch.setattr(neighbours, "kth_by_matmul", lambda *about: asked.append(about[2:]))
    kth_distances(points, points, len(points), gpu=True)
    assert asked == [(2049, "cuda")]
    monkeypatch.setattr(
        neighbours, "flat_index", lambda *about: pytest.fail("faiss", pytrace=False)
    )
    with pytest.raises(pytest.fail.Exception, match="faiss"):  # which does select 2048
        kth_distances(points, points, 2048, gpu=True)
    assert asked == [(2049, "cuda")]


def test_faiss_for_cpus_on_a_gpu_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.delattr("faiss.index_cpu_to_gpu", raising=False)
    points = np.zeros((3, 2), np.float32)
    with pytest.raises(ConfigError, match=r"pip uninstall faiss-cpu, .*'soupray\[gpu\]'"):
        kth_distances(points, points, 1, gpu=True)


def test_shares_by_entropy_by_hand():
    # p = (.9, .1) has H = .325083, (.5, .5) has H = log 2: shares exp(-.325083) = .722467 and .5
    # over their sum: .590998 and .409002. Of equal models the mixture is each of them.
    first = np.log(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32))
    second = np.log(np.array([[0.5, 0.5], [0.2, 0.8]], np.float32))
    mixed = np.exp(entropy_logits([first, second], [1.0, 1.0]))
    assert mixed[0] == pytest.approx([0.590998 * 0.9 + 0.409002 * 0.5, 0.263601], abs=1e-5)
    assert mixed[1] == pytest.approx([0.2, 0.8], abs=1e-6)


def test_shares_by_entropy_are_those_of_the_paper_on_random_logits():
    generator = np.random.default_rng(4)
    logits = [generator.normal(0, s, (30, 6)).astype(np.float32) for s in (1.0, 3.0, 20.0)]
    temperatures = [0.7, 1.0, 1.9]
    p = [
        torch.from_numpy(one).double().div(t).softmax(1)
        for one, t in zip(logits, temperatures, strict=True)
    ]
    entropy = torch.stack([torch.distributions.Categorical(probs=one).entropy() for one in p])
    weights = torch.exp(-entropy) / torch.exp(-entropy).sum(0)
    expected = sum(w[:, None] * one for w, one in zip(weights, p, strict=True))
    found = np.exp(entropy_logits(logits, temperatures))
    assert np.allclose(found, expected.numpy(), atol=1e-6)


def test_a_model_that_is_certain_counts_in_full_and_gives_no_nan():
    certain = np.array([[1000.0, 0.0]], np.float32)
    found = entropy_logits([certain, np.zeros((1, 2), np.float32)], [1.0, 1.0])
    # exp(-0) = 1 and exp(-log 2) = .5: 2/3 * 1 + 1/3 * .5
    assert np.exp(found) == pytest.approx(np.array([[5 / 6, 1 / 6]]), abs=1e-6)
