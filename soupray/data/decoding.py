"""Encoded images as arrays of one shape: what the evaluation transforms of the field make of them.

The short side is resized to `size` (bicubic, Pillow's antialiasing), the long one in proportion,
rounded down, and the centre is cut out: open_clip's and torchvision's transform, bit for bit.
"""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from soupray.data.splits import Images, Raw


class Unreadable(ValueError):
    """An image that cannot be read; the message says why."""


class Look(NamedTuple):
    """What all images of a split are made to look like: [channels, size, size]."""

    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.channels, self.size, self.size


def decode(raw: Raw, look: Look, border: int = 0) -> Images:
    """One image [C, size, size] uint8; `border` pixels are cut off at each side first.

    Raises:
        Unreadable: not an image, or not all of one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which nobody reads
            image = Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else Image.fromarray(raw)
            # Before the resizing, as torchvision's ImageFolder does: palettes cannot be averaged.
            image = image.convert("RGB" if look.channels == 3 else "L")
        if border:
            image = image.crop((border, border, image.width - border, image.height - border))
        image = _centre(_resized(image, look.size), look.size)
    except UnidentifiedImageError as error:  # whose own message has an address in it
        raise Unreadable("not an image that Pillow knows") from error
    # Pillow's decoders raise whatever comes to them: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    array: npt.NDArray[np.uint8] = np.asarray(image)
    return array[None] if look.channels == 1 else array.transpose(2, 0, 1)


def _resized(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short == size:
        return image
    rounded = int(size * long / short)
    new = (size, rounded) if width <= height else (rounded, size)
    return image.resize(new, Image.Resampling.BICUBIC)


def _centre(image: Image.Image, size: int) -> Image.Image:
    # Halves are rounded to even, as torchvision's center_crop does.
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
