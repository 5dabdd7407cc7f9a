"""Decodes images to arrays of one shape, with the transform for evaluation of the checkpoint.

Usually, the short side is resized (with Pillow's antialiasing), the long side keeps the proportion,
rounded down, and the centre is cut out. The result equals that of the transforms of open_clip, timm
and torchvision, bit for bit.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from soupray.core.arrays import Uint8
from soupray.data.splits import Raw


class Unreadable(ValueError):
    """An image that cannot be read. The message says why."""


class Look(NamedTuple):
    """The common form of all images of a split.

    Attributes:
        size: height and width in pixels.
        channels: 1 or 3.
        interpolation: Pillow's name of the way to resize.
        resize: `shortest` resizes the short side, `squash` both sides.
        crop: `size` divided by the side to which an image is resized before its centre is cut out.
    """

    size: int
    channels: int
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: [channels, size, size]."""
        return self.channels, self.size, self.size


def decode(raw: Raw, look: Look, border: int = 0) -> Uint8:
    """Decode one image.

    Args:
        raw: the image in its source.
        look: the form of the result.
        border: pixels that are first cut off at each side.

    Returns:
        [channels, size, size].

    Raises:
        Unreadable: the data are no image, or are incomplete.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, which soupray does not use
            image = Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else Image.fromarray(raw)
            # Before the resizing, as in torchvision: colours of a palette cannot be averaged.
            image = image.convert("RGB" if look.channels == 3 else "L")
        if border:
            image = image.crop((border, border, image.width - border, image.height - border))
        image = _centre(_resized(image, look), look.size)
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise Unreadable("not an image that Pillow knows") from error
    # Pillow's decoders raise exceptions of many types: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    array: Uint8 = np.asarray(image)
    return array[None] if look.channels == 1 else array.transpose(2, 0, 1)


def _resized(image: Image.Image, look: Look) -> Image.Image:
    width, height = image.size
    size = math.floor(look.size / look.crop)  # as timm rounds it
    method = Image.Resampling[look.interpolation.upper()]
    if look.resize == "squash":
        return image.resize((size, size), method)
    short, long = min(width, height), max(width, height)
    if short == size:
        return image
    rounded = int(size * long / short)
    new = (size, rounded) if width <= height else (rounded, size)
    return image.resize(new, method)


def _centre(image: Image.Image, size: int) -> Image.Image:
    # Halves are rounded to even numbers, as in torchvision's center_crop.
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
