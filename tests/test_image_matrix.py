"""Formats x modes x bit depths x orientation, as real files, against values worked out by hand."""

import io
import os
import resource
import stat
import struct
import zlib

import numpy as np
import pytest
from image_files import ORIENTED, png, pnm, tiff
from pictures import pixels
from PIL import Image, features

from soupray.data.decoding import Look, decode, decoded
from soupray.data.opening import FORMATS, Unreadable

GREY = np.array([[0, 60, 90, 255], [128, 1, 254, 77], [13, 200, 40, 5], [255, 0, 9, 250]], np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
ALPHA = np.array([[255, 0, 255, 128]] * 4, np.uint8)
FLOATS = (GREY / 255).astype(np.float32)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255 if colour.ndim == 3 else alpha / 255
    return colour * share + 255 * (1 - share)


def scaled(values: np.ndarray, most: int) -> np.ndarray:
    return np.rint(values / most * 255)


def saved(array: np.ndarray | Image.Image, kind: str, **how: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    image.save(out, kind, **how)
    return out.getvalue()


def grey_of(colour: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(colour).convert("L"))


WIDE = GREY.astype(np.uint16) * 200 + 17  # beyond 8 bits, and no multiple of 257
LONG = GREY.astype(np.uint32) * 16_777_216 + 5
TWO = GREY // 64
PALETTE = [(n, 255 - n, n // 2) for n in range(256)]
PALETTED = np.array(PALETTE)[GREY].astype(np.uint8)


def palette(transparent: dict[int, int] | None = None) -> bytes:
    chunks = [(b"PLTE", np.array(PALETTE, np.uint8).tobytes())]
    if transparent is not None:
        chunks.append((b"tRNS", bytes(transparent.get(n, 255) for n in range(256))))
    return png(GREY, 8, 3, *chunks)


def pages(kind: str, first: np.ndarray, **how: object) -> bytes:
    frames = [Image.fromarray(255 - first)]
    return saved(first, kind, save_all=True, append_images=frames, **how)


def rgba(kind: str, **how: object) -> bytes:
    return saved(np.dstack([COLOUR, ALPHA]), kind, **how)


ON_WHITE = "transparency laid over white"
FIRST = "several frames or pages, of which the first one is taken"
SIXTEEN = "16 bits scaled to 8 bits"

# name: (file, what [4, 4] or [4, 4, 3] it shows, what was done to it)
CASES = {
    "png grey 1": (png(TWO // 2, 1, 0), TWO // 2 * 255, ()),
    "png grey 2": (png(TWO, 2, 0), TWO * 85, ()),
    "png grey 4": (png(GREY // 16, 4, 0), GREY // 16 * 17, ()),
    "png grey 8": (png(GREY, 8, 0), GREY, ()),
    "png grey 16": (png(WIDE, 16, 0), scaled(WIDE, 65535), (SIXTEEN,)),
    "png grey 16, full range": (png(GREY * np.uint16(257), 16, 0), GREY, (SIXTEEN,)),
    "png grey 16, small": (
        png(GREY, 16, 0),
        GREY,
        ("values up to 255 in 16 bits, taken as they are",),
    ),
    "png grey 16, key": (
        png(WIDE, 16, 0, (b"tRNS", struct.pack(">H", 17))),
        np.where(WIDE == 17, 255, scaled(WIDE, 65535)),
        (SIXTEEN, ON_WHITE),
    ),
    "png grey 8, key": (
        png(GREY, 8, 0, (b"tRNS", struct.pack(">H", 0))),
        np.where(GREY == 0, 255, GREY),
        (ON_WHITE,),
    ),
    "png grey and alpha": (
        png(np.dstack([GREY, ALPHA]), 8, 4),
        over_white(GREY, ALPHA),
        (ON_WHITE,),
    ),
    "png black and alpha": (
        png(np.dstack([GREY * 0, GREY]), 8, 4),
        255 - GREY,
        (ON_WHITE,),
    ),
    "png colour 8": (png(COLOUR, 8, 2), COLOUR, ()),
    "png colour 16": (png(COLOUR * np.uint16(257), 16, 2), COLOUR, ()),
    "png colour 8, key": (
        png(COLOUR, 8, 2, (b"tRNS", struct.pack(">3H", *map(int, COLOUR[0, 0])))),
        np.where((COLOUR[0, 0] == COLOUR).all(-1, keepdims=True), 255, COLOUR),
        (ON_WHITE,),
    ),
    "png colour and alpha": (rgba("PNG"), over_white(COLOUR, ALPHA), (ON_WHITE,)),
    "png colour and alpha 16": (
        png(np.dstack([COLOUR, ALPHA]) * np.uint16(257), 16, 6),
        over_white(COLOUR, ALPHA),
        (ON_WHITE,),
    ),
    "png opaque": (saved(np.dstack([COLOUR, ALPHA * 0 + 255]), "PNG"), COLOUR, ()),
    "png palette": (palette(), PALETTED, ()),
    "png palette and alpha": (
        palette({60: 0, 255: 128}),
        over_white(PALETTED, np.select([GREY == 60, GREY == 255], [0, 128], 255)),
        (ON_WHITE,),
    ),
    "png animated": (pages("PNG", COLOUR), COLOUR, (FIRST,)),
    "tiff grey 1": (
        saved(Image.fromarray(GREY).point(lambda v: v > 99, "1"), "TIFF"),
        (GREY > 99) * 255,
        (),
    ),
    "tiff grey 8": (tiff(GREY), GREY, ()),
    "tiff grey 8, white is zero": (tiff(GREY, white_is_zero=True), 255 - GREY, ()),
    "tiff grey 16": (tiff(WIDE), scaled(WIDE, 65535), (SIXTEEN,)),
    "tiff grey 16, other order": (tiff(WIDE, ">"), scaled(WIDE, 65535), (SIXTEEN,)),
    "tiff grey 16, white is zero": (
        tiff(WIDE, white_is_zero=True),
        scaled(65535 - WIDE.astype(int), 65535),
        (SIXTEEN,),
    ),
    "tiff signed 16": (
        tiff((WIDE // 2).astype(np.int16)),
        scaled(WIDE // 2, 32767),
        (SIXTEEN,),
    ),
    "tiff grey 32": (tiff(LONG), scaled(LONG, 2**32 - 1), ("32 bits scaled to 8 bits",)),
    "tiff signed 32": (
        tiff((LONG // 2).astype(np.int32)),
        scaled(LONG // 2, 2**31 - 1),
        ("32 bits scaled to 8 bits",),
    ),
    "tiff floats to 1": (tiff(FLOATS), GREY, ("floats from 0 to 1 scaled to 8 bits",)),
    "tiff floats to 1, other order": (
        tiff(FLOATS, ">"),
        GREY,
        ("floats from 0 to 1 scaled to 8 bits",),
    ),
    "tiff floats to 255": (
        tiff(GREY.astype(np.float32)),
        GREY,
        ("floats up to 255, taken as they are",),
    ),
    "tiff colour": (saved(COLOUR, "TIFF"), COLOUR, ()),
    "tiff colour, deflated": (saved(COLOUR, "TIFF", compression="tiff_deflate"), COLOUR, ()),
    "tiff colour and alpha": (rgba("TIFF"), over_white(COLOUR, ALPHA), (ON_WHITE,)),
    "tiff pages": (pages("TIFF", COLOUR), COLOUR, (FIRST,)),
    "tiff inks": (saved(Image.fromarray(255 - COLOUR).convert("CMYK"), "TIFF"), 255 - COLOUR, ()),
    "pgm 8": (pnm(GREY, 255), GREY, ()),
    "pgm of 100": (pnm(GREY // 3, 100), scaled(GREY // 3, 100), ()),
    "pgm 12": (pnm(GREY * np.uint16(16), 4095), scaled(GREY * 16.0, 4095), (SIXTEEN,)),
    "pgm 16": (pnm(WIDE, 65535), scaled(WIDE, 65535), (SIXTEEN,)),
    "ppm 8": (pnm(COLOUR, 255), COLOUR, ()),
    "ppm 16": (pnm(COLOUR * np.uint16(257), 65535), COLOUR, ()),
    "pbm": (
        b"P4\n4 4\n" + bytes([0b10100000, 0, 0b11110000, 0]),
        np.array([[0, 255, 0, 255], [255] * 4, [0] * 4, [255] * 4]),
        (),
    ),
    "bmp colour": (saved(COLOUR, "BMP"), COLOUR, ()),
    "bmp grey": (saved(GREY, "BMP"), GREY, ()),
    "gif": (saved(GREY, "GIF"), GREY, ()),
    "gif, key": (saved(GREY, "GIF", transparency=0), np.where(GREY == 0, 255, GREY), (ON_WHITE,)),
    "gif animated": (pages("GIF", GREY), GREY, (FIRST,)),
    "webp": (saved(COLOUR, "WEBP", lossless=True), COLOUR, ()),
    "webp and alpha": (
        rgba("WEBP", lossless=True, exact=True),
        over_white(COLOUR, ALPHA),
        (ON_WHITE,),
    ),
    "webp animated": (pages("WEBP", COLOUR, lossless=True), COLOUR, (FIRST,)),
    "jpeg 2000": (saved(COLOUR, "JPEG2000"), COLOUR, ()),
    "jpeg 2000, 16": (saved(Image.fromarray(WIDE), "JPEG2000"), scaled(WIDE, 65535), (SIXTEEN,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_file_shows_what_it_holds(name, channels):
    data, shown, done = CASES[name]
    wanted = np.asarray(shown, float)
    if channels == 1 and wanted.ndim == 3:
        wanted = grey_of(np.rint(wanted).astype(np.uint8)).astype(float)
    if channels == 3 and wanted.ndim == 2:
        wanted = np.dstack([wanted] * 3)
    found = decoded(data, Look(4, channels))
    assert found.done == done
    pixel = found.pixels[0] if channels == 1 else found.pixels.transpose(1, 2, 0)
    # Laid over white, Pillow rounds a half in its own way.
    assert np.abs(pixel - wanted).max() <= (1 if ON_WHITE in done else 0)


@pytest.mark.parametrize("name", CASES)
def test_a_picture_counts_as_changed_only_if_plain_pillow_shows_another_one(name):
    data, _, _ = CASES[name]
    found = decoded(data, Look(4, 3))
    with Image.open(io.BytesIO(data)) as image:
        plain = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert found.changed == (not np.array_equal(found.pixels, plain))
    if not found.done:
        assert not found.changed


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_photos_are_what_pillow_shows(mode):
    image = Image.fromarray(pixels(5, (32, 32))).convert(mode)
    data = saved(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        wanted = np.asarray(stored.convert("RGB")).transpose(2, 0, 1)
    found = decoded(data, Look(32, 3))
    assert (found.pixels == wanted).all()
    assert (found.done, found.changed) == ((), False)
    back = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(wanted.astype(int) - back).mean() < 8  # and the inks are not inverted


def test_avif():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    found = decode(saved(pixels(5, (32, 32)), "AVIF", quality=95), Look(32, 3))
    assert np.abs(found.transpose(1, 2, 0).astype(int) - pixels(5, (32, 32))).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(kind, orientation):
    blocks = np.kron(np.array([[0, 60, 120], [150, 200, 255]], np.uint8), np.ones((16, 16)))
    stored = np.dstack([blocks.astype(np.uint8)] * 3)
    exif = Image.Exif()
    exif[274] = orientation
    how = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    found = decoded(saved(stored, kind, exif=exif, **how), Look(32, 3))
    turned = ORIENTED[orientation](stored)
    height, width = turned.shape[:2]
    top, left = (height - 32) // 2, (width - 32) // 2
    wanted = turned[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.abs(found.pixels.astype(int) - wanted).max() <= 2
    # Pillow itself turns a TIFF.
    turns = orientation > 1 and kind != "TIFF"
    assert (found.done, found.changed) == (("turned as EXIF says",) * turns, turns)


def test_a_deep_picture_is_turned_and_laid_over_white_too():
    exif = Image.Exif()
    exif[274] = 6
    data = saved(np.dstack([COLOUR, ALPHA]), "PNG", exif=exif)
    found = decoded(data, Look(4, 3))
    wanted = np.rot90(over_white(COLOUR, ALPHA), -1).transpose(2, 0, 1)
    assert np.abs(found.pixels - wanted).max() <= 1
    assert found.done == (ON_WHITE, "turned as EXIF says")


def test_damaged_exif_says_nothing():
    data = saved(COLOUR, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (decode(data, Look(4, 3)) == COLOUR.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(np.array([[-5, 300]], np.int16)), "signed values -5 to 300: store values from 0"),
        (tiff(np.array([[0.0, 4000.0]], np.float32)), "float values 0 to 4000 are neither 0 to 1"),
        (tiff(np.array([[-0.5, 1.0]], np.float32)), "float values -0.5 to 1 are neither"),
        (tiff(np.array([[np.nan, 1.0]], np.float32)), "float values nan to nan are neither"),
        (tiff(np.array([[0, 40_000]], np.uint32)), "blank after this: 32 bits scaled to 8 bits"),
        (
            png(np.dstack([GREY * 0 + 255, GREY]), 8, 4),
            "blank after this: transparency laid over white",
        ),
    ],
    ids=["signed", "large", "below", "nan", "faint", "white drawing"],
)
def test_a_picture_that_eight_bits_cannot_show_is_refused(data, said):
    with pytest.raises(Unreadable, match=said):
        decode(data, Look(2, 3))


# Decoders


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def others() -> dict[str, bytes]:
    """Files of formats that Pillow knows and soupray does not open."""
    image = Image.fromarray(pixels(1, (32, 32)))
    kinds = ("ICO", "PCX", "TGA", "SGI", "DDS", "ICNS", "IM")
    return {"EPS": EPS} | {kind: saved(image, kind) for kind in kinds}


@pytest.mark.parametrize("kind", others())
def test_a_format_that_is_not_on_the_list_is_not_opened_and_starts_no_program(
    kind, tmp_path, monkeypatch
):
    started = tmp_path / "gs"
    started.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    started.chmod(started.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    data = others()[kind]
    with pytest.raises(Unreadable, match=f"not an image of a known format .{FORMATS[0]}, "):
        decode(data, Look(16, 3))
    # A library that asks Pillow itself, such as torchvision, starts none either.
    if kind == "EPS":
        with pytest.raises(OSError, match="Ghostscript"):
            Image.open(io.BytesIO(data)).load()
    assert not (tmp_path / "started").exists()


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts
    )
    with pytest.raises(Unreadable, match=r"DecompressionBombError|data\.max_pixels = 89478485"):
        decode(data, Look(16, 3))
    small = saved(COLOUR, "PNG")
    with pytest.raises(Unreadable, match=r"4 x 4 pixels are more than data\.max_pixels = 15"):
        decode(small, Look(4, 3, most=15))
    assert decode(small, Look(4, 3, most=16)).shape == (3, 4, 4)
    # Above the limit of Pillow itself, if the spec says so.
    large = saved(Image.new("1", (20_000, 9_500)), "PNG")
    with pytest.raises(Unreadable):
        decode(large, Look(4, 1))
    assert decode(large, Look(4, 1, most=200_000_000)).shape == (1, 4, 4)


# One side much longer than the other


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 90), 16), ((90, 1), 16), ((3, 200), 8), ((200, 3), 8), ((15, 500), 16), ((500, 15), 16),
     ((2, 33), 4), ((33, 2), 4), ((16, 300), 16), ((300, 16), 16), ((40, 500), 16), ((500, 40), 16),
     ((7, 101), 61), ((101, 7), 61), ((1, 17), 2), ((17, 1), 3)],
)  # fmt: skip
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(("mode", "crop"), [("RGB", 1.0), ("L", 0.875)])
def test_an_elongated_picture_is_cut_before_it_is_enlarged_with_the_same_result(
    shape, size, interpolation, mode, crop
):
    image = Image.fromarray(
        np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)
    ).convert(mode)
    side = int(size / crop)
    short, long = min(shape), max(shape)
    rounded = int(side * long / short)
    new = (side, rounded) if shape[0] > shape[1] else (rounded, side)
    method = Image.Resampling[interpolation.upper()]
    whole = np.asarray(image.resize(new, method) if short != side else image)
    top, left = (round((length - size) / 2.0) for length in whole.shape[:2])
    wanted = whole[top : top + size, left : left + size]
    look = Look(size, 3 if mode == "RGB" else 1, interpolation, "shortest", crop)
    found = decode(saved(image, "PNG"), look)
    assert (found == (wanted.transpose(2, 0, 1) if mode == "RGB" else wanted[None])).all()


def test_an_elongated_picture_may_be_squashed_and_is_refused_where_it_would_be_enlarged_whole():
    data = saved(Image.new("L", (1, 20_000), 77), "PNG")
    assert (decode(data, Look(16, 3, resize="squash")) == 77).all()
    with pytest.raises(Unreadable, match="1 x 20000 pixels would become 224 x 4480000"):
        decode(data, Look(224, 3, interpolation="nearest"))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 2_000_000)])
def test_a_line_of_pixels_takes_no_memory(size):
    data = saved(Image.new("L", size, 77), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decode(data, Look(224, 3))
    # In KiB. The whole line, enlarged, has 13 GB of pixels at 20 000.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert (found == 77).all()
