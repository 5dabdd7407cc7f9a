"""Texts as rows of bytes: the form of texts in the data cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soupray.core.arrays import Uint8


def pack(texts: Sequence[str]) -> Uint8:
    """Texts as an array [N, L]: the UTF-8 bytes of each, padded with zeros to the longest."""
    rows = [text.encode() for text in texts]
    length = max(1, *map(len, rows)) if rows else 1
    packed = np.zeros((len(rows), length), np.uint8)
    for row, data in zip(packed, rows, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return packed


def unpack(rows: Uint8) -> list[str]:
    """The N texts in `rows` [N, L], as `pack` packed them."""
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def cut(text: str, size: int) -> str:
    """The longest beginning of `text` that takes at most `size` bytes in UTF-8."""
    return text.encode()[:size].decode(errors="ignore")
