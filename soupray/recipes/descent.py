"""Gradient descent with Adam on the coefficients of a soup, for learned soups.

The loss is mean CE(beta * f(x; sum_i softmax(w)_i theta_i), y) on held-out data. The evaluator
returns the gradient with respect to the coefficients; the chain rule gives the gradients with
respect to w and log beta.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from soupray.core.arrays import Float64
from soupray.core.candidates import QUANTUM, LayerSoup, quantised
from soupray.core.ports import Selection
from soupray.core.requests import Gradient, Slope

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Parameters of Adam, as in the released code of Model soups, which uses no weight decay."""


class Point(NamedTuple):
    """The end of the descent: w [groups, K], beta and the last loss."""

    w: Float64
    beta: float
    loss: float

    @property
    def shares(self) -> Float64:
        """The coefficients [groups, K]; each row sums to one."""
        return _softmax(self.w)


def descend(
    selection: Selection,
    groups: Sequence[tuple[str, ...]],
    *,
    lr: float,
    steps: int,
    batch_size: int,
) -> Point:
    """Optimise the coefficients of the soup on held-out data.

    Args:
        selection: the pool, and gradients on held-out data.
        groups: names of the tensors that share a row of coefficients; [()] means all tensors.
        lr: learning rate of Adam.
        steps: number of steps. Each pass over the held-out data is in another order.
        batch_size: samples per step.
    """
    pool, n = selection.pool.checkpoints, selection.pool.ingredients[0].held_out.n
    whole = list(groups) == [()]
    w, log_beta = np.zeros((len(groups), len(pool))), 0.0  # beta stays positive
    adam = Adam(lr, w.size + 1)
    loss = float("nan")
    for rows in batches(n, batch_size, steps):
        soup = soup_at(pool, [] if whole else groups, w)
        beta = math.exp(log_beta)
        (slope,) = selection.measure([Gradient(soup=soup, beta=beta, rows=rows)])
        step = adam.step(np.append(by_w(slope, w, whole), slope.beta * beta))
        w, log_beta = w + step[:-1].reshape(w.shape), log_beta + float(step[-1])
        loss = slope.loss
    return Point(w, round(math.exp(log_beta), 6), round(loss, 6))


def batches(n: int, batch_size: int, steps: int) -> Iterator[tuple[int, ...]]:
    """Yield the rows of each step, sorted.

    Args:
        n: number of held-out samples.
        batch_size: samples per step.
        steps: number of steps. Each pass over the samples is in another order.
    """
    generator = random.Random(0)  # noqa: S311 - not a secret
    starts = range(0, n, batch_size)
    for number in range(steps):
        start = starts[number % len(starts)]
        if start == 0:
            order = generator.sample(range(n), n)
        yield tuple(sorted(order[start : start + batch_size]))


def soup_at(pool: list[str], groups: Sequence[tuple[str, ...]], w: Float64) -> LayerSoup:
    """Return the soup at w.

    Args:
        pool: digests of the K checkpoints.
        groups: names of the tensors of each row; empty for one row for all tensors.
        w: [groups, K] values before the softmax.
    """
    rows = [quantised(row) for row in _softmax(w)]
    return LayerSoup(
        checkpoints=tuple(pool),
        layers=tuple(zip(groups, rows, strict=True)) if groups else (),
        rest=rows[0],
        denominator=QUANTUM,
    )


def by_w(slope: Slope, w: Float64, whole: bool) -> Float64:
    """Return the gradient by w: alpha_i (g_i - sum_j alpha_j g_j) in each row of the softmax.

    Args:
        slope: the gradient by the coefficients; its last row is for the tensors outside all groups.
        w: [groups, K] values before the softmax.
        whole: whether one row is for all tensors.

    Returns:
        The gradient, flattened to [groups * K].
    """
    g = np.asarray(slope.coefficients)[-1:] if whole else np.asarray(slope.coefficients)[:-1]
    alpha = _softmax(w)
    gradient: Float64 = alpha * (g - (alpha * g).sum(axis=1, keepdims=True))
    return gradient.ravel()


def _softmax(w: Float64) -> Float64:
    """Return the softmax of each row of [groups, K]."""
    shares: Float64 = softmax(w, axis=1)
    return shares


class Adam:
    """Adam (Kingma and Ba 2015) on a flat vector."""

    def __init__(self, lr: float, size: int) -> None:
        self._lr, self._t = lr, 0
        self._m, self._v = np.zeros(size), np.zeros(size)

    def step(self, gradient: Float64) -> Float64:
        """Return the change of the parameters for this gradient."""
        self._t += 1
        self._m = BETAS[0] * self._m + (1 - BETAS[0]) * gradient
        self._v = BETAS[1] * self._v + (1 - BETAS[1]) * gradient**2
        m = self._m / (1 - BETAS[0] ** self._t)
        v = self._v / (1 - BETAS[1] ** self._t)
        change: Float64 = -self._lr * m / (np.sqrt(v) + EPSILON)
        return change
