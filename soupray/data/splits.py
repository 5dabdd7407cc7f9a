"""Who gets which sample: parts drawn by class, seeded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from soupray.errors import ConfigError
from soupray.sources import HeldOutParts

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Samples(NamedTuple):
    """ids: N strings; images: [N, C, H, W] uint8; labels: [N] int64."""

    ids: list[str]
    images: Images
    labels: Labels

    def take(self, rows: npt.NDArray[np.int64]) -> Samples:
        """The samples in `rows`, in that order."""
        return Samples([self.ids[i] for i in rows], self.images[rows], self.labels[rows])


def shares(total: int, classes: int) -> list[int]:
    """`total` by class, as equal as possible; the first classes take the remainder."""
    return [len(part) for part in np.array_split(np.arange(total), classes)]


def held_out_shares(held_out: int | HeldOutParts, classes: int) -> dict[str, list[int]]:
    """Samples of each class in `held_out`, and in `rank` if the spec asks for two parts.

    Both parts together have as many of each class as one set of their total size.

    Raises:
        ConfigError: a part has less than a sample a class.
    """
    if isinstance(held_out, int):
        _refuse_tiny("data.held_out", held_out, classes)
        return {"held_out": shares(held_out, classes)}
    _refuse_tiny("data.held_out.select", held_out.select, classes)
    _refuse_tiny("data.held_out.rank", held_out.rank, classes)
    both, select = (shares(n, classes) for n in (held_out.select + held_out.rank, held_out.select))
    return {"held_out": select, "rank": [b - s for b, s in zip(both, select, strict=True)]}


def _refuse_tiny(field: str, count: int, classes: int) -> None:
    purpose = "ranks the soups" if field.endswith("rank") else "chooses the soup"
    if count < classes:
        raise ConfigError(
            f"{field} = {count}: held-out data {purpose} and needs at least one image of each of "
            f"the {classes} classes. Write {classes} or more."
        )


def draw(
    samples: Samples, wanted: dict[str, list[int]], rest: str, seed: int
) -> dict[str, Samples]:
    """Disjoint parts of `samples`, `wanted[name][c]` of each class c; what is left is `rest`.

    One random order serves all parts, in the order of `wanted`: a part that grows takes from
    those after it, and two neighbours are together what one part of their total size would be.
    The caller has checked that there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(samples.labels))
    classes = len(next(iter(wanted.values())))
    left = [order[samples.labels[order] == c] for c in range(classes)]
    parts = {}
    for name, counts in wanted.items():
        rows = [mine[:n] for mine, n in zip(left, counts, strict=True)]
        left = [mine[n:] for mine, n in zip(left, counts, strict=True)]
        parts[name] = samples.take(np.sort(np.concatenate(rows)))
    return {**parts, rest: samples.take(np.sort(np.concatenate(left)))}
