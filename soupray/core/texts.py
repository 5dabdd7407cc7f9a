"""Texts as rows of bytes: how the data cache holds them, and how a task reads them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pack(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """[N, L] uint8: the UTF-8 of each text, filled up with zeros to the longest."""
    rows = [text.encode() for text in texts]
    length = max(1, *map(len, rows)) if rows else 1
    packed = np.zeros((len(rows), length), np.uint8)
    for row, data in zip(packed, rows, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return packed


def unpack(rows: npt.NDArray[np.uint8]) -> list[str]:
    """The N texts of packed `rows` [N, L]."""
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def cut(text: str, size: int) -> str:
    """The longest beginning of `text` that is `size` bytes of UTF-8 at most."""
    return text.encode()[:size].decode(errors="ignore")
