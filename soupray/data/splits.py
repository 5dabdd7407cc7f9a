"""Divides samples into splits: drawn by class with a seed, or listed by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Images, Indices, Labels, Mask, Uint8
from soupray.core.errors import ConfigError, one_line
from soupray.spec.data import HeldOut, HeldOutIds
from soupray.spec.files import path_of, read_text


class Samples(NamedTuple):
    """Samples in memory.

    Attributes:
        ids: N strings.
        images: images [N, C, H, W] or texts [N, L].
        labels: [N].
        notes: what of the source is not among the samples, and why.
    """

    ids: list[str]
    images: Images
    labels: Labels
    notes: tuple[str, ...] = ()

    def take(self, rows: Indices) -> Samples:
        """The samples at the positions `rows`, in the order of `rows`."""
        ids = [self.ids[i] for i in rows]
        return Samples(ids, self.images[rows], self.labels[rows], self.notes)


Raw = bytes | Uint8
"""An image in its source: the bytes of an image file, or pixels [H, W] or [H, W, C]."""


class Listing(NamedTuple):
    """Images that are read one by one, when they are needed.

    Attributes:
        ids: N strings.
        labels: [N].
        read: returns the image in a row of the source.
        rows: [N], the row of each sample in the source.
        border: pixels to cut off at each side of an image.
        notes: what of the source is not among the samples, and why.
        captions: the caption of the image in each row of the source; empty: there are none.
    """

    ids: list[str]
    labels: Labels
    read: Callable[[int], Raw]
    rows: Indices
    border: int = 0
    notes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    def take(self, rows: Indices) -> Listing:
        """The samples at the positions `rows`, in the order of `rows`."""
        ids = [self.ids[i] for i in rows]
        return self._replace(ids=ids, labels=self.labels[rows], rows=self.rows[rows])

    def raw(self, row: int) -> Raw:
        """The image of a sample in its source.

        Args:
            row: position of the sample in this listing.

        Raises:
            OSError: the source cannot be read, or the sample's id cannot stand on a line of a list.
        """
        if not is_usable(self.ids[row]):
            raise OSError("its name is not one line of text in UTF-8")
        return self.read(int(self.rows[row]))


def is_usable(name: str) -> bool:
    """Whether a name can be an id: text in UTF-8 without line breaks, as lists of ids have it."""
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name in another encoding
        return False
    return not {"\n", "\r", "\0"} & set(name)


def shown_name(name: str) -> str:
    """A name from outside as a message shows it: quoted if a terminal could not print it."""
    return name if name.isprintable() else repr(name)


def listing(ids: list[str], labels: npt.ArrayLike, read: Callable[[int], Raw]) -> Listing:
    """A listing of all samples of a source.

    Args:
        ids: N strings.
        labels: [N], integers.
        read: returns the image of the sample at a position.
    """
    return Listing(ids, np.asarray(labels, np.int64), read, np.arange(len(ids)))


Part = Samples | Listing
P = TypeVar("P", Samples, Listing)


def shares(total: int, classes: int) -> list[int]:
    """Divide `total` samples among classes as equally as possible.

    Returns:
        The number of samples of each class. The first classes have the remainder.
    """
    least, left = divmod(total, classes)
    return [least + (label < left) for label in range(classes)]


def held_out_shares(held_out: HeldOut, classes: int) -> dict[str, list[int]]:
    """The number of samples of each class in `held_out`, and in `rank` if the spec has it.

    Both splits together have as many samples of each class as one split of their total size.

    Args:
        held_out: the sizes in the spec.
        classes: number of classes.

    Returns:
        Numbers by split. Empty: the spec lists held-out samples by id, see `set_aside`.

    Raises:
        ConfigError: a split has fewer samples than there are classes.
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
    """Separate the held-out samples that a spec lists by id.

    Args:
        samples: all train samples.
        held_out: the file with the list. For any other form, no sample is separated.

    Returns:
        The remaining samples, and the listed samples under the name `held_out`.

    Raises:
        ConfigError: the list is empty, has all ids, has an id twice, has an id that no sample has,
            or has fewer ids than there are classes.
    """
    if not isinstance(held_out, HeldOutIds):
        return samples, {}
    path = path_of(held_out.ids, "data.held_out.ids")
    chosen = _by_mask(path, samples) if path.suffix == ".npy" else _by_id(path, samples)
    if not chosen.any():
        raise ConfigError(f"data.held_out.ids: {path} lists no samples to hold out.")
    listed, left = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    if not len(left):
        raise ConfigError(
            f"data.held_out.ids: {path} lists all {len(listed)} samples and leaves none to train "
            "on. List fewer."
        )
    classes = int(samples.labels.max()) + 1
    if len(listed) < classes:
        raise ConfigError(
            f"data.held_out.ids: {path} lists {len(listed)} samples: held-out data chooses the "
            f"soup and needs at least one of each of the {classes} classes. List {classes} or more."
        )
    return samples.take(left), {"held_out": samples.take(listed)}


def _by_id(path: Path, samples: Part) -> Mask:
    wanted = Counter(line.strip() for line in read_text(path).splitlines() if line.strip())
    chosen = np.array([name in wanted for name in samples.ids], bool)
    if twice := [name for name, count in wanted.items() if count > 1]:
        raise ConfigError(f"data.held_out.ids: {path} lists {twice[0]!r} more than once.")
    if unknown := wanted.keys() - set(samples.ids):
        raise ConfigError(
            f"data.held_out.ids: {len(unknown)} of the {len(wanted)} ids in {path} are not ids of "
            f"train samples, like {min(unknown)!r}. Ids of train samples are like "
            f"{samples.ids[0]!r}."
        )
    return chosen


def _by_mask(path: Path, samples: Part) -> Mask:
    mask = read_array(path, "data.held_out.ids")
    if mask.shape != (len(samples.ids),) or not np.isin(mask, (0, 1)).all():
        raise ConfigError(
            f"data.held_out.ids: {path} has shape {list(mask.shape)}. It must have a 0 (held out) "
            f"or 1 (trained on) for each of the {len(samples.ids)} train samples, and no other "
            "number."
        )
    return np.asarray(mask == 0)


def read_array(path: Path, field: str) -> npt.NDArray[Any]:
    """The array in a file of numpy (.npy), as a memory map: a header can promise any size.

    Args:
        path: of the file.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: the file is missing, or is not such a file.
    """
    try:
        if not path.is_file():  # a FIFO would wait for ever
            raise OSError("there is no such file")
        found: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    # The header is Python source: numpy's reader raises errors of many types.
    except Exception as error:
        raise ConfigError(
            f"{field}: {path}: cannot be read as an array: {one_line(error)}."
        ) from error
    return found


def draw(samples: P, wanted: dict[str, list[int]], rest: str, seed: int) -> dict[str, P]:
    """Draw disjoint parts of samples, by class.

    All parts are taken from one random order, in the order of `wanted`. If a part grows, it takes
    samples from the parts after it. Two neighbours together have the same samples as one part of
    their total size.

    Args:
        samples: all samples. The caller checks that each class has enough.
        wanted: for each part, the number of samples of each class.
        rest: the name of the part with the remaining samples.
        seed: of the random order.

    Returns:
        The parts by name, each in the order of `samples`.
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
