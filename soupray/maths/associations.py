"""Do two numbers of the same things go together? Rank correlation, with a permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from soupray.maths.objectives import rank_correlation

PERMUTATIONS = 10_000


class Association(NamedTuple):
    """Spearman's rank correlation.

    Attributes:
        rho: the correlation.
        p: two-sided p-value of a permutation test.
        n: number of pairs.
    """

    rho: float
    p: float
    n: int


def association(xs: Sequence[float], ys: Sequence[float], seed: int = 0) -> Association | None:
    """Return how two numbers go together; None with fewer than four pairs, or without variation.

    p is the share of PERMUTATIONS random orders, and the one at hand, whose correlation is at least
    as far from 0.

    Args:
        xs: one number of each thing.
        ys: the other number.
        seed: of the permutations.
    """
    from scipy.stats import rankdata

    x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rho = rank_correlation(x, y)
    rng = np.random.default_rng(seed)
    ranks = [rankdata(v) for v in (x, y)]
    a, b = (np.asarray(r, np.float64) - np.mean(r) for r in ranks)
    length = np.sqrt((a**2).sum() * (b**2).sum())
    orders = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    found = np.abs(orders @ a / length)
    # Sums in another order differ in their last bits.
    p = (1 + int((found >= abs(rho) - 1e-12).sum())) / (PERMUTATIONS + 1)
    return Association(rho=rho, p=p, n=len(x))
