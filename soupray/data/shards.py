"""WebDataset shards: tar files. The members KEY.jpg and KEY.cls are image and label of a sample."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import ConfigError, one_line
from soupray.data.folders import MOST_BYTES
from soupray.data.splits import Listing, Raw, listing
from soupray.spec.files import path_of

IMAGES = ("jpg", "jpeg", "png", "webp")
LABEL = "cls"
DIGITS = 18
"""The most digits of a label: an int64 holds all numbers with 18 digits."""

LABEL_BYTES = 64
"""The largest label file: a number has fewer digits."""

MOST_PADDING = 16 * 2**20
"""The most zeros at the end of a tar file. GNU tar fills up to 10 240 bytes, or what -b says."""

SHOWN = 5
"""Number of samples that a message lists."""

_HOW = "Write a path with * or {000..127} for the numbers."


class _Place(NamedTuple):
    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def list_shards(pattern: str, field: str, skip: bool = False) -> Listing:
    """All samples of some shards, with ids like SHARD/KEY.

    Only the headers and the labels of the tar files are read.

    Args:
        pattern: the shards, see `shards`.
        field: the field of the spec that error messages name.
        skip: samples without an image or a label are left out; the notes of the listing say so.

    Raises:
        ConfigError: there is no shard, a shard is not a whole plain tar file, a key is there twice
            in a row, or (without `skip`) a sample has no image or no label, or a label is not a
            number.
    """
    ids: list[str] = []
    labels: list[int] = []
    places: list[_Place] = []
    problems: list[str] = []
    for shard in shards(pattern, field):
        for key, members in _samples(shard, field):
            found = _sample(members)
            if isinstance(found, str):
                problems.append(f"{shard}: sample {key!r} {found}")
                if not skip:
                    raise ConfigError(
                        f"{field}: {problems[0]}. Mend it, or write data.on_error: skip."
                    )
                continue
            image, label = found
            ids.append(f"{shard.name}/{key}")
            labels.append(label)
            places.append(image)
    if not ids:
        raise ConfigError(f"{field}: {pattern}: there is no sample in it.")

    def read(row: int) -> Raw:
        return places[row].read()

    notes: tuple[str, ...] = ()
    if problems:
        shown = "; ".join(problems[:SHOWN]) + (" ..." if len(problems) > SHOWN else "")
        notes = (
            f"{field}: {len(problems)} of {len(problems) + len(ids)} samples left out: {shown}",
        )
    return listing(ids, labels, read)._replace(notes=notes)


def _sample(members: dict[str, _Place]) -> tuple[_Place, int] | str:
    """The image and the label of a sample, or what is wrong with it."""
    images = [ext for ext in IMAGES if ext in members]
    if not images:
        return f"has no image ({', '.join('.' + ext for ext in IMAGES)})"
    if len(images) > 1:
        return f"has {len(images)} images, .{' and .'.join(images)}"
    if LABEL not in members:
        return f"has no .{LABEL}"
    if members[images[0]].size > MOST_BYTES:
        return f"has an image of {members[images[0]].size} bytes, more than {MOST_BYTES}"
    if members[LABEL].size > LABEL_BYTES:
        return f"has a .{LABEL} of {members[LABEL].size} bytes, which is no class"
    text = members[LABEL].read().decode("ascii", "replace").strip()
    if not text.isdigit() or len(text) > DIGITS:
        return f"has the .{LABEL} {text!r}, which is not a class: labels are numbers from 0"
    return members[images[0]], int(text)


def shards(pattern: str, field: str) -> list[Path]:
    """The files that a pattern names.

    Args:
        pattern: a path with `{000..127}` for a range of numbers, or with `*` and `?`.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: there is no such file, or a file of the range is missing.
    """
    path_of(pattern, field)
    counted = re.fullmatch(r"(.*)\{(\d{1,18})\.\.(\d{1,18})\}(.*)", pattern)
    if not counted:
        path = path_of(pattern, field)
        try:
            paths = sorted(found for found in path.parent.glob(path.name) if found.is_file())
        except (ValueError, OSError) as error:  # `**` is a name of its own, or nothing
            raise ConfigError(f"{field}: {pattern!r} is no pattern: {error}. {_HOW}") from error
        if not paths:
            raise ConfigError(f"{field}: there is no shard {pattern!r}. {_HOW}")
        return paths
    before, first, last, after = counted.groups()
    if int(last) < int(first):
        raise ConfigError(f"{field}: the numbers of {pattern!r} go down. {_HOW}")
    paths = []
    # One after another: a range may have a thousand million numbers, and the first shard that is
    # not there ends it.
    for number in range(int(first), int(last) + 1):
        shard = path_of(f"{before}{number:0{len(first)}d}{after}", field)
        if not shard.is_file():
            raise ConfigError(f"{field}: there is no shard {str(shard)!r}. {_HOW}")
        paths.append(shard)
    return paths


def _samples(shard: Path, field: str) -> Iterator[tuple[str, dict[str, _Place]]]:
    """(key, members by extension) of each sample. The members of a sample follow each other."""
    key, members = "", dict[str, _Place]()
    for member in _members(shard, field):
        name = member.name.rpartition("/")[2]
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        mine = member.name[: len(member.name) - len(name)] + stem
        if not stem or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ConfigError(
                f"{field}: {shard}: {member.name!r} is not a plain file but a link, a device or a "
                "sparse file. Write the shard with copies: tar --hard-dereference -h."
            )
        if mine != key and members:
            yield key, members
            members = {}
        key = mine
        if extension in members:
            raise ConfigError(
                f"{field}: {shard}: the key {key!r} has .{extension} twice, so that two samples "
                "would be one. Give each sample a key of its own."
            )
        members[extension] = _Place(shard, member.offset_data, member.size)
    if members:
        yield key, members


def _members(shard: Path, field: str) -> Iterator[tarfile.TarInfo]:
    """The members of a plain tar file, which is read to its end."""
    reached = -1
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # A negative size leads back, so that the members would never end.
                if member.size < 0 or member.offset <= reached:
                    raise tarfile.ReadError("the size of a member is negative")
                reached = member.offset
                yield member
            problem = _after_the_end(shard, tar.offset)
    # What a header holds is read as numbers and text of many forms.
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{field}: {shard}: not a plain tar file: {one_line(error)}. Decompress it if it is "
            "compressed."
        ) from error
    if problem:
        raise ConfigError(f"{field}: {shard}: {problem}")


def _after_the_end(shard: Path, end: int) -> str:
    """What is wrong with the bytes after the last member, where `tarfile` stops without a word."""
    left = shard.stat().st_size - end
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        rest = file.read(MOST_PADDING + 1)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        return (
            f"no header and no end at byte {end}: the shard was cut, damaged, or is still being "
            "written. Fetch it again."
        )
    if left > MOST_PADDING or any(rest):
        return (
            f"{left} bytes follow the end of the tar file, as when files are joined with cat. Join "
            "them with tar --concatenate, or name them one by one."
        )
    return ""
