"""Opens image files of others as Pillow images of mode L or RGB: 8 bits, opaque and upright.

Pillow's own `convert` cuts values of more than 8 bits off at 255, shows what lies under transparent
pixels, and leaves a photo lying on its side. Here

- values of 16 or 32 bits are scaled by the depth of the file, and floats from 0..1 to 0..255;
- transparent pixels are laid over WHITE, as drawings are meant for paper;
- a photo is turned as its EXIF orientation says;
- an animation or a file of many pages gives its first picture.

All other pictures are exactly what `convert` gives.
"""

from __future__ import annotations

import io
import threading
import warnings
from typing import Any, NamedTuple

import numpy as np
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from soupray.core.arrays import Uint8
from soupray.core.errors import one_line
from soupray.data.splits import Raw

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
"""The formats that are opened, by Pillow's names. They are recognised by the content of a file.
Pillow knows many more. For one of them, EPS, it starts the program Ghostscript."""

MAX_PIXELS = 89_478_485
"""The most pixels of a picture, unless the spec says more: Pillow's MAX_IMAGE_PIXELS."""

LARGE = 16_000_000
"""Pixels of a picture above which pictures are opened one after another, not side by side."""

WHITE = (255, 255, 255, 255)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, for each orientation in EXIF 2.3 but 1, which is upright."""

ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 274, 258, 262, 339
"""Numbers of tags in TIFF 6.0; EXIF has the first one too."""

# Pillow warns about damaged metadata, which soupray does not use. The filter is set once, because
# `warnings.catch_warnings` is not made for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Libraries that open files by Pillow themselves, such as torchvision, start no program either.
EpsImagePlugin.gs_binary = False

_one_large = threading.Lock()


Picture = Image.Image
"""An image of Pillow."""


class Unreadable(ValueError):
    """An image that cannot be read. The message says why."""


class Opened(NamedTuple):
    """An opened picture.

    Attributes:
        image: of mode L or RGB.
        done: what was done to it beyond Pillow's `convert`, in words that are counted.
        changed: a pixel differs from what `convert` alone gives.
    """

    image: Image.Image
    done: tuple[str, ...]
    changed: bool


def opened(raw: Raw | Picture, channels: int, most: int = MAX_PIXELS) -> Opened:
    """Open a picture.

    Args:
        raw: the picture in its source, or opened by Pillow.
        channels: 3 for RGB, 1 for grey.
        most: the largest number of pixels.

    Raises:
        Unreadable: the data are no picture of a known format, are incomplete, have more pixels than
            `most`, or have values that cannot become 8 bits without a loss of the picture.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        if isinstance(raw, Picture):
            return _converted(raw, mode)
        if not isinstance(raw, bytes):
            return Opened(Image.fromarray(raw).convert(mode), (), False)
        if most > (Image.MAX_IMAGE_PIXELS or most):
            Image.MAX_IMAGE_PIXELS = most  # above twice this number, Pillow itself refuses
        image = Image.open(io.BytesIO(raw), formats=[f for f in FORMATS if f in _known()])
        pixels = image.width * image.height
        if pixels > most:
            raise Unreadable(
                f"{image.width} x {image.height} pixels are more than data.max_pixels = {most}"
            )
        if pixels <= LARGE:
            return _converted(image, mode)
        with _one_large:
            return _converted(image, mode)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise Unreadable(f"not an image of a known format ({', '.join(FORMATS)})") from error
    # Pillow's decoders raise exceptions of many types: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {one_line(error)}") from error


def as_raw(image: Image.Image) -> Raw:
    """An image of Pillow as a source: pixels where they say all, else the bytes of a file.

    Raises:
        Unreadable: Pillow cannot write an image of this mode without a loss.
    """
    if image.mode in ("L", "RGB") and ORIENTATION not in image.getexif():
        return np.asarray(image)
    file = io.BytesIO()
    try:
        kind = "TIFF" if image.mode.startswith(("F", "I")) else "PNG"
        image.save(file, kind, exif=image.getexif())
    except (OSError, ValueError) as error:
        raise Unreadable(f"an image of Pillow's mode {image.mode}: convert it to RGB") from error
    return file.getvalue()


def size_of(picture: bytes | Picture) -> tuple[int, int] | None:
    """Width and height of a picture in pixels. None: EXIF says that it has to be turned.

    Args:
        picture: the bytes of a file, or opened by Pillow.

    Raises:
        Unreadable: it cannot be opened.
    """
    try:
        image = picture if isinstance(picture, Picture) else Image.open(io.BytesIO(picture))
        image.load()  # the orientation in a PNG may come after the pixels
    except Exception as error:  # as in `opened`
        raise Unreadable(f"{type(error).__name__}: {one_line(error)}") from error
    return image.size if _turn(image) is None else None


def _known() -> dict[str, object]:
    Image.init()
    return dict.fromkeys(Image.OPEN)


def _converted(image: Image.Image, mode: str) -> Opened:
    image.load()  # the orientation in a PNG may come after the pixels
    opaque, done = image, list[str]()
    if image.mode.startswith(("I", "F")):
        opaque, how = _of_eight_bits(image)
        done.append(how)
    if (laid := _on_white(opaque)) is not opaque:
        opaque = laid
        done.append("transparency laid over white")
    result = opaque.convert(mode)
    if done and _is_flat(result) and not _is_flat(image):
        raise Unreadable(f"blank after this: {' and '.join(done)}")
    if (turn := _turn(image)) is not None:  # FLIP_LEFT_RIGHT is 0
        result = result.transpose(turn)
        done.append("turned as EXIF says")
    changed = bool(done) and not _same(image, result)
    # The second picture of a photo in the format MPO is a preview or the other eye's.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        done.append("several frames or pages, of which the first one is taken")
    return Opened(result, tuple(done), changed)


def _same(image: Image.Image, result: Image.Image) -> bool:
    """Whether Pillow's `convert` alone gives `result`."""
    try:
        plain = image.convert(result.mode)
    except ValueError:  # Pillow has no such conversion
        return False
    return plain.size == result.size and plain.tobytes() == result.tobytes()


def _is_flat(image: Image.Image) -> bool:
    """Whether all pixels are equal."""
    values = np.asarray(image)
    return bool((values == values[:1, :1]).all())


def _of_eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """A picture of one channel of integers or floats, in 8 bits, and how it was done."""
    values = np.asarray(image)
    if image.mode == "F":
        return _from_floats(image, float(values.min()), float(values.max()))
    bits, signed, top = _depth(image)
    if bits == 32 and not signed:
        values = values.view(np.uint32)
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise Unreadable(f"signed values {low} to {high}: store values from 0")
    whole = values.astype(np.uint64)
    if _tags(image).get(PHOTOMETRIC) == 0:  # TIFF's white is zero
        whole = np.uint64(top) - whole
        high = top - low
    if high <= 255:
        eight, how = whole, f"values up to 255 in {bits} bits, taken as they are"
    else:
        eight = (whole * np.uint64(255) + np.uint64(top // 2)) // np.uint64(top)
        how = f"{bits} bits scaled to 8 bits"
    found = Image.fromarray(eight.astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        found.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return found, how


def _from_floats(image: Image.Image, low: float, high: float) -> tuple[Image.Image, str]:
    if not 0 <= low <= high <= 255:  # also if one is NaN
        raise Unreadable(f"float values {low:g} to {high:g} are neither 0 to 1 nor 0 to 255")
    if high > 1:
        return image.convert("L"), "floats up to 255, taken as they are"
    eight = np.rint(np.asarray(image, np.float64) * 255).astype(np.uint8)
    return Image.fromarray(eight), "floats from 0 to 1 scaled to 8 bits"


def _depth(image: Image.Image) -> tuple[int, bool, int]:
    """(bits, whether integers are signed, largest value) of a picture's file."""
    tags = _tags(image)
    if not tags:  # Pillow scales the values of PGM to 16 bits
        return 16, False, 2**16 - 1
    bits, signed = int(tags[BITS][0]), tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    return bits, signed, 2 ** (bits - signed) - 1


def _tags(image: Image.Image) -> dict[int, Any]:
    return dict(getattr(image, "tag_v2", {}))


def _on_white(image: Image.Image) -> Image.Image:
    """A picture with transparent pixels laid over white; `image` itself if it has none."""
    keyed = "transparency" in image.info and image.mode in ("1", "L", "RGB", "P")
    if keyed or image.mode in ("LA", "PA", "RGBA"):
        clear = image.convert("RGBA")
    elif image.mode in ("La", "RGBa"):  # colours are already multiplied by the opacity
        clear = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    else:
        return image
    if clear.getchannel("A").getextrema()[0] == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", clear.size, WHITE), clear)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - metadata that Pillow cannot read say nothing
        return None


def all_pixels(image: Image.Image) -> Uint8:
    """The pixels of a picture of mode L or RGB, uint8 [C, H, W]."""
    array: Uint8 = np.asarray(image)
    return array[None] if image.mode == "L" else array.transpose(2, 0, 1)
