"""The contract of a sampler, on histories of several lengths."""

from __future__ import annotations

import math
import random

from soupray.core.ports import Sampler, Seen
from soupray.search.plugged import broken_point

LENGTHS = (0, 1, 2, 11, 40)
"""Numbers of points that were suggested before."""

DIMENSIONS = ("lr", "weight_decay", "rotation")


def check_sampler(sampler: Sampler) -> None:
    """Check that a sampler keeps its contract.

    It returns one number from 0 to below 1 for each dimension, whatever came before: nothing,
    points that run or failed, trials that diverged, equal points, equal scores. It returns the same
    point for the same arguments: after a crash, a search goes on from the stored points alone.

    Args:
        sampler: the function.

    Raises:
        AssertionError: the contract is broken; the message says how, and on which history.
    """
    for count in (1, len(DIMENSIONS)):
        dimensions = DIMENSIONS[:count]
        for length in LENGTHS:
            for name, seen in _histories(length, count).items():
                where = f"{count} dimensions, {length} points, {name}"
                first = sampler(seen, dimensions, length)
                problem = broken_point(first, count)
                assert not problem, f"{where}: {problem}"
                again = sampler(seen, dimensions, length)
                assert list(first) == list(again), f"{where}: a second call suggests another point"


def _histories(length: int, count: int) -> dict[str, tuple[Seen, ...]]:
    """Points with scores of every kind, by a name for messages."""
    draw = random.Random(length)  # noqa: S311 - not a secret
    points = [tuple(draw.random() for _ in range(count)) for _ in range(length)]
    scores = [draw.random() for _ in points]
    edge = (math.nextafter(1, 0),) * count
    return {
        "all scored": tuple(map(Seen, points, scores)),
        "all running": tuple(Seen(point, None) for point in points),
        "some running": tuple(
            Seen(p, None if i % 3 else s)
            for i, (p, s) in enumerate(zip(points, scores, strict=True))
        ),
        "an NLL that diverged": tuple(Seen(point, -math.inf) for point in points),
        "equal scores": tuple(Seen(point, 0.5) for point in points),
        "equal points at the edge": tuple(Seen(edge, score) for score in scores),
    }
