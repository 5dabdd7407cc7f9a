"""How differently two models answer (arXiv:2110.12899): predictions, features, confidence.

Error inconsistency, Cohen's kappa and the conversion rate are in `geometry.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET, UnsetType
from scipy.special import log_softmax

from soupray.core.arrays import Float32, Float64, Indices, Labels, Logits
from soupray.core.records import Objective
from soupray.maths.metrics import Z

LEAST = 25
"""Samples of a bucket: fewer are joined with the next bucket, because their share says nothing."""


def prediction_divergence(a: Logits, b: Logits) -> float:
    """The mean over samples of (KL(p || q) + KL(q || p)) / 2, in nats (arXiv:2110.12899).

    Args:
        a: logits of a model, p = softmax(a), [N, C].
        b: logits of another model, q = softmax(b), [N, C].
    """
    log_p, log_q = (log_softmax(z.astype(np.float64), axis=1) for z in (a, b))
    # KL(p || q) + KL(q || p) = sum (p - q) (log p - log q)
    both = ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum(axis=1)
    return float(both.mean()) / 2


def cka(a: Float32, b: Float32) -> float | None:
    """Linear centred kernel alignment of the features of two models on the same samples.

        |B^T A|_F^2 / (|A^T A|_F |B^T B|_F), columns of A and B centred

    Kornblith et al. 2019 (arXiv:1905.00414), as in arXiv:2110.12899.

    Args:
        a: features of a model, [N, D].
        b: features of another model, [N, E].

    Returns:
        From 0 to 1, or None if the features of a model are the same for all samples.
    """
    x, y = (z.astype(np.float64) - z.mean(axis=0, dtype=np.float64) for z in (a, b))
    if len(x) < x.shape[1] + y.shape[1]:  # the same numbers from [N, N]
        k, m = x @ x.T, y @ y.T
        cross, own, other = (k * m).sum(), (k * k).sum(), (m * m).sum()
    else:
        cross, own, other = (float((z**2).sum()) for z in (y.T @ x, x.T @ x, y.T @ y))
    scale = float(np.sqrt(own * other))
    return None if scale == 0 else float(cross) / scale


def confidence_angles(first: Float64, second: Float64) -> Float64:
    """The angle of each sample in the plane of two models' confidences, in degrees, [N].

    arctan2(first, second), from 0 to 90: 45 where both models are equally sure of the right class,
    more where the first model is surer. Far from 45, one of the two specialises
    (arXiv:2110.12899).

    Args:
        first: probability that the first model gives the right class, [N].
        second: the same of the second model, [N].
    """
    angles: Float64 = np.degrees(np.arctan2(first, second))
    return angles


def losses_of(
    outputs: Logits | Float64, labels: Labels, objective: Objective | UnsetType
) -> Float64:
    """The loss of each sample, [N]; its mean is `metrics.nll`.

    Args:
        outputs: of a model, [N, C].
        labels: classes [N], or targets [N, C].
        objective: what they mean; unset: one class.
    """
    wide = outputs.astype(np.float64)
    if objective is UNSET:
        found: Float64 = -log_softmax(wide, axis=1)[np.arange(len(labels)), labels]
    elif objective.kind == "regression":
        found = ((wide - labels) ** 2).mean(axis=1)
    else:
        found = np.logaddexp(0, np.where(labels == 1, -wide, wide)).mean(axis=1)
    return found


class Bucket(NamedTuple):
    """Samples whose value is in one range.

    Attributes:
        low, high: the smallest and the largest value in it.
        rows: positions of the samples, in the order of their values.
    """

    low: float
    high: float
    rows: Indices


class Buckets(NamedTuple):
    """Buckets in the order of their values, and how many were asked for."""

    buckets: tuple[Bucket, ...]
    asked: int


def buckets_of(values: Float64, count: int, least: int = LEAST) -> Buckets:
    """Return samples in buckets of almost equal size, by their values.

    Equal values are never in two buckets: a bucket that would begin with the value of the one
    before joins it. A bucket of fewer than `least` samples is joined with the next one, the last
    one with the one before.

    Args:
        values: of the samples, [N].
        count: number of buckets, before any are joined.
        least: fewest samples in a bucket.
    """
    order = np.argsort(values, kind="stable")
    edges = {int(edge) for edge in np.linspace(0, len(order), count + 1).round()}
    starts = sorted(edges - {0, len(order)})
    parts: list[Indices] = []
    for part in np.split(order, starts):
        # The first of its values may be equal to the last one before: it belongs there.
        same = values[part] == values[parts[-1][-1]] if parts else np.zeros(len(part), bool)
        if same.any():
            parts[-1] = np.concatenate([parts[-1], part[same]])
        if not same.all():
            parts.append(part[~same])
    kept: list[Indices] = []
    for part in parts:
        if kept and len(kept[-1]) < least:
            kept[-1] = np.concatenate([kept[-1], part])
        else:
            kept.append(part)
    if len(kept) > 1 and len(kept[-1]) < least:
        kept[-2:] = [np.concatenate(kept[-2:])]
    made = (Bucket(float(values[p[0]]), float(values[p[-1]]), p) for p in kept)
    return Buckets(tuple(made), count)


def paired_mean(differences: Float64) -> tuple[float, float, float]:
    """The mean of differences by sample, with its 95 % interval (normal).

    Args:
        differences: [N].
    """
    mean = float(differences.mean())
    half = Z * float(differences.std()) / float(np.sqrt(len(differences)))
    return mean, mean - half, mean + half


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r, or None with fewer than three points or no variation."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return None
    return float(np.corrcoef(a, b)[0, 1])
