"""What each model is worth to the ensemble of all: leave-one-out and Shapley values.

The ensemble of a set of models is the mean of their outputs. All is computed from stored outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple, TypeVar

import numpy as np

from soupray.core.arrays import Float64, Logits

Loss = TypeVar("Loss", float, Float64)
"""A mean over samples, or the loss of each sample [N]."""

EXACT = 12
"""Number of models up to which all their subsets are evaluated: 4096."""

WORK = 10**9
"""Number of outputs that a computation of Shapley values goes through: about a minute."""

FEWEST, MOST = 16, 1024
"""Number of orders of an estimate."""


def leave_one_out(
    count: int, outputs_of: Callable[[int], Logits | Float64], loss: Callable[[Float64], Loss]
) -> list[Loss]:
    """What each model is worth to the ensemble of all of them.

    Each model's outputs are asked for twice; two arrays of their size are in memory.

    Args:
        count: number of models, K.
        outputs_of: the outputs [N, C] of the k-th model, k from 0.
        loss: of outputs [N, C]: the NLL, or the loss of another objective; a mean, or of each
            sample.

    Returns:
        For each model, the loss of the ensemble without it minus that of the ensemble with it, in
        nats: positive if it helps. 0 for a model that is alone.
    """
    total = outputs_of(0).astype(np.float64)
    for k in range(1, count):
        total += outputs_of(k)
    whole = loss(total / count)
    if count == 1:
        return [whole - whole]
    return [loss((total - outputs_of(k)) / (count - 1)) - whole for k in range(count)]


class Shapley(NamedTuple):
    """Shapley values of K models on N samples.

    Attributes:
        values: for each model and sample, [K, N]. The value of a model is their mean over samples.
        order_errors: standard error of each model's value that comes from the sampled orders, [K].
            0 where all subsets were evaluated.
        orders: number of sampled orders; 0: all subsets were evaluated.
    """

    values: Float64
    order_errors: Float64
    orders: int


def shapley(
    outputs: Sequence[Logits | Float64], losses: Callable[[Float64], Float64], seed: int
) -> Shapley:
    """The Shapley value of each model in the loss of the ensemble (Shapley, 1953).

    The models join one by one, in a random order. The value of a model is how much it lowers the
    loss when it joins, on average over all orders. The loss of no model at all is defined as that
    of a model drawn at random, so that the values sum to what the ensemble of all gains over it.
    With another definition all values are shifted by one number.

    Up to EXACT models, all subsets are evaluated. For more models, or if that is more than WORK,
    orders are sampled in pairs, an order and its reverse, whose errors partly cancel (Castro,
    Gomez and Tejada, 2009, sample orders; the pairs are antithetic variates). The values sum to the
    same number then, too.

    Args:
        outputs: of each model, [N, C]; in retrieval its similarities.
        losses: of outputs [N, C]: the loss of each sample, [N].
        seed: of the sampled orders.
    """
    alone = np.mean([losses(one.astype(np.float64)) for one in outputs], axis=0)
    if len(outputs) <= EXACT and 2 ** len(outputs) * outputs[0].size <= WORK:
        values = _of_all_subsets(outputs, losses, alone)
        return Shapley(values, np.zeros(len(outputs)), 0)
    return _of_orders(outputs, losses, alone, seed)


def _of_all_subsets(
    outputs: Sequence[Logits | Float64], losses: Callable[[Float64], Float64], alone: Float64
) -> Float64:
    """Sum over the subsets S: a model in S is rewarded for its loss, a model outside pays it.

    A model joins S in the share 1 / (K C(K-1, |S|)) of all orders.
    """
    count = len(outputs)
    values = np.zeros((count, len(alone)))

    def add(lost: Float64, inside: list[int]) -> None:
        size = len(inside)
        for k in range(count):
            if k in inside:
                values[k] -= lost / (count * comb(count - 1, size - 1))
            else:
                values[k] += lost / (count * comb(count - 1, size))

    def walk(k: int, total: Float64, inside: list[int]) -> None:
        if k == count:
            add(losses(total / len(inside)) if inside else alone, inside)
            return
        walk(k + 1, total, inside)
        walk(k + 1, total + outputs[k], [*inside, k])

    walk(0, np.zeros(outputs[0].shape), [])
    return values


def _of_orders(
    outputs: Sequence[Logits | Float64],
    losses: Callable[[Float64], Float64],
    alone: Float64,
    seed: int,
) -> Shapley:
    count, draw = len(outputs), np.random.default_rng(seed)
    pairs = min(MOST, max(FEWEST, WORK // (count * outputs[0].size))) // 2
    values = np.zeros((count, len(alone)))
    means = np.zeros((pairs, count))
    for pair in range(pairs):
        order = draw.permutation(count)
        for one in (order, order[::-1]):
            total, before = np.zeros(outputs[0].shape), alone
            for size, k in enumerate(one, 1):
                total += outputs[k]
                now = losses(total / size)
                values[k] += (before - now) / (2 * pairs)
                means[pair, k] += (before - now).mean() / 2
                before = now
    errors: Float64 = means.std(axis=0, ddof=1) / np.sqrt(pairs)
    return Shapley(values, errors, 2 * pairs)
