"""Paths and files that a spec or a data set names. They may be anything, so nothing is assumed.

Only regular files are read, also through links: a device never ends, and a FIFO waits for ever.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soupray.core.errors import ConfigError

MOST_TEXT = 64 * 2**20
"""The most bytes of a spec, a label map or a list of ids: the ids of a million images are fewer."""

LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes: NAME_MAX of Linux, and its PATH_MAX with some room for the names in a folder."""


def path_of(named: str, field: str) -> Path:
    """The path that a field of a spec names, with `~` for the home folder.

    Args:
        named: what the spec has.
        field: the field, for messages.

    Raises:
        ConfigError: no file can have this path.
    """
    if any(unicodedata.category(character) == "Cc" for character in named):
        raise ConfigError(f"{field}: {named!r} has a control character or a NUL. Remove it.")
    try:
        path = Path(named).expanduser()
        parts = os.fsencode(path).split(b"/")
    except (RuntimeError, UnicodeEncodeError) as error:
        known = "a user of this machine" if isinstance(error, RuntimeError) else "text in UTF-8"
        raise ConfigError(f"{field}: {named!r} does not name {known}. Write the path.") from error
    if max(map(len, parts)) > LONGEST_NAME or len(b"/".join(parts)) > LONGEST_PATH:
        raise ConfigError(
            f"{field}: {named[:60]!r}... is longer than a path of Linux: {LONGEST_NAME} bytes a "
            f"name, {LONGEST_PATH} in all. Write a shorter one."
        )
    return path


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file.

    Args:
        path: of the file, or of a link to it.
        most: the largest size in bytes.

    Raises:
        OSError: there is no such file, it is a folder, a device or a FIFO, or is larger than
            `most`.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a path cannot have a NUL in it", str(path))
    # Without O_NONBLOCK, to open a FIFO already waits for its other end.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    about = os.fstat(opened)
    if not stat.S_ISREG(about.st_mode):
        os.close(opened)
        what = "a folder, not a file" if stat.S_ISDIR(about.st_mode) else "not a regular file"
        raise OSError(errno.EINVAL, what, str(path))
    with os.fdopen(opened, "rb") as file:
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"{about.st_size} bytes, more than {most}", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """The text of a file. Raises ConfigError if it cannot be read or is not UTF-8.

    Args:
        path: of a regular file of at most MOST_TEXT bytes.
    """
    try:
        text = read_regular(path, MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text.") from error
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read: {said}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON, for `object_pairs_hook`: of two equal names `json` keeps the last one.

    Args:
        pairs: names and values, in order.

    Raises:
        ValueError: a name is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise ValueError(f"{twice!r} is there twice in one mapping; leave one of the two")
    return found


def atomic_write(path: Path, data: bytes) -> None:
    """Write a local file so that no reader sees a part of it, and a full disk leaves no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
