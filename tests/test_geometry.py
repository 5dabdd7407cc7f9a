"""Geometry and diversity of models: every number worked out by hand."""

import math

import numpy as np
import pytest

from soupray.maths import geometry as g


def mask(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def test_angles_and_norms_come_from_inner_products_summed_over_tensors():
    # theta - theta_0: (3, 0 | 4), (0, 5 | 0), (-3, 0 | -4): lengths 5; at right angles; opposed
    grams = {
        "a": ((9.0, 0.0, -9.0), (0.0, 25.0, 0.0), (-9.0, 0.0, 9.0)),
        "b": ((16.0, 0.0, -16.0), (0.0, 0.0, 0.0), (-16.0, 0.0, 16.0)),
    }
    gram = g.total_gram(grams)
    assert g.norms(gram).tolist() == [5, 5, 5]
    assert g.angles(gram) == pytest.approx(np.array([[0, 90, 180], [90, 0, 90], [180, 90, 0]]))


def test_the_angle_of_a_half_way_direction_is_45_degrees_whatever_the_lengths():
    gram = np.array([[4.0, 2.0], [2.0, 2.0]])  # (2, 0) and (1, 1)
    assert g.angles(gram)[0, 1] == pytest.approx(45)


def test_a_model_that_is_theta_0_has_no_angle():
    found = g.angles(np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert np.isnan(found).tolist() == [[False, True], [True, True]]


def test_equal_models_are_parallel_to_the_last_digit():
    tenth = 0.1 + 0.2
    assert g.angles(np.full((2, 2), tenth)).tolist() == [[0, 0], [0, 0]]


def test_the_advantage_of_a_mean_is_over_the_mean_of_the_ends_and_a_barrier_is_its_opposite():
    assert g.interpolation_advantage(0.9, (0.8, 0.6)) == pytest.approx(0.2)
    assert g.barrier(0.5, (0.8, 0.6)) == pytest.approx(0.2)
    assert g.barrier(0.7, (0.8, 0.6)) == pytest.approx(0)


def test_the_error_of_a_paired_difference_counts_discordant_samples_only():
    # 10 samples: 3 only a, 1 only b. Mean .2; variance of (-1, 0, 1) is .4 - .04 = .36
    a, b = mask("1111110000"), mask("1110001000")
    difference, error = g.paired_difference(a, b)
    assert difference == pytest.approx(0.2)
    assert error == pytest.approx(math.sqrt(0.36 / 10))
    assert g.paired_difference(a, a) == (0, 0)


def test_error_inconsistency_and_conversion_rate_by_counting():
    a, b, joint = mask("11110000"), mask("11001100"), mask("11101001")
    assert g.error_inconsistency(a, b) == 4 / 8  # samples 2, 3, 4, 5
    assert g.conversion_rate(a, b, joint) == 2 / 4  # right on 2 and 4
    assert g.conversion_rate(a, a, joint) is None


def test_kappa_is_0_for_independent_errors_1_for_the_same_and_minus_1_for_opposite_ones():
    a, b = mask("1100"), mask("1010")
    assert g.kappa(a, b) == pytest.approx(0)
    assert g.kappa(a, a) == pytest.approx(1)
    assert g.kappa(a, ~a) == pytest.approx(-1)
    assert g.kappa(mask("1111"), mask("1111")) is None
    # agree on 3 of 4; chance .75 * .5 + .25 * .5 = .5
    assert g.kappa(mask("1110"), mask("1100")) == pytest.approx((0.75 - 0.5) / 0.5)


def test_cross_entropy_of_a_known_distribution():
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert g.cross_entropy(logits, np.array([1, 0])) == pytest.approx(expected)
    # beta 2 squares and normalises: .75^2 / (.75^2 + .25^2) = .9
    expected = -(math.log(0.9) + math.log(0.5)) / 2
    assert g.cross_entropy(logits, np.array([1, 0]), beta=2) == pytest.approx(expected)


def test_the_second_derivative_is_exact_for_polynomials_up_to_degree_five():
    at = [0, 0.25, 0.5, 0.75, 1]
    values = [3 * x**5 - x**4 + 2 * x**2 - x + 7 for x in at]
    # 60 x^3 - 12 x^2 + 4 at 1/2
    assert g.second_derivative(values, 0.25) == pytest.approx(60 / 8 - 12 / 4 + 4)


def test_the_variance_of_the_difference_of_logits_is_under_the_softmax():
    logits = np.log(np.array([[0.25, 0.75]], np.float32))
    # df is 4 or 0: mean 1, variance .25 * 16 - 1 = 3. The larger beta, the surer: at 2, p = .1
    assert g.logit_variance(logits, np.array([[4.0, 0.0]]), beta=1) == pytest.approx(3)
    assert g.logit_variance(logits, np.array([[4.0, 0.0]]), beta=2) == pytest.approx(1.6 - 0.16)


def segment(f) -> list[np.ndarray]:
    """Logits [1, 2] along a segment: (f(a), 0)."""
    return [np.array([[f(a), 0.0]]) for a in (0, 0.25, 0.5, 0.75, 1)]


def test_where_logits_are_linear_the_soup_is_the_ensemble_and_the_prediction_says_so():
    """Then d2/da2 L is beta^2 E Var df exactly: the two terms cancel."""
    along = segment(lambda a: 0.3 + 0.2 * a)
    for beta in (1.0, 2.5):
        assert g.measured_difference(along, np.array([0]), beta) == pytest.approx(0, abs=1e-12)
        assert g.predicted_difference(along, np.array([0]), beta) == pytest.approx(0, abs=1e-6)


def test_the_prediction_for_logits_that_bend():
    """f(a) = c a (1 - a): the ends are 0, so that df = 0, and the ensemble's loss is log 2.

    The soup's logit is c / 4. With L(f) = log(1 + e^-f), L' = -1/2 and f'' = -2c near f = 0, so
    that -L''(a) / 8 = -c / 8 to first order in c; and measured is L(c / 4) - log 2 = -c / 8.
    """
    c = 0.01
    along = segment(lambda a: c * a * (1 - a))
    measured = g.measured_difference(along, np.array([0]), 1.0)
    assert measured == pytest.approx(math.log(1 + math.exp(-c / 4)) - math.log(2), abs=1e-12)
    assert measured == pytest.approx(-c / 8, rel=0.01)
    assert g.predicted_difference(along, np.array([0]), 1.0) == pytest.approx(-c / 8, rel=0.01)


def test_the_ratio_of_predicted_to_measured_tends_to_one_as_models_approach():
    off = []
    for step in (1.0, 0.1, 0.01):
        along = segment(lambda a, s=step: 0.5 + s * a + (s * a) ** 2)
        predicted = g.predicted_difference(along, np.array([1]), 1.0)
        off.append(abs(predicted / g.measured_difference(along, np.array([1]), 1.0) - 1))
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.01
