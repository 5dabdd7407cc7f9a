"""What one more trial is worth to the trials before it, from their logits alone.

The ensemble of models, the mean of their logits, stands for their soup: near theta_0 the loss of
averaged weights equals the loss of averaged logits to first order (RADIN, arXiv:2401.17790). No
weights are read and no model runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a spec reads `fewest_trials`, and needs no numpy
    from soupray.core.arrays import Float64, Logits

ORDERS = 32
"""Number of random orders of the trials. Twice as many change the chance by less than a trial."""

LogitsOf = Callable[[int], "Logits | Float64"]
Loss = Callable[["Float64"], float]


def greedy_ensemble(logits_of: LogitsOf, loss: Loss, order: Sequence[int]) -> list[int]:
    """Return the models that a greedy ensemble keeps, in `order`.

    A model is kept if the loss of the ensemble does not rise with it. The first one is kept.

    Args:
        logits_of: the logits [N, C] of the k-th model, or in retrieval its similarities.
            Each is asked for once, in order; two arrays of their size are in memory.
        loss: of a mean of logits [N, C].
        order: the models, in the order in which they are tried; at least one.
    """
    return [k for k, gain in _one_by_one(logits_of, loss, order) if gain is None or gain >= 0]


def gains(logits_of: LogitsOf, loss: Loss, order: Sequence[int]) -> list[float]:
    """Return how much each model but the first lowers the loss of the greedy ensemble before it.

    Args:
        logits_of: see `greedy_ensemble`.
        loss: see `greedy_ensemble`.
        order: see `greedy_ensemble`.

    Returns:
        len(order) - 1 numbers in the unit of the loss; 0 for a model that is not kept.
    """
    found = _one_by_one(logits_of, loss, order)
    return [max(gain, 0.0) for _, gain in found if gain is not None]


def chance_of_gain(count: int, logits_of: LogitsOf, loss: Loss, gain: float) -> float:
    """Return how likely one more trial lowers the loss of the greedy ensemble by `gain` or more.

    The trials are exchangeable: they are drawn independently, so that any of them could have come
    last. In ORDERS random orders the trials of the last quarter are looked at: the share of those
    that gained as much. As gains shrink with the number of trials, the share is rather too large
    for the next trial. Laplace's rule of succession keeps the chance of few trials away from 0: of
    K trials, it is never below 1 / (K + 2).

    Args:
        count: number of trials, K, at least 2.
        logits_of: see `greedy_ensemble`.
        loss: see `greedy_ensemble`.
        gain: in the unit of the loss, above 0.
    """
    generator = random.Random(0)  # noqa: S311 - not a secret; random() of a seed never changes
    last, helped = max(1, count // 4), 0
    for _ in range(ORDERS):
        order = sorted(range(count), key=lambda _: generator.random())
        helped += sum(one >= gain for one in gains(logits_of, loss, order)[-last:])
    return (count * helped / (ORDERS * last) + 1) / (count + 2)


def fewest_trials(probability: float) -> int:
    """Return the smallest number of trials whose `chance_of_gain` can be below `probability`.

    Args:
        probability: above 0 and below 1.
    """
    count = 2
    while 1 / (count + 2) >= probability:
        count += 1
    return count


def _one_by_one(
    logits_of: LogitsOf, loss: Loss, order: Sequence[int]
) -> Iterator[tuple[int, float | None]]:
    """Yield each model, and how much the loss falls with it; None for the first one."""
    total, kept, least = None, 0, 0.0
    for k in order:
        logits = logits_of(k)
        tried = logits.astype(float) if total is None else total + logits
        found = loss(tried / (kept + 1))
        gain = None if total is None else least - found
        if gain is None or gain >= 0:
            total, kept, least = tried, kept + 1, found
        yield k, gain
