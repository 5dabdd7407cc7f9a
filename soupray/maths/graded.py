"""Graded values: a value from 0 to 1 for each sample, in whole units, and what chance does to them.

Sums of units are exact integers, in any order: decisions about them are those of a plain loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Float64, Logits, Units
from soupray.core.records import UNITS

SEED = 0
"""Of resampled intervals and tests: equal values have equal ones, on every machine."""

RESAMPLES = 1_000
"""Samples of the bootstrap. Its interval ends at the 25th and the 975th of their means."""

FLIPS = 9_999
"""Random flips of signs, with the observed one 10 000: the smallest p-value is 0.0001."""

EXACT_WORK = 2**26
"""The largest number of additions for an exact p-value: a tenth of a second."""


def in_units(values: Float64) -> Units:
    """Values from 0 to 1 as whole numbers of units, to the nearest one, halves upwards, [N]."""
    return np.floor(values * UNITS + 0.5).astype(np.uint16)


def overlap(outputs: Logits, targets: npt.NDArray[Any]) -> Units:
    """The intersection over union of each predicted mask and its target, in units, [N].

    A pixel is predicted where its logit is above 0. Where both masks are empty the value is 1. It
    is computed in integers, and rounded to the nearest unit, halves upwards.

    Args:
        outputs: a logit for each pixel, [N, P].
        targets: 0 or 1, [N, P].
    """
    both, said, there = _pixels(outputs, targets)
    union = said + there - both
    rounded = (2 * UNITS * both + union) // np.maximum(2 * union, 1)
    return np.where(union == 0, UNITS, rounded).astype(np.uint16)


def dice(outputs: Logits, targets: npt.NDArray[Any]) -> float:
    """The mean over images of the Dice coefficient, 2 |A and B| / (|A| + |B|); 1 if both are empty.

    Args:
        outputs: a logit for each pixel, [N, P].
        targets: 0 or 1, [N, P].
    """
    both, said, there = _pixels(outputs, targets)
    sizes = said + there
    return float(np.where(sizes == 0, 1.0, 2 * both / np.maximum(sizes, 1)).mean())


def _pixels(outputs: Logits, targets: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], ...]:
    """For each image: the pixels in both masks, in the predicted one, and in the target, [N]."""
    said, there = outputs > 0, targets == 1
    return tuple(mask.sum(axis=1, dtype=np.int64) for mask in (said & there, said, there))


def mean_interval(values: Float64, level: float = 0.95) -> tuple[float, float]:
    """The interval of a mean by the percentile bootstrap (Efron 1979), with a fixed seed.

    Args:
        values: [N].
        level: confidence level.

    Returns:
        (low, high).
    """
    draw, n = np.random.default_rng(SEED), len(values)
    step = max(1, 2**22 // n)  # 32 MiB of values at a time
    means = [
        values[draw.integers(n, size=(min(step, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p(differences: npt.NDArray[np.int64]) -> float:
    """The two-sided p-value of a paired permutation test: each difference may have either sign.

    If two models are equally good, exchanging their values of a sample changes nothing. p is the
    share of all exchanges whose sum is at least as far from 0 as the observed one (Fisher 1935,
    section 21). For differences of one size this is McNemar's exact test. It is exact where that
    takes at most EXACT_WORK additions; else FLIPS random exchanges are drawn with a fixed seed, and
    the observed one is counted among them (Phipson and Smyth 2010).

    Args:
        differences: of the values of two models, [N], in units.
    """
    apart = np.abs(differences[differences != 0]).astype(np.int64)
    if not len(apart):
        return 1.0
    seen = abs(int(differences.sum()))
    apart, seen = apart // (unit := int(np.gcd.reduce(apart))), seen // unit
    if len(apart) * (2 * int(apart.sum()) + 1) <= EXACT_WORK:
        return _exact(apart, seen)
    draw, reached = np.random.default_rng(SEED), 0
    step = max(1, 2**22 // len(apart))
    for start in range(0, FLIPS, step):
        size = (min(step, FLIPS - start), len(apart))
        # Sums of integers below 2 ** 53 are exact in float64, in any order.
        sums = (2.0 * draw.integers(2, size=size, dtype=np.int8) - 1) @ apart.astype(np.float64)
        reached += int((np.abs(sums) >= seen).sum())
    return (reached + 1) / (FLIPS + 1)


def _exact(apart: npt.NDArray[np.int64], seen: int) -> float:
    """The probability that a sum of `apart` with random signs is at least `seen` from 0."""
    most = int(apart.sum())
    odds = np.zeros(2 * most + 1)  # of each sum from -most to most
    odds[most] = 1.0
    reach = 0
    for size in map(int, apart):
        at = slice(most - reach - size, most + reach + size + 1)
        window = np.zeros(2 * (reach + size) + 1)
        window[: 2 * reach + 1] += odds[most - reach : most + reach + 1] / 2
        window[2 * size :] += odds[most - reach : most + reach + 1] / 2
        odds[at], reach = window, reach + size
    if seen == 0:
        return 1.0
    return min(1.0, float(odds[: most - seen + 1].sum() + odds[most + seen :].sum()))
