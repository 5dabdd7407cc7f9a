"""WebDataset shards: tar files. The members KEY.jpg and KEY.cls are image and label of a sample."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import ConfigError
from soupray.data.splits import Listing, Raw, listing

IMAGES = ("jpg", "jpeg", "png", "webp")
LABEL = "cls"


class _Place(NamedTuple):
    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def list_shards(pattern: str, field: str) -> Listing:
    """All samples of some shards, with ids like SHARD/KEY.

    Only the headers and the labels of the tar files are read.

    Args:
        pattern: the shards, see `shards`.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: there is no shard, a shard is not a plain tar file, a sample has no image or no
            label, or a label is not a number.
    """
    ids: list[str] = []
    labels: list[int] = []
    places: list[_Place] = []
    for shard in shards(pattern, field):
        for key, members in _samples(shard, field):
            image = next((members[ext] for ext in IMAGES if ext in members), None)
            if image is None or LABEL not in members:
                lacks = f".{LABEL}" if image else f"image ({', '.join('.' + e for e in IMAGES)})"
                raise ConfigError(f"{field}: {shard}: sample {key!r} has no {lacks}.")
            ids.append(f"{shard.name}/{key}")
            labels.append(_label(members[LABEL], f"{field}: {shard}: {key}.{LABEL}"))
            places.append(image)

    def read(row: int) -> Raw:
        return places[row].read()

    return listing(ids, labels, read)


def shards(pattern: str, field: str) -> list[Path]:
    """The files that a pattern names.

    Args:
        pattern: a path with `{000..127}` for a range of numbers, or with `*` and `?`.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: there is no such file, or a file of the range is missing.
    """
    counted = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if counted:
        before, first, last, after = counted.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [Path(f"{before}{n:0{len(first)}d}{after}").expanduser() for n in numbers]
    else:
        path = Path(pattern).expanduser()
        paths = sorted(path.parent.glob(path.name))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise ConfigError(
            f"{field}: there is no shard {missing[0] if missing else pattern}. Write a path with "
            "* or {000..127} for the numbers."
        )
    return paths


def _samples(shard: Path, field: str) -> Iterator[tuple[str, dict[str, _Place]]]:
    """(key, members by extension) of each sample. The members of a sample follow each other."""
    key, members = "", dict[str, _Place]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                stem, _, extension = name.partition(".")
                mine = member.name[: len(member.name) - len(name)] + stem
                if not member.isfile() or not stem:
                    continue
                if mine != key and members:
                    yield key, members
                    members = {}
                key = mine
                members[extension.lower()] = _Place(shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(
            f"{field}: {shard}: not a plain tar file: {error}. Decompress it if it is compressed."
        ) from error
    if members:
        yield key, members


def _label(place: _Place, where: str) -> int:
    text = place.read().decode("ascii", "replace").strip()
    if not text.isdigit():
        raise ConfigError(f"{where}: {text!r} is not a class. Labels are numbers from 0.")
    return int(text)
