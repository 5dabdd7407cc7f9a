"""Effective robustness: how far a model is above the line of accuracy on ID data and under shift.

Taori et al. (arXiv:2007.00644) fit the line through the logits of standard models'
accuracies. The effective robustness of a model is its accuracy under the shift minus what the line
expects at its ID accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from soupray.core.arrays import Float64, Mask

RESAMPLES = 1000
"""Bootstrap resamples."""

AT_A_TIME = 2**22
"""Counts of resampled positions in memory at a time: 32 MB."""


class Line(NamedTuple):
    """logit(accuracy under shift) = slope * logit(ID accuracy) + intercept.

    Attributes:
        slope, intercept: of the least-squares line.
        r2: share of the variance of the shift's logits that the line explains.
    """

    slope: float
    intercept: float
    r2: float

    def expected(self, on_id: Float64) -> Float64:
        """Return the accuracy under shift that the line expects at the logits of ID accuracies."""
        found: Float64 = expit(self.slope * on_id + self.intercept)
        return found


def fit_line(on_id: Float64, shifted: Float64) -> Line | None:
    """Return the least-squares line through logits, or None if no line is determined.

    Args:
        on_id: logits of the ID accuracies, [M].
        shifted: logits of the accuracies under the shift, [M].
    """
    if len(on_id) < 3 or np.ptp(on_id) < 1e-9:
        return None
    x, y = on_id - on_id.mean(), shifted - shifted.mean()
    slope = float((x * y).sum() / (x * x).sum())
    rest = float(((y - slope * x) ** 2).sum())
    total = float((y * y).sum())
    r2 = 1 - rest / total if total > 0 else 1.0
    return Line(slope, float(shifted.mean()) - slope * float(on_id.mean()), r2)


def logits_of(shares: Float64, n: int) -> Float64:
    """Return the logits of accuracies of any shape; see `metrics.logit`.

    Args:
        shares: accuracies.
        n: number of samples, which limits the logits of 0 and 1.
    """
    clipped = np.clip(shares, 0.5 / n, 1 - 0.5 / n)
    found: Float64 = np.log(clipped / (1 - clipped))
    return found


def resampled(right: Sequence[Mask], resamples: int, seed: int) -> Float64:
    """Return accuracies of models on bootstrap resamples of the samples, the same for all models.

    Masks of equal length are resampled at equal positions for equal seeds: splits that are changes
    of the same samples stay paired.

    Args:
        right: for each of M models, which of N samples it gets right.
        resamples: number of resamples, B.
        seed: of the draws.

    Returns:
        [B, M].
    """
    masks = np.stack(right).astype(np.float64)
    n = masks.shape[1]
    draw = np.random.default_rng([seed, n])
    found = np.empty((resamples, len(masks)))
    step = max(1, AT_A_TIME // n)
    for at in range(0, resamples, step):
        count = min(step, resamples - at)
        times = draw.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        found[at : at + count] = times @ masks.T / n
    return found


def interval(values: Float64) -> tuple[float, float]:
    """Return the 2.5 % and the 97.5 % quantile of bootstrap values, [B]."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
