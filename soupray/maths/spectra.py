"""How fast a model's answers change along a path between two inputs: power spectra.

"Spectral Bias in Practice" (arXiv:2110.02424). Its released code takes the softmax
over all axes at once; here it is over classes.
"""

from __future__ import annotations

import numpy as np

from soupray.core.arrays import Float64


def power_of(series: Float64) -> Float64:
    """Return the power of each frequency, [P, T // 2]: |FFT|^2 of 1, 2, ... cycles in a path.

    The mean (0 cycles) is left out.

    Args:
        series: |p(t) - p(0)| at T evenly spaced points of P paths, [P, T].
    """
    power: Float64 = np.abs(np.fft.rfft(series, axis=1)[:, 1:]) ** 2
    return power


def high_share(power: Float64, cut: int) -> Float64:
    """Return the share of the power at `cut` cycles and more, [P]; 0 for a path without change.

    Args:
        power: of 1, 2, ... cycles, [P, F].
        cut: the first frequency that counts as high, in cycles for each path.
    """
    total = power.sum(axis=1)
    share: Float64 = power[:, cut - 1 :].sum(axis=1) / np.where(total > 0, total, 1.0)
    return share


def mean_interval(values: Float64, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the mean of values and its 95 % interval: bootstrap of the values.

    Args:
        values: one for each path, [P].
        resamples: number of resamples.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
