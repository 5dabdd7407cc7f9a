"""Which runs a tracker has written into a folder, so that a second write changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from soupray.core.names import inside, slug
from soupray.core.records import Record, decode, encode
from soupray.spec.files import atomic_write

MARK = "soupray.json"


class Mark(Record, frozen=True, kw_only=True):
    """A run that was written.

    Attributes:
        key, kind: see `TrackedRun`.
        digest: of all that was written.
    """

    key: str
    kind: str
    digest: str


class Marks:
    """A folder for each run of a sweep, which has a mark once the run is written."""

    def __init__(self, root: Path, sweep: str) -> None:
        self._sweep = sweep
        self.folder = inside(root, sweep)

    def folder_of(self, key: str) -> Path:
        """Return the folder of a run. Keys that differ have folders that differ."""
        first, *rest = key.split("/")
        return inside(self.folder, *map(_name, rest if first == self._sweep else [first, *rest]))

    def find(self, key: str) -> Mark | None:
        """Return the mark of a run; None if it was not written to its end."""
        return _read(self.folder_of(key) / MARK)

    def begin(self, key: str) -> Path:
        """Remove the mark of a run, and return its folder, which now exists."""
        folder = self.folder_of(key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).unlink(missing_ok=True)
        return folder

    def end(self, mark: Mark) -> None:
        """Write a mark: the run is there."""
        atomic_write(self.folder_of(mark.key) / MARK, encode(mark))

    def all(self) -> Iterator[Mark]:
        """Yield the marks of all runs of the sweep."""
        for path in sorted(self.folder.rglob(MARK)):
            mark = _read(path)
            if mark is not None and self.folder_of(mark.key) == path.parent:
                yield mark


def _name(part: str) -> str:
    """A part of a key as the name of a folder: with a digest, if characters are replaced."""
    short = slug(part)
    return part if short == part else f"{short}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def _read(path: Path) -> Mark | None:
    try:
        return decode(path.read_bytes(), Mark)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
