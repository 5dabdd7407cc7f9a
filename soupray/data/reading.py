"""Decodes many images: into an array on disk, or on each read."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Images, Indices, Uint8
from soupray.core.errors import ConfigError, EvaluationError
from soupray.data.decoding import Look, decode, decoded
from soupray.data.opening import Unreadable
from soupray.data.splits import Listing

CHUNK = 4096
"""Images in the threads' queue at a time, and rows that are copied at a time."""


class Content(NamedTuple):
    """The digests of a sample.

    Attributes:
        kept: SHA-256 (hex) of the array in the cache, or of the source if nothing is cached. If an
            image was changed when it was opened, it also covers how.
        source: SHA-256 (hex) of the sample in its source.
        problem: why it cannot be read; then the digests are empty.
        done: what was done to an image when it was opened, in words that are counted.
    """

    kept: str
    source: str
    problem: str = ""
    done: tuple[str, ...] = ()


def threads() -> ThreadPoolExecutor:
    """Threads for decoding, one for each core: Pillow decodes without Python's global lock."""
    return ThreadPoolExecutor(min(32, len(os.sched_getaffinity(0))))


def new_array(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8
) -> npt.NDArray[Any]:
    """A new array on disk, as a writable memory map.

    Its space is allocated at once: on a full disk, the system would kill a process that writes to a
    memory map, without a message.

    Args:
        path: of the file.
        shape: of the array.
        dtype: of the array.

    Raises:
        ConfigError: the disk has too little space.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise ConfigError(
            f"{path.parent.parent}: no room for {array.nbytes / 1e9:.3g} GB of decoded images: "
            f"{error.strerror}. Choose another --home, a smaller data.size or data.train_size, or "
            "data.keep: stream."
        ) from error
    return array


def write_images(part: Listing, look: Look, path: Path) -> list[Content]:
    """Decode images into an array on disk. Only some images are in memory at a time.

    Args:
        part: the N images.
        look: their form in the array.
        path: of the array's file, uint8 [N, C, size, size].

    Returns:
        The digests of each image.
    """
    target = new_array(path, (len(part.ids), *look.shape))
    return decode_each(part, look, target)


def check_images(part: Listing, look: Look) -> list[Content]:
    """Decode images to find the broken ones. The result is not kept.

    Args:
        part: the images.
        look: the form to which they are decoded.

    Returns:
        The digests of each image; both are of the source.
    """
    return decode_each(part, look, None)


def decode_each(part: Listing, look: Look, target: Images | None) -> list[Content]:
    """Decode images, in threads.

    Args:
        part: the N images.
        look: the form to which they are decoded.
        target: gets the pixels, uint8 [N, C, size, size]; None: they are not kept.

    Returns:
        The digests of each image; without `target` both are of the source.
    """

    def one(row: int) -> Content:
        try:
            raw = part.raw(row)
            image = decoded(raw, look, part.border)
        except (Unreadable, OSError) as error:
            return Content("", "", str(error))
        source = sha256(raw)
        if target is None:
            # Nothing else says that these images are not those of a version without the change.
            how = "\n".join((source, *image.done)).encode()
            return Content(sha256(how) if image.changed else source, source, done=image.done)
        target[row] = image.pixels
        return Content(sha256(image.pixels), source, done=image.done)

    contents: list[Content] = []
    with threads() as pool:
        for start in range(0, len(part.ids), CHUNK):
            contents += pool.map(one, range(start, min(start + CHUNK, len(part.ids))))
    return contents


def sha256(data: bytes | Uint8) -> str:
    """SHA-256 (hex) of bytes, or of an array of any shape in C order."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()


def keep_rows(path: Path, rows: Indices) -> None:
    """Remove rows from an array on disk, a part at a time.

    Args:
        path: of the array's file.
        rows: the rows that stay, in their new order.
    """
    old = np.load(path, mmap_mode="r")
    part = path.with_suffix(".part")
    new = new_array(part, (len(rows), *old.shape[1:]), old.dtype)
    for start in range(0, len(rows), CHUNK):
        new[start : start + CHUNK] = old[rows[start : start + CHUNK]]
    part.replace(path)


class Stream:
    """Images that are decoded on each read, with those methods of an array that readers use.

    The index is a slice, an integer or an array of integers. The result is an array
    [N, C, size, size].
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, part: Listing, look: Look) -> None:
        self._part, self._look, self._pool = part, look, threads()
        self.shape = (len(part.ids), *look.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int | Indices) -> Images:
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self._one(int(chosen))
        images = list(self._pool.map(self._one, chosen.tolist()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def _one(self, row: int) -> Uint8:
        try:
            return decode(self._part.raw(row), self._look, self._part.border)
        except (Unreadable, OSError) as error:
            raise EvaluationError(
                f"image {self._part.ids[row]} of the train split could be read before, but cannot "
                f"be read now: {error}. Restore it, or write `keep: mapped`."
            ) from error
