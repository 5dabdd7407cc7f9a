"""How models lie to each other, in weights and in what they get right.

Inner products of theta_i - theta_0 give lengths and angles; masks of right answers give how
differently two models err; logits along a segment give how a soup compares to an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from soupray.core.requests import Matrix

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

STENCIL = np.array([-1.0, 16.0, -30.0, 16.0, -1.0]) / 12
"""Second derivative at the middle of five equally spaced points, times the spacing squared."""


def total_gram(grams: Mapping[str, Matrix]) -> Array:
    """[K, K]: inner products of theta_i - theta_0 over all tensors, from those of each tensor."""
    total: Array = np.sum([np.asarray(g, np.float64) for g in grams.values()], axis=0)
    return total


def norms(gram: Array) -> Array:
    """[K]: |theta_i - theta_0|, of a Gram matrix [K, K]."""
    lengths: Array = np.sqrt(np.diagonal(gram))
    return lengths


def distances(gram: Array) -> Array:
    """[K, K]: |theta_i - theta_j|, of a Gram matrix [K, K] of theta_i - theta_0."""
    own = np.diagonal(gram)
    # Of equal models, the three terms cancel but for their last digits.
    between: Array = np.sqrt(np.maximum(own[:, None] + own - 2 * gram, 0.0))
    return between


def angles(gram: Array) -> Array:
    """[K, K]: degrees between theta_i - theta_0 and theta_j - theta_0 (Model soups, section 4).

    NaN where one of the two is theta_0 itself: no direction.
    """
    length = norms(gram)
    with np.errstate(invalid="ignore"):
        cosine = gram / np.outer(length, length)
    # arccos near 1 loses half of the digits: equal models are made exactly parallel.
    cosine[np.isclose(cosine, 1.0, rtol=0, atol=1e-12)] = 1.0
    degrees: Array = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return degrees


def interpolation_advantage(middle: float, ends: tuple[float, float]) -> float:
    """Accuracy of the mean of two models minus the mean of their accuracies (Model soups, s. 4)."""
    return middle - (ends[0] + ends[1]) / 2


def barrier(middle: float, ends: tuple[float, float]) -> float:
    """Mean accuracy of two models minus that of their mean; below 0 if averaging helps.

    The error barrier of linear mode connectivity (arXiv:1912.05671), at the middle of the segment
    only: the highest one on the way may be higher.
    """
    return -interpolation_advantage(middle, ends)


def paired_difference(a: Mask, b: Mask) -> tuple[float, float]:
    """(accuracy of `a` minus that of `b`, its standard error) on the same samples; masks [N].

    Only samples on which exactly one is right count: the error is smaller than that of the
    difference of two independent shares.
    """
    difference = a.astype(np.float64) - b
    mean = float(difference.mean())
    variance = float((difference**2).mean()) - mean**2
    return mean, float(np.sqrt(max(variance, 0.0) / len(a)))


def error_inconsistency(a: Mask, b: Mask) -> float:
    """Share of samples that exactly one of two models gets right (arXiv:2110.12899)."""
    return float((a ^ b).mean())


def conversion_rate(a: Mask, b: Mask, joint: Mask) -> float | None:
    """Of the samples that exactly one of two models gets right, the share that `joint` does.

    arXiv:2110.12899; None if there are no such samples.
    """
    split = a ^ b
    return float(joint[split].mean()) if split.any() else None


def kappa(a: Mask, b: Mask) -> float | None:
    """Cohen's kappa of being right: agreement beyond what two such accuracies give by chance.

    The "error consistency" of arXiv:2006.16736. 1 - kappa, its complement, is 0 for models that
    err on the same samples and 1 for models that err independently. None if both are right on all
    samples, or both wrong on all: chance explains everything then.
    """
    p, q = float(a.mean()), float(b.mean())
    chance = p * q + (1 - p) * (1 - q)
    if chance == 1:
        return None
    return (1 - error_inconsistency(a, b) - chance) / (1 - chance)


def cross_entropy(logits: Logits, labels: Labels, beta: float = 1.0) -> float:
    """Mean -log softmax(beta f)_y of logits f [N, C], in nats."""
    scaled = beta * logits.astype(np.float64)
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


def second_derivative(values: Sequence[float], spacing: float) -> float:
    """At the third of five equally spaced points; exact for polynomials up to degree five."""
    return float(STENCIL @ np.asarray(values, np.float64)) / spacing**2


def logit_variance(logits: Logits, difference: Logits, beta: float) -> float:
    """E_x Var_{Y ~ softmax(beta f(x))} [df_Y(x)] of logits f and df, both [N, C]."""
    p = softmax(beta * logits.astype(np.float64), axis=1)
    df = difference.astype(np.float64)
    mean = (p * df).sum(axis=1, keepdims=True)
    return float((p * (df - mean) ** 2).sum(axis=1).mean())


def predicted_difference(along: Sequence[Logits], labels: Labels, beta: float) -> float:
    """L_soup - L_ensemble at the middle, as Model soups, section 4, approximates it.

    `along`: logits [N, C] of theta_0 + a (theta_1 - theta_0) at a = 0, 1/4, 1/2, 3/4, 1;

        a (1 - a) / 2 * ( -d2/da2 L_soup(a) + beta^2 E_x Var_{Y ~ softmax(beta f_a(x))} [df_Y(x)] )

    with df = f(theta_1) - f(theta_0) and L(a) the cross-entropy of beta f_a.
    """
    losses = [cross_entropy(logits, labels, beta) for logits in along]
    curvature = second_derivative(losses, 1 / 4)
    variance = logit_variance(along[2], along[4] - along[0], beta)
    return (beta**2 * variance - curvature) / 8


def measured_difference(along: Sequence[Logits], labels: Labels, beta: float) -> float:
    """L_soup - L_ensemble at the middle: losses of the mean of weights and of the mean of logits.

    Below 0 where the soup is the better of the two. `along`: as for `predicted_difference`.
    """
    ensemble = (along[0].astype(np.float64) + along[4]) / 2
    return cross_entropy(along[2], labels, beta) - cross_entropy(ensemble, labels, beta)
