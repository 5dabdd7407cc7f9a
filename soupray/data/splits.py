"""Who gets which sample: parts drawn by class, seeded, or listed by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from soupray.core.errors import ConfigError
from soupray.spec.data import HeldOut, HeldOutIds
from soupray.spec.yaml import read_text

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


Raw = bytes | npt.NDArray[np.uint8]
"""An image as its source has it: an encoded file, or pixels [H, W] or [H, W, C]."""


class Listing(NamedTuple):
    """Samples that are read one by one, when they are needed.

    ids: N strings; labels: [N] int64; read: the image in a row of the source; rows: [N] int64, the
    rows of the source that these samples are; border: pixels cut off at each side.
    """

    ids: list[str]
    labels: Labels
    read: Callable[[int], Raw]
    rows: Labels
    border: int = 0

    def take(self, rows: npt.NDArray[np.int64]) -> Listing:
        """The samples in `rows`, in that order."""
        ids = [self.ids[i] for i in rows]
        return self._replace(ids=ids, labels=self.labels[rows], rows=self.rows[rows])

    def raw(self, row: int) -> Raw:
        """The image of a sample, as its source has it. Raises OSError."""
        return self.read(int(self.rows[row]))


def listing(ids: list[str], labels: npt.ArrayLike, read: Callable[[int], Raw]) -> Listing:
    """All samples of a source, whose `read` takes their position."""
    return Listing(ids, np.asarray(labels, np.int64), read, np.arange(len(ids)))


Part = Samples | Listing
P = TypeVar("P", Samples, Listing)


def shares(total: int, classes: int) -> list[int]:
    """`total` by class, as equal as possible; the first classes take the remainder."""
    return [len(part) for part in np.array_split(np.arange(total), classes)]


def held_out_shares(held_out: HeldOut, classes: int) -> dict[str, list[int]]:
    """Samples of each class in `held_out`, and in `rank` if the spec asks for two parts.

    Both parts together have as many of each class as one set of their total size. Samples that
    are listed by id are not drawn: see `set_aside`.

    Raises:
        ConfigError: a part has less than a sample a class.
    """
    if isinstance(held_out, HeldOutIds):
        return {}
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


def set_aside(samples: P, held_out: HeldOut) -> tuple[P, dict[str, P]]:
    """What is left of `samples`, and those that the spec lists by id, as `held_out`.

    Raises:
        ConfigError: the list is empty, has an id twice, or one that no sample has, or is shorter
            than there are classes.
    """
    if not isinstance(held_out, HeldOutIds):
        return samples, {}
    path = Path(held_out.ids).expanduser()
    chosen = _by_mask(path, samples) if path.suffix == ".npy" else _by_id(path, samples)
    if not chosen.any():
        raise ConfigError(f"data.held_out.ids: {path} lists no samples to hold out.")
    listed, left = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    classes = int(samples.labels.max()) + 1
    if len(listed) < classes:
        raise ConfigError(
            f"data.held_out.ids: {path} lists {len(listed)} samples: held-out data chooses the "
            f"soup and needs at least one of each of the {classes} classes. List {classes} or more."
        )
    return samples.take(left), {"held_out": samples.take(listed)}


def _by_id(path: Path, samples: Part) -> npt.NDArray[np.bool_]:
    wanted = Counter(line.strip() for line in read_text(path).splitlines() if line.strip())
    chosen = np.array([name in wanted for name in samples.ids], bool)
    if twice := [name for name, count in wanted.items() if count > 1]:
        raise ConfigError(f"data.held_out.ids: {path} lists {twice[0]!r} more than once.")
    if unknown := wanted.keys() - set(samples.ids):
        raise ConfigError(
            f"data.held_out.ids: {len(unknown)} of the {len(wanted)} ids in {path} are no train "
            f"samples, like {min(unknown)!r}; theirs are like {samples.ids[0]!r}."
        )
    return chosen


def _by_mask(path: Path, samples: Part) -> npt.NDArray[np.bool_]:
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.held_out.ids: {path}: cannot be read: {error}.") from error
    if mask.shape != (len(samples.ids),) or not np.isin(mask, (0, 1)).all():
        raise ConfigError(
            f"data.held_out.ids: {path} has shape {list(mask.shape)}; wanted is a 0 (held out) or "
            f"1 (trained on) for each of the {len(samples.ids)} train samples."
        )
    return np.asarray(mask == 0)


def draw(samples: P, wanted: dict[str, list[int]], rest: str, seed: int) -> dict[str, P]:
    """Disjoint parts of `samples`, `wanted[name][c]` of each class c; what is left is `rest`.

    One random order serves all parts, in the order of `wanted`: a part that grows takes from
    those after it, and two neighbours are together what one part of their total size would be.
    The caller has checked that there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(samples.labels))
    classes = max(map(len, wanted.values()), default=0)
    if not wanted:
        return {rest: samples}
    left = [order[samples.labels[order] == c] for c in range(classes)]
    parts = {}
    for name, counts in wanted.items():
        rows = [mine[:n] for mine, n in zip(left, counts, strict=True)]
        left = [mine[n:] for mine, n in zip(left, counts, strict=True)]
        parts[name] = samples.take(np.sort(np.concatenate(rows)))
    return {**parts, rest: samples.take(np.sort(np.concatenate(left)))}
