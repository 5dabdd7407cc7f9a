"""Images with captions as rows of bytes: the form of such pairs in the data cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Images, Uint8
from soupray.core.texts import unpack

MARK = 0xFE
"""The first byte of a pair: no text in UTF-8 has it."""

CHANNELS = 3


def form_of(side: int, length: int) -> np.dtype[Any]:
    """The fields of a row: the mark, the side of the image, its pixels, and the caption.

    Args:
        side: of the image, in pixels.
        length: bytes of the longest caption; shorter ones are padded with zeros.
    """
    return np.dtype(
        [
            ("mark", np.uint8),
            ("side", ">u2"),
            ("pixels", np.uint8, (CHANNELS, side, side)),
            ("caption", np.uint8, (length,)),
        ]
    )


def as_fields(rows: Uint8, form: np.dtype[Any]) -> npt.NDArray[Any]:
    """Rows [N, W] as N records with the fields of `form`, in the same memory."""
    return rows.view(form)[:, 0]


def are_captioned(rows: Uint8) -> bool:
    """Whether `rows` [N, W] are images with captions, and not texts. It looks at the first row."""
    return len(rows) > 0 and bool(rows[0, 0] == MARK)


def unpack_captioned(rows: Uint8) -> tuple[Images, list[str]]:
    """The images [N, 3, H, W] and the captions in `rows`, in the form of `form_of`.

    A row of zeros, which fills up a batch, is a black image with an empty caption.

    Args:
        rows: [N, W]; the first one says the side of all images.
    """
    side = 256 * int(rows[0, 1]) + int(rows[0, 2])
    length = rows.shape[1] - form_of(side, 0).itemsize
    found = as_fields(np.ascontiguousarray(rows), form_of(side, length))
    return found["pixels"], unpack(found["caption"])
