"""By how much a model may be worse than the best one: the bound, its level, small samples."""

import functools

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln

from soupray.maths.excess import excess_bounds


def plain(values: np.ndarray, confidence: float) -> list[float]:
    """The same by loops over pairs and samples, with SciPy's own interval of a share."""
    tail = (1 - confidence) / (len(values) - 1)
    found = []
    for k, mine in enumerate(values):
        bounds = []
        for j, other in enumerate(values):
            if j == k:
                continue
            gaps = [b - a for a, b in zip(mine.tolist(), other.tolist(), strict=True)]
            differ = sum(gap != 0 for gap in gaps)
            test = stats.binomtest(differ, len(gaps))
            share = test.proportion_ci(confidence_level=1 - 2 * tail, method="exact").high
            z = stats.norm.ppf(1 - tail)
            bounds.append(sum(gaps) / len(gaps) + z * (share / len(gaps)) ** 0.5)
        found.append(min(1.0, max(0.0, *bounds)))
    return found


@pytest.mark.parametrize(("models", "n"), [(2, 10), (3, 40), (9, 150)])
def test_the_bounds_are_those_of_a_plain_loop(models, n):
    draw = np.random.default_rng(models)
    shares = draw.uniform(0.3, 1, (models, 1))
    values = (draw.random((models, n)) < shares).astype(float)
    for confidence in (0.8, 0.999):
        found = excess_bounds(values, confidence)
        assert found == pytest.approx(plain(values, confidence), rel=1e-9)


def test_by_hand_two_models_that_never_differ_are_not_known_to_be_equal():
    same = np.array([[1, 0, 1, 1], [1, 0, 1, 1]], float)
    # 0 of 4 samples differ: the share s of such samples has (1 - s) ** 4 >= .05 with 95 %.
    share = 1 - 0.05**0.25
    bound = 1.6448536269514722 * (share / 4) ** 0.5
    assert excess_bounds(same, 0.95) == pytest.approx([bound, bound], rel=1e-9)
    assert excess_bounds(same[:1], 0.95).tolist() == [0.0]  # the only one is the best one
    apart = np.array([[0] * 100, [1] * 100], float)
    assert excess_bounds(apart, 0.95).tolist() == [1.0, 0.0]


def test_a_bound_is_to_the_truly_best_model_and_not_only_to_the_one_that_looks_best():
    a = [1] * 90 + [0] * 10
    b = [0] * 12 + [1] * 88  # looks worse than c, but differs from a on more samples
    c = [1] * 89 + [0] * 11
    with_b = excess_bounds(np.array([a, b, c], float), 0.95)
    tail = 0.025
    share = stats.beta.isf(tail, 22 + 1, 100 - 22)  # a and b differ on 12 + 10 samples
    to_b = (88 - 90) / 100 + stats.norm.isf(tail) * (share / 100) ** 0.5
    share = stats.beta.isf(tail, 1 + 1, 100 - 1)
    to_c = -0.01 + stats.norm.isf(tail) * (share / 100) ** 0.5
    assert to_b > to_c
    assert with_b[0] == pytest.approx(to_b, rel=1e-9)


def outcomes(n: int) -> list[tuple[int, int]]:
    """The samples that only one of two models gets right, for each of the two."""
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


@functools.cache
def bounds(n: int, tail: float) -> np.ndarray:
    """The bound of the first model for each outcome."""
    found = []
    for b, c in outcomes(n):
        best, this = [1] * b + [0] * c, [0] * b + [1] * c
        pair = np.array([this, best], float)
        values = np.concatenate([pair, np.ones((2, n - b - c))], axis=1)
        found.append(excess_bounds(values, 1 - tail)[0])
    return np.array(found)


def miss(n: int, tail: float, p: float, q: float) -> float:
    """The probability that the bound is below the truth, from all outcomes.

    A sample is right only for the best model with probability p, only for this one with q.
    """
    b, c = np.array(outcomes(n)).T
    ways = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(n - b - c + 1)
    odds = np.exp(ways + b * np.log(p) + c * np.log(q) + (n - b - c) * np.log1p(-p - q))
    assert odds.sum() == pytest.approx(1)
    return float(odds[bounds(n, tail) < p - q].sum())


@pytest.mark.parametrize("n", [10, 25, 50])
@pytest.mark.parametrize("models", [3, 21])
def test_the_bound_fails_no_more_often_than_it_says_on_few_samples_too(n, models):
    tail = 0.05 / (models - 1)
    shares = [1e-6, 1e-3, 0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]
    worst = max(miss(n, tail, p, q) for p in shares for q in shares if p + q < 1)
    assert 0.1 * tail < worst <= tail  # nor is it idle


def test_of_a_graded_metric_values_count_by_their_squares():
    mine, other = np.array([0.5, 1.0, 0.0, 0.25]), np.array([1.0, 0.5, 0.25, 0.25])
    square = 0.25 + 0.25 + 0.0625
    share = stats.beta.ppf(0.95, square + 1, 4 - square)
    expected = 0.25 / 4 + stats.norm.ppf(0.95) * (share / 4) ** 0.5
    np.testing.assert_allclose(excess_bounds(np.array([mine, other]), 0.95)[0], expected, 1e-9)
