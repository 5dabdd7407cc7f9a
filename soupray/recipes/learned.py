"""Learned soup (Model soups, arXiv:2203.05482, appendix): coefficients by gradient descent.

min over w, beta of mean CE(beta * f(x; sum_i softmax(w)_i theta_i), y) on held-out data, for the
whole model or with a row of w for each tensor. The gradient by alpha_i is <d loss / d theta,
theta_i>, which the evaluator computes from one forward and backward pass: two models' worth of
memory, and every ingredient read twice a step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from soupray.candidates import QUANTUM, LayerSoup, Outcome, Step, quantised, weight_soup
from soupray.errors import EvaluationError
from soupray.ports import Gradient, Selection, Slope, TensorNames

Array = npt.NDArray[np.float64]
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as in the released code, which uses no weight decay."""


def learned(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    lr: float = 0.05,
    epochs: int = 5,
    batch_size: int = 256,
    max_read_gb: float = 1000.0,
) -> list[Outcome]:
    """One coefficient an ingredient."""
    pool = selection.pool.checkpoints
    _refuse_if_long(selection, epochs, batch_size, max_read_gb)
    rows, beta, loss = _descend(selection, [()], lr, epochs, batch_size)
    candidate = weight_soup(list(zip(pool, quantised(_softmax(rows)[0]), strict=True)), QUANTUM)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="learned",
            recipe="learned",
            options={"epochs": epochs, "lr": lr, "beta": beta, "loss": loss},
            candidate=candidate,
            held_out=scores,
            trace=(Step(candidate=candidate, result=scores, accepted=True),),
        )
    ]


def learned_by_layer(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    lr: float = 0.05,
    epochs: int = 5,
    batch_size: int = 256,
    max_read_gb: float = 1000.0,
) -> list[Outcome]:
    """One coefficient an ingredient and tensor."""
    pool = selection.pool.checkpoints
    _refuse_if_long(selection, epochs, batch_size, max_read_gb)
    (names,) = selection.measure([TensorNames(checkpoint=pool[0])])
    rows, beta, loss = _descend(selection, [(n,) for n in names], lr, epochs, batch_size)
    candidate = _soup(pool, [(n,) for n in names], rows)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="learned_by_layer",
            recipe="learned_by_layer",
            options={"epochs": epochs, "lr": lr, "beta": beta, "loss": loss},
            candidate=candidate,
            held_out=scores,
            trace=(Step(candidate=candidate, result=scores, accepted=True),),
        )
    ]


def _refuse_if_long(selection: Selection, epochs: int, batch_size: int, max_gb: float) -> None:
    ingredients = selection.pool.ingredients
    steps = epochs * -(-ingredients[0].held_out.n // batch_size)
    read = 2 * steps * sum(i.checkpoint.size_bytes for i in ingredients) / 1e9
    if read > max_gb:
        raise EvaluationError(
            f"a learned soup of these {len(ingredients)} ingredients takes {steps} steps that "
            f"read {read:,.0f} GB of weights; max_read_gb is {max_gb:g}. Raise max_read_gb or "
            "batch_size, or lower epochs, in the spec: recipes: {learned: {max_read_gb: ...}}."
        )


def _descend(
    selection: Selection,
    groups: Sequence[tuple[str, ...]],
    lr: float,
    epochs: int,
    batch_size: int,
) -> tuple[Array, float, float]:
    """(w [groups, K], beta, last loss). An empty group stands for all tensors."""
    pool, n = selection.pool.checkpoints, selection.pool.ingredients[0].held_out.n
    whole = list(groups) == [()]
    w, beta = np.zeros((len(groups), len(pool))), 1.0
    adam = _Adam(lr, w.size + 1)
    generator = random.Random(0)  # noqa: S311 - not a secret
    loss = float("nan")
    for _ in range(epochs):
        order = generator.sample(range(n), n)
        for start in range(0, n, batch_size):
            soup = _soup(pool, [] if whole else groups, w)
            rows = tuple(sorted(order[start : start + batch_size]))
            (slope,) = selection.measure([Gradient(soup=soup, beta=beta, rows=rows)])
            step = adam.step(np.append(_by_w(slope, w, whole), slope.beta))
            w, beta, loss = w + step[:-1].reshape(w.shape), beta + float(step[-1]), slope.loss
    return w, round(beta, 6), round(loss, 6)


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
