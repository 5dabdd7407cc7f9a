"""Images of the data cache as small pictures for a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from soupray.core.arrays import Uint8

SIDE = 96
"""Pixels of the longer side, at most."""


def thumbnail(image: Uint8) -> str:
    """Return an image as the `data:` URL of a PNG file.

    A larger image is made smaller; a smaller one grows by a whole factor, so that each of its
    pixels is a square.

    Args:
        image: [C, H, W]. Of three channels and more, the first three are red, green and blue; of
            one or two, the first is grey.
    """
    channels, height, width = image.shape
    shown = image[0] if channels < 3 else np.moveaxis(image[:3], 0, -1)
    picture, longest = Image.fromarray(np.ascontiguousarray(shown)), max(height, width)
    if longest > SIDE:
        sides = (max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest)))
        picture = picture.resize(sides)
    elif longest * 2 <= SIDE:
        factor = SIDE // longest
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
