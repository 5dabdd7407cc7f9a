"""Learned soup (Model soups, arXiv:2203.05482, appendix): coefficients by gradient descent.

min over w, beta of mean CE(beta * f(x; sum_i softmax(w)_i theta_i), y) on held-out data, for the
whole model or with a row of w for each tensor. The gradient by alpha_i is <d loss / d theta,
theta_i>, which the evaluator computes from one forward and backward pass: two models' worth of
memory, and every ingredient needed twice a step, from the page cache if they all fit there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from soupray.core.candidates import (
    QUANTUM,
    LayerSoup,
    Outcome,
    Step,
    WeightCandidate,
    quantised,
    weight_soup,
)
from soupray.core.ports import Selection
from soupray.core.records import Ingredient
from soupray.core.requests import Gradient, Slope, TensorNames

Array = npt.NDArray[np.float64]
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as in the released code, which uses no weight decay."""

EPOCHS, BATCH_SIZE = 5, 256
"""Of the released code."""


def learned(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    lr: float = 0.05,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
) -> list[Outcome]:
    """One coefficient an ingredient."""
    pool = selection.pool.checkpoints
    point = _descend(selection, [()], _Options(lr, epochs, batch_size))
    shares = quantised(_softmax(point.w)[0])
    candidate = weight_soup(list(zip(pool, shares, strict=True)), QUANTUM)
    return [_outcome("learned", selection, candidate, point)]


def learned_by_layer(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    lr: float = 0.05,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
) -> list[Outcome]:
    """One coefficient an ingredient and tensor."""
    pool = selection.pool.checkpoints
    (names,) = selection.measure([TensorNames(checkpoint=pool[0])])
    groups = [(name,) for name in names]
    point = _descend(selection, groups, _Options(lr, epochs, batch_size))
    return [_outcome("learned_by_layer", selection, _soup(pool, groups, point.w), point)]


class _Options(NamedTuple):
    lr: float
    epochs: int
    batch_size: int


class _Point(NamedTuple):
    """Where the descent ended: w [groups, K], beta, and the last loss."""

    w: Array
    beta: float
    loss: float
    epochs: int


def _outcome(name: str, selection: Selection, candidate: WeightCandidate, point: _Point) -> Outcome:
    (scores,) = selection.scores([candidate])
    return Outcome(
        name=name,
        recipe=name,
        options={"epochs": point.epochs, "beta": point.beta, "loss": point.loss},
        candidate=candidate,
        held_out=scores,
        trace=(Step(candidate=candidate, result=scores, accepted=True),),
    )


def bytes_read(
    ingredients: Sequence[Ingredient], *, epochs: int = EPOCHS, batch_size: int = BATCH_SIZE
) -> int:
    """Of weights, from disk: each step needs every ingredient for the soup and for its gradient.

    Ingredients that fit in the memory that is available stay in the page cache and are read once.
    It is that of the machine that counts, the driver's: actors on other nodes may have less.
    """
    size = sum(i.checkpoint.size_bytes for i in ingredients)
    steps = epochs * -(-ingredients[0].held_out.n // batch_size)
    return size if size <= available_memory() else 2 * steps * size


def available_memory() -> int:
    """Bytes that this machine can give without swapping, its page cache among them; 0: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(ln.split()[1]) * 1024 for ln in lines if ln.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0


def _descend(selection: Selection, groups: Sequence[tuple[str, ...]], options: _Options) -> _Point:
    """An empty group stands for all tensors."""
    pool, n = selection.pool.checkpoints, selection.pool.ingredients[0].held_out.n
    whole = list(groups) == [()]
    w, log_beta = np.zeros((len(groups), len(pool))), 0.0  # beta stays positive
    adam = _Adam(options.lr, w.size + 1)
    generator = random.Random(0)  # noqa: S311 - not a secret
    loss = float("nan")
    for _ in range(options.epochs):
        order = generator.sample(range(n), n)
        for start in range(0, n, options.batch_size):
            soup = _soup(pool, [] if whole else groups, w)
            rows = tuple(sorted(order[start : start + options.batch_size]))
            beta = math.exp(log_beta)
            (slope,) = selection.measure([Gradient(soup=soup, beta=beta, rows=rows)])
            step = adam.step(np.append(_by_w(slope, w, whole), slope.beta * beta))
            w, log_beta = w + step[:-1].reshape(w.shape), log_beta + float(step[-1])
            loss = slope.loss
    return _Point(w, round(math.exp(log_beta), 6), round(loss, 6), options.epochs)


def _soup(pool: list[str], groups: Sequence[tuple[str, ...]], w: Array) -> LayerSoup:
    """The soup at w: a row for each group, or one row for all tensors."""
    rows = [quantised(row) for row in _softmax(w)]
    return LayerSoup(
        checkpoints=tuple(pool),
        layers=tuple(zip(groups, rows, strict=True)) if groups else (),
        rest=rows[0],
        denominator=QUANTUM,
    )


def _by_w(slope: Slope, w: Array, whole: bool) -> Array:
    """D loss / d w of rows of softmax: alpha_i (g_i - sum_j alpha_j g_j)."""
    g = np.asarray(slope.coefficients)[-1:] if whole else np.asarray(slope.coefficients)[:-1]
    alpha = _softmax(w)
    gradient: Array = alpha * (g - (alpha * g).sum(axis=1, keepdims=True))
    return gradient.ravel()


def _softmax(w: Array) -> Array:
    e = np.exp(w - w.max(axis=1, keepdims=True))
    shares: Array = e / e.sum(axis=1, keepdims=True)
    return shares


class _Adam:
    """Adam (Kingma and Ba 2015) on a flat vector."""

    def __init__(self, lr: float, size: int) -> None:
        self._lr, self._t = lr, 0
        self._m, self._v = np.zeros(size), np.zeros(size)

    def step(self, gradient: Array) -> Array:
        """What to add to the parameters."""
        self._t += 1
        self._m = BETAS[0] * self._m + (1 - BETAS[0]) * gradient
        self._v = BETAS[1] * self._v + (1 - BETAS[1]) * gradient**2
        m = self._m / (1 - BETAS[0] ** self._t)
        v = self._v / (1 - BETAS[1] ** self._t)
        change: Array = -self._lr * m / (np.sqrt(v) + EPSILON)
        return change
