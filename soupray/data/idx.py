"""IDX, the file format of MNIST, and data sets that consist of its four files.

A file has a magic number (two zero bytes, the type, the number of dimensions), the dimensions as
big-endian 32-bit integers, and the data. It may be gzipped. Fashion-MNIST (arXiv:1708.07747) has
70 000 grey images of clothes, 28 x 28 pixels; Debian's package is dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from soupray.core.arrays import Uint8
from soupray.core.errors import ConfigError
from soupray.data.splits import Samples, draw, held_out_shares, set_aside, shares
from soupray.spec.data import IdxSpec
from soupray.spec.files import path_of

IMAGES = "{part}-images-idx3-ubyte"
LABELS = "{part}-labels-idx1-ubyte"
HINT = (
    "Debian's package dataset-fashion-mnist has Fashion-MNIST, in "
    "/usr/share/datasets/fashion-mnist; `make fashion` fetches it without root."
)
_UNSIGNED_BYTES = 8

MOST_BYTES = 2 * 2**30
"""The largest array: three times that of EMNIST, the largest data set in these files."""

CHUNK = 2**20
"""Bytes that are read at a time."""


def split_idx(spec: IdxSpec, seed: int) -> dict[str, Samples]:
    """The splits train, held_out, rank (if the spec has it) and test.

    All but test are drawn from the train files, with equal numbers of each class. test is the
    t10k files.

    Args:
        spec: the folders and the sizes of the splits.
        seed: of the draw.

    Raises:
        ConfigError: a file is missing or broken, or a class has too few images.
    """
    folder = find_folder(spec.folders)
    test = load_part(folder, "t10k")
    every, listed = set_aside(load_part(folder, "train"), spec.held_out)
    there = np.bincount(every.labels)
    wanted = {
        "train": shares(spec.train, len(there)),
        **held_out_shares(spec.held_out, len(there)),
    }
    asked = [sum(counts) for counts in zip(*wanted.values(), strict=True)]
    for label, (have, count) in enumerate(zip(there, asked, strict=True)):
        if have < count:
            raise ConfigError(
                f"data.train = {spec.train} and data.held_out = {spec.held_out} need {count} "
                f"images of class {label}, but the train files in {folder} have {have}."
            )
    parts = draw(every, wanted, rest="unused", seed=seed)
    del parts["unused"]
    return {**parts, **listed, "test": test}


def file_digests(spec: IdxSpec) -> list[str]:
    """SHA-256 (hex) of each of the four files: the folder's name does not say their content."""
    folder = find_folder(spec.folders)
    names = [name.format(part=part) for part in ("train", "t10k") for name in (IMAGES, LABELS)]
    digests = []
    for name in names:
        with _find(folder, name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def find_folder(folders: tuple[str, ...]) -> Path:
    """The first of `folders` that exists.

    Raises:
        ConfigError: no folder exists.
    """
    for folder in folders:
        path = path_of(folder, "data.folders")
        if path.is_dir():
            return path
    raise ConfigError(f"data.folders: there is no folder {' or '.join(folders)}. {HINT}")


def load_part(folder: Path, part: str) -> Samples:
    """All samples of a part, with ids like train/123.

    Args:
        folder: with the four files.
        part: "train" or "t10k".

    Raises:
        ConfigError: a file is missing or broken, or images and labels differ in number.
    """
    images = read_idx(_find(folder, IMAGES.format(part=part)), dimensions=3)
    labels = read_idx(_find(folder, LABELS.format(part=part)), dimensions=1)
    if len(images) != len(labels):
        raise ConfigError(
            f"{folder}: {len(images)} images but {len(labels)} labels in the {part} files: they do "
            "not belong to one data set. Fetch all four files again."
        )
    ids = [f"{part}/{i}" for i in range(len(labels))]
    return Samples(ids, images[:, None], labels.astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ConfigError(f"{folder}: there is no {name} or {name}.gz. {HINT}")


def read_idx(path: Path, dimensions: int) -> Uint8:
    """The array in an IDX file of unsigned bytes. A file with the ending .gz is gzipped.

    Args:
        path: of the file.
        dimensions: number of dimensions that the array must have.

    Returns:
        An array of the shape in the file's header.

    Raises:
        ConfigError: the file cannot be read, has another type or number of dimensions, or its
            length does not fit its header.
    """
    size = 4 + 4 * dimensions
    try:
        with _opened(path) as file:
            header = file.read(size)
            shape = _shape(path, header, dimensions)
            # As large as the header says, whatever follows: a small .gz can hold any number of
            # zeros. Memory that nothing is read into takes no room.
            found = np.empty(shape, np.uint8)
            read = _fill(file, found)
            more = len(file.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Fetch it again.") from error
    if read != found.size or more:
        there = f"{'more than ' if more else ''}{size + read} bytes"
        raise ConfigError(
            f"{path}: truncated or corrupt: {there}, but its header says {size} and "
            f"{' x '.join(map(str, shape))}. Fetch it again."
        )
    return found


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """The shape in a header, checked. Raises ConfigError."""
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if header[:4] != magic:
        raise ConfigError(
            f"{path}: not the file that its name says: it starts with 0x{header[:4].hex()}. An IDX "
            f"file of unsigned bytes in {dimensions} dimension(s) starts with 0x{magic.hex()}. "
            "Fetch it again."
        )
    whole = len(header) == 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", header[4:]) if whole else (0,)
    if not all(shape):
        raise ConfigError(
            f"{path}: truncated or corrupt: {len(header)} bytes, but its header says "
            f"{4 + 4 * dimensions} and {' x '.join(map(str, shape))}. Fetch it again."
        )
    if math.prod(shape) > MOST_BYTES:
        raise ConfigError(
            f"{path}: its header says {' x '.join(map(str, shape))}, more than {MOST_BYTES} bytes, "
            "which are in memory at a time. Write larger data sets as kind: webdataset."
        )
    return shape


def _fill(file: Any, found: Uint8) -> int:
    """Read bytes into an array to its end; returns how many there were."""
    room, read = found.reshape(-1), 0
    while count := file.readinto(room[read : read + CHUNK]):
        read += count
    return read
