"""Names that come from outside: types of digests and keys, paths inside a root, text to print.

Recipe files, records and object names may be written by anybody. A digest or a key is checked by
its type when a record is decoded. A name becomes a part of a path through `inside` or `joined`
only, which refuse names that would lead elsewhere. Text for people goes through `plain`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from soupray.core.errors import CheckpointError

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A SHA-256 in hexadecimal. (`$` would allow a line break at the end.)"""

TrialKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""The key of a trial: the first 16 digits of a SHA-256."""

RecordKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""The key of another record: the first 32 digits of a SHA-256."""

Quotable = Annotated[str, Meta(pattern=r"^[^'\"`\\\x00-\x1f\x7f]+\Z")]
"""A name that can stand between quotes in a query of MLflow."""

_UNPRINTED = re.compile(
    "[^ -~\xa0-\U0010ffff]"  # control characters: C0, DEL, C1
    "|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"  # lines, and the direction of text
    "|[\ud800-\udfff]"  # bytes of a file name that are not UTF-8, as Python writes them
)
"""Characters that a terminal obeys, or cannot show."""


def inside(root: Path, *names: str) -> Path:
    """The path of `names`, one below the other, in the folder `root`.

    Args:
        root: a folder.
        names: names of folders and, at the end, of a file.

    Raises:
        CheckpointError: a name would lead out of the folder above it.
    """
    return root.joinpath(*map(_part, names))


def joined(*names: str) -> str:
    """The path of an object in the store, from the names of its folders and its own name.

    Raises:
        CheckpointError: a name would lead out of the folder above it.
    """
    return "/".join(map(_part, names))


def _part(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or _UNPRINTED.search(name):
        raise CheckpointError(
            f"{plain(name)!r} is not the name of a file or an object: a name has no slash and no "
            "control character, and is not a dot or two dots. Use no file that contains it."
        )
    return name


def slug(name: str) -> str:
    """A name for files and metrics: wise_ft(greedy, best) becomes wise_ft_greedy_best."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def plain(text: str) -> str:
    r"""`text` on one line, with escapes like \x1b in place of all characters that are not shown."""
    return _UNPRINTED.sub(_escaped, text)


def indented(text: str) -> str:
    """`text` as `plain` shows it, line by line; lines after the first are indented.

    A name with a line break in it can then not pass for a line of its own.
    """
    return "\n  ".join(map(plain, text.splitlines()))


def plain_json(text: str) -> str:
    r"""JSON with escapes like \u009b in place of all characters that are not shown."""
    lines = text.split("\n")
    return "\n".join(_UNPRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", x) for x in lines)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
