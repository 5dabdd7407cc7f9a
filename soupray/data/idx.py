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

import numpy as np

from soupray.core.arrays import Uint8
from soupray.core.errors import ConfigError
from soupray.data.splits import Samples, draw, held_out_shares, set_aside, shares
from soupray.spec.data import IdxSpec

IMAGES = "{part}-images-idx3-ubyte"
LABELS = "{part}-labels-idx1-ubyte"
HINT = (
    "Debian's package dataset-fashion-mnist has Fashion-MNIST, in "
    "/usr/share/datasets/fashion-mnist; `make fashion` fetches it without root."
)
_UNSIGNED_BYTES = 8


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
    return [hashlib.sha256(_find(folder, name).read_bytes()).hexdigest() for name in names]


def find_folder(folders: tuple[str, ...]) -> Path:
    """The first of `folders` that exists.

    Raises:
        ConfigError: no folder exists.
    """
    for folder in folders:
        path = Path(folder).expanduser()
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
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Fetch it again.") from error
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if data[:4] != magic:
        raise ConfigError(
            f"{path}: not the file that its name says: it starts with 0x{data[:4].hex()}. An IDX "
            f"file of unsigned bytes in {dimensions} dimension(s) starts with 0x{magic.hex()}. "
            "Fetch it again."
        )
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:start]) if len(data) >= start else (0,)
    if len(data) != start + math.prod(shape) or not all(shape):
        raise ConfigError(
            f"{path}: truncated or corrupt: {len(data)} bytes, but its header says {start} and "
            f"{' x '.join(map(str, shape))}. Fetch it again."
        )
    # A copy, because an array from a buffer of bytes is read-only.
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
