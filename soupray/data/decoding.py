"""Decodes images to arrays of one shape, with the transform for evaluation of the checkpoint.

Usually, the short side is resized (with Pillow's antialiasing), the long side keeps the proportion,
rounded down, and the centre is cut out. The result equals that of the transforms of open_clip, timm
and torchvision, bit for bit. `opening` says how files become images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from soupray.core.arrays import Float64, Uint8
from soupray.data.opening import MAX_PIXELS, Picture, Unreadable, all_pixels, opened
from soupray.data.splits import Raw

ELONGATED = 8
"""Above this ratio of its sides, an image is cut before it is enlarged."""

PRECISION = 22
"""Bits behind the point of Pillow's weights: PRECISION_BITS in its Resample.c."""


class Look(NamedTuple):
    """The common form of all images of a split.

    Attributes:
        size: height and width in pixels.
        channels: 1 or 3.
        interpolation: Pillow's name of the way to resize.
        resize: `shortest` resizes the short side, `squash` both sides.
        crop: `size` divided by the side to which an image is resized before its centre is cut out.
        most: the largest number of pixels of an image in its source.
    """

    size: int
    channels: int
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 1.0
    most: int = MAX_PIXELS

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: [channels, size, size]."""
        return self.channels, self.size, self.size


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: [channels, size, size].
        done: what was done to the image beyond resizing, in words that are counted.
        changed: it differs from the image that Pillow's plain conversion gives.
        source: (width, height) before it was resized.
    """

    pixels: Uint8
    done: tuple[str, ...]
    changed: bool
    source: tuple[int, int]


def decode(raw: Raw | Picture, look: Look, border: int = 0) -> Uint8:
    """Decode one image: the pixels alone, see `decoded`."""
    return decoded(raw, look, border).pixels


def decoded(raw: Raw | Picture, look: Look, border: int = 0) -> Decoded:
    """Decode one image.

    Args:
        raw: the image in its source, or opened by Pillow.
        look: the form of the result.
        border: pixels that are first cut off at each side.

    Raises:
        Unreadable: the data are no image, are incomplete, or are too large.
    """
    image, done, changed = opened(raw, look.channels, look.most)
    if border:
        if min(image.size) <= 2 * border:
            raise Unreadable(f"no pixel is left without its border of {border} pixels")
        image = image.crop((border, border, image.width - border, image.height - border))
    pixels = all_pixels(_centre(_resized(image, look), look.size))
    return Decoded(pixels, done, changed, image.size)


def png(pixels: Uint8) -> bytes:
    """Return the bytes of a PNG file of an image.

    Args:
        pixels: grey [H, W] or RGB [H, W, 3].
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _resized(image: Image.Image, look: Look) -> Image.Image:
    """An image of the right size, or one whose centre is to be cut out."""
    width, height = image.size
    size = math.floor(look.size / look.crop)  # as timm rounds it
    method = Image.Resampling[look.interpolation.upper()]
    if look.resize == "squash":
        return image.resize((size, size), method)
    short, long = min(width, height), max(width, height)
    if short == size:
        return image
    if short < size and long > ELONGATED * short and look.interpolation in KERNELS:
        return _middle(image, size, look)
    rounded = int(size * long / short)
    if size * rounded > max(MAX_PIXELS, width * height):
        raise Unreadable(f"{width} x {height} pixels would become {size} x {rounded}")
    new = (size, rounded) if width <= height else (rounded, size)
    return image.resize(new, method)


def _centre(image: Image.Image, size: int) -> Image.Image:
    # Halves are rounded to even numbers, as in torchvision's center_crop.
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _middle(image: Image.Image, side: int, look: Look) -> Image.Image:
    """The middle of an image with one very long side, enlarged: what `_centre` leaves of it.

    Pillow would enlarge the whole long side first: of 1 x 20 000 pixels, to 224 x 4 480 000. Here
    only the part is read that the result needs, and the long side is enlarged by Pillow's own sums,
    bit for bit. Pillow enlarges each row before it enlarges columns, and rounds in between, as it
    is done here.

    Args:
        image: the image.
        side: to which its short side is enlarged.
        look: the interpolation, and the size of the middle along the long side.
    """
    tall = image.height > image.width
    short, long = min(image.size), max(image.size)
    total = int(side * long / short)
    kernel = KERNELS[look.interpolation]
    first = round((total - look.size) / 2.0)
    start, weights = _weights(long, total, range(first, first + look.size), kernel)
    end = start + weights.shape[1]
    method = Image.Resampling[look.interpolation.upper()]
    if tall:
        part = image.crop((0, start, image.width, end)).resize((side, end - start), method)
        return Image.fromarray(_summed(weights, np.asarray(part)))
    part = image.crop((start, 0, end, image.height))
    summed = _summed(weights, np.asarray(part).swapaxes(0, 1)).swapaxes(0, 1)
    return Image.fromarray(np.ascontiguousarray(summed)).resize((look.size, side), method)


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - math.fabs(x))


def _bicubic(x: float) -> float:
    x = math.fabs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


KERNELS = {"bilinear": (1, _bilinear), "bicubic": (2, _bicubic), "lanczos": (3, _lanczos)}
"""(support, function) of Pillow's filters. Its bicubic filter has a = -0.5."""


def _weights(
    long: int, total: int, wanted: range, kernel: tuple[int, Callable[[float], float]]
) -> tuple[int, Float64]:
    """Pillow's weights for some pixels of a line that is enlarged.

    Args:
        long: pixels of the line.
        total: pixels of the enlarged line.
        wanted: some of them.
        kernel: support and function of the filter.

    Returns:
        The first of the n pixels of the line that matter, and their weights [wanted, n]: whole
        numbers of 2 ** -PRECISION.
    """
    scale = long / total
    support, value = kernel
    rows: list[tuple[int, list[float]]] = []
    for place in wanted:
        centre = (place + 0.5) * scale
        low = max(0, int(centre - support + 0.5))
        high = min(long, int(centre + support + 0.5))
        parts = [value(x - centre + 0.5) for x in range(low, high)]
        # From left to right, as Pillow adds them; `sum` of Python 3.12 is more precise.
        whole = 0.0
        for part in parts:
            whole += part
        rows.append((low, [part / whole for part in parts]))
    start = min(low for low, _ in rows)
    end = max(low + len(parts) for low, parts in rows)
    weights = np.zeros((len(wanted), end - start))
    for row, (low, parts) in zip(weights, rows, strict=True):
        row[low - start : low - start + len(parts)] = parts
    fixed = np.trunc(weights * (1 << PRECISION) + np.copysign(0.5, weights))
    return start, fixed


def _summed(weights: Float64, pixels: Uint8) -> Uint8:
    """The weighted sums of lines of pixels [n, ...], in 8 bits. float64 holds them exactly."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    whole = (weights @ flat).astype(np.int64) + (1 << (PRECISION - 1))
    summed: Uint8 = np.clip(whole >> PRECISION, 0, 255).astype(np.uint8)
    return summed.reshape(len(weights), *pixels.shape[1:])
