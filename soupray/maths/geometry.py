"""Geometry of models: lengths and angles in weight space, and how differently two models err.

Lengths and angles come from inner products of theta_i - theta_0. The comparison of errors comes
from masks of correct samples. The comparison of a soup with an ensemble comes from logits along
the segment between two models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logsumexp, softmax

from soupray.core.arrays import Float64, Labels, Logits, Mask
from soupray.core.requests import Matrix

STENCIL = np.array([-1.0, 16.0, -30.0, 16.0, -1.0]) / 12
"""Weights of five equally spaced points. The sum is the second derivative at the middle point,
times the spacing squared."""


def total_gram(grams: Mapping[str, Matrix]) -> Float64:
    """The Gram matrix over all tensors: the sum of the tensors' Gram matrices.

    Args:
        grams: for each tensor, the inner products of theta_i - theta_0, [K, K].

    Returns:
        [K, K].
    """
    total: Float64 = np.sum([np.asarray(g, np.float64) for g in grams.values()], axis=0)
    return total


def norms(gram: Float64) -> Float64:
    """The lengths |theta_i - theta_0|, [K], from the Gram matrix [K, K] of theta_i - theta_0."""
    lengths: Float64 = np.sqrt(np.diagonal(gram))
    return lengths


def distances(gram: Float64) -> Float64:
    """The distances |theta_i - theta_j|, [K, K], from the Gram matrix [K, K] of theta_i - theta_0.

    Args:
        gram: inner products of theta_i - theta_0.
    """
    own = np.diagonal(gram)
    # For equal models the sum is zero up to rounding, which may leave it just below zero.
    between: Float64 = np.sqrt(np.maximum(own[:, None] + own - 2 * gram, 0.0))
    return between


def angles(gram: Float64) -> Float64:
    """The angles between theta_i - theta_0 and theta_j - theta_0 (Model soups, section 4).

    Args:
        gram: inner products of theta_i - theta_0, [K, K].

    Returns:
        Degrees, [K, K]. NaN where one of the two models is theta_0: it has no direction.
    """
    length = norms(gram)
    with np.errstate(invalid="ignore"):
        cosine = gram / np.outer(length, length)
    # arccos near 1 loses half of the digits. Equal models get an angle of exactly 0 by this.
    cosine[np.isclose(cosine, 1.0, rtol=0, atol=1e-12)] = 1.0
    degrees: Float64 = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return degrees


def interpolation_advantage(middle: float, ends: tuple[float, float]) -> float:
    """Accuracy of the soup of two models minus the mean of their accuracies.

    Model soups, section 4.

    Args:
        middle: accuracy of the soup.
        ends: accuracies of the two models.
    """
    return middle - (ends[0] + ends[1]) / 2


def barrier(middle: float, ends: tuple[float, float]) -> float:
    """Mean accuracy of two models minus the accuracy of their soup: below 0 if averaging helps.

    This is the error barrier of linear mode connectivity (arXiv:1912.05671), measured only at the
    middle of the segment. The barrier at another point of the segment may be higher.

    Args:
        middle: accuracy of the soup.
        ends: accuracies of the two models.
    """
    return -interpolation_advantage(middle, ends)


def paired_difference(a: Mask | Float64, b: Mask | Float64) -> tuple[float, float]:
    """The difference in accuracy of two models on the same samples.

    Only samples that exactly one model gets right contribute. For this reason, the standard error
    is smaller than that of two independent shares.

    Args:
        a: which samples the first model gets right, or its value of each, 0 to 1.
        b: the same of the second model.

    Returns:
        Accuracy of `a` minus accuracy of `b`, and its standard error.
    """
    difference = a.astype(np.float64) - b
    mean = float(difference.mean())
    variance = float((difference**2).mean()) - mean**2
    return mean, float(np.sqrt(max(variance, 0.0) / len(a)))


def error_inconsistency(a: Mask, b: Mask) -> float:
    """Share of samples that exactly one of two models gets right (arXiv:2110.12899)."""
    return float((a ^ b).mean())


def conversion_rate(a: Mask, b: Mask, joint: Mask) -> float | None:
    """Share of the samples with exactly one correct model that a joint model gets right.

    arXiv:2110.12899.

    Args:
        a: which samples the first model gets right.
        b: which samples the second model gets right.
        joint: which samples their soup or ensemble gets right.

    Returns:
        The share, or None if no sample has exactly one correct model.
    """
    split = a ^ b
    return float(joint[split].mean()) if split.any() else None


def kappa(a: Mask, b: Mask) -> float | None:
    """Cohen's kappa of two models: how much their errors agree beyond chance.

    This is the "error consistency" of arXiv:2006.16736. 1 - kappa is 0 for models that err on the
    same samples, and 1 for models that err independently.

    Args:
        a: which samples the first model gets right.
        b: which samples the second model gets right.

    Returns:
        Kappa, or None if both models are right on all samples or wrong on all samples: chance
        alone then explains the agreement.
    """
    p, q = float(a.mean()), float(b.mean())
    chance = p * q + (1 - p) * (1 - q)
    if chance == 1:
        return None
    return (1 - error_inconsistency(a, b) - chance) / (1 - chance)


def cross_entropy(logits: Logits | Float64, labels: Labels, beta: float = 1.0) -> float:
    """The mean of -log softmax(beta f)_y over the samples, for logits f and labels y.

    Args:
        logits: f, [N, C].
        labels: y, [N].
        beta: factor on the logits.

    Returns:
        The mean in nats, computed in float64.
    """
    return float(cross_entropies(beta * logits.astype(np.float64), labels).mean())


def cross_entropies(logits: Logits | Float64, labels: Labels) -> Float64:
    """-log softmax(f)_y of each sample, in nats, computed in float64, [N].

    Args:
        logits: f, [N, C].
        labels: y, [N].
    """
    wide = logits.astype(np.float64)
    lost: Float64 = logsumexp(wide, axis=1) - wide[np.arange(len(labels)), labels]
    return lost


def second_derivative(values: Sequence[float], spacing: float) -> float:
    """The second derivative at the middle of five equally spaced points.

    It is exact for polynomials up to degree five.

    Args:
        values: of the function at the five points.
        spacing: distance between two neighbouring points.
    """
    return float(STENCIL @ np.asarray(values, np.float64)) / spacing**2


def logit_variance(logits: Logits, difference: Logits, beta: float) -> float:
    """E_x Var_{Y ~ softmax(beta f(x))} [df_Y(x)].

    Args:
        logits: f, [N, C].
        difference: df, [N, C].
        beta: factor on the logits f.
    """
    p = softmax(beta * logits.astype(np.float64), axis=1)
    df = difference.astype(np.float64)
    mean = (p * df).sum(axis=1, keepdims=True)
    return float((p * (df - mean) ** 2).sum(axis=1).mean())


def predicted_difference(along: Sequence[Logits], labels: Labels, beta: float) -> float:
    """The approximation of L_soup - L_ensemble by Model soups, section 4, at a = 1/2.

        a (1 - a) / 2 * ( -d2/da2 L_soup(a) + beta^2 E_x Var_{Y ~ softmax(beta f_a(x))} [df_Y(x)] )

    with df = f(theta_1) - f(theta_0). L(a) is the cross-entropy of beta f_a.

    Args:
        along: f_a, the logits [N, C] of theta_0 + a (theta_1 - theta_0), for a = 0, 1/4, 1/2, 3/4
            and 1.
        labels: [N].
        beta: factor on the logits.

    Returns:
        The difference in nats.
    """
    losses = [cross_entropy(logits, labels, beta) for logits in along]
    curvature = second_derivative(losses, 1 / 4)
    variance = logit_variance(along[2], along[4] - along[0], beta)
    return (beta**2 * variance - curvature) / 8


def measured_difference(along: Sequence[Logits], labels: Labels, beta: float) -> float:
    """L_soup - L_ensemble at a = 1/2: below 0 where the soup is better than the ensemble.

    The soup is the mean of the weights. The ensemble is the mean of the logits.

    Args:
        along: the logits [N, C] at five points, as for `predicted_difference`.
        labels: [N].
        beta: factor on the logits.

    Returns:
        The difference in nats.
    """
    ensemble = (along[0].astype(np.float64) + along[4]) / 2
    return cross_entropy(along[2], labels, beta) - cross_entropy(ensemble, labels, beta)
