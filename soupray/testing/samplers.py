"""The contract of a sampler, on histories of several lengths."""

from __future__ import annotations

import math
import random

from soupray.core.ports import Sampler, Seen
from soupray.search.plugged import point_of
from soupray.testing.called import called

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
        AssertionError: the contract is broken; the message names the function, and says how, and
            on which history.
    """
    for count in (1, len(DIMENSIONS)):
        dimensions = DIMENSIONS[:count]
        for length in LENGTHS:
            for name, seen in _histories(length, count).items():
                where = f"sampler {called(sampler)!r}: {count} dimensions, {length} points, {name}"
                try:
                    first, again = (
                        point_of(sampler(seen, dimensions, length), count) for _ in range(2)
                    )
                except ValueError as error:
                    raise AssertionError(f"{where}: {error}") from error
                assert first == again, f"{where}: a second call suggests another point"


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
