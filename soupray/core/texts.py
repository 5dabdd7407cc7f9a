"""Texts as rows of bytes: the form of texts in the data cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soupray.core.arrays import Uint8

BETWEEN = 0xFF
"""The byte between the two texts of a pair: no text in UTF-8 has it."""


def pack(texts: Sequence[str]) -> Uint8:
    """Texts as an array [N, L]: the UTF-8 bytes of each, padded with zeros to the longest."""
    return _packed([text.encode() for text in texts])


def pack_pairs(pairs: Sequence[tuple[str, str]]) -> Uint8:
    """Pairs of texts as an array [N, L]: their UTF-8 bytes with BETWEEN in the middle."""
    return _packed([bytes([BETWEEN]).join(text.encode() for text in pair) for pair in pairs])


def _packed(rows: Sequence[bytes]) -> Uint8:
    length = max(1, *map(len, rows)) if rows else 1
    packed = np.zeros((len(rows), length), np.uint8)
    for row, data in zip(packed, rows, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return packed


def unpack(rows: Uint8) -> list[str]:
    """The N texts in `rows` [N, L], as `pack` packed them."""
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def are_pairs(rows: Uint8) -> bool:
    """Whether `rows` [N, L] are pairs of texts. A row of zeros alone may be either."""
    return bool((rows == BETWEEN).any())


def unpack_pairs(rows: Uint8) -> tuple[list[str], list[str]]:
    """The first and the second texts of the N pairs in `rows` [N, L].

    A row of zeros, which fills up a batch, is a pair of empty texts.
    """
    parts = [row.tobytes().rstrip(b"\0").partition(bytes([BETWEEN])) for row in rows]
    return [first.decode() for first, _, _ in parts], [second.decode() for _, _, second in parts]


def cut(text: str, size: int) -> str:
    """The longest beginning of `text` that takes at most `size` bytes in UTF-8."""
    return text.encode()[:size].decode(errors="ignore")
