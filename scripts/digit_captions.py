"""Makes sweeps/digit_captions' data: handwritten digits, drawn in four ways, with captions.

    python scripts/digit_captions.py .home/digit_captions

A caption names the digit and the way, in the words of the small CLIP in this package. Digits of the
test are by other hands than those of training. The shifts have the captions of the test.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, TEST = 600, 400
"""The first digits are for training and held-out data, the last ones for test."""
SIDE = 32
QUALITY = 95


class Way(NamedTuple):
    """How a digit is drawn, and the caption of it, with {} for its name."""

    caption: str
    draw: Callable[[Image.Image], Image.Image]


def smooth(digit: Image.Image) -> Image.Image:
    """A digit of 8 x 8 pixels in the size of the model."""
    return digit.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def inked(digit: Image.Image) -> Image.Image:
    """The same, black on white."""
    return ImageOps.invert(smooth(digit))


def coarse(digit: Image.Image) -> Image.Image:
    """The same, with the edges of its 8 x 8 pixels."""
    return digit.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def small(digit: Image.Image) -> Image.Image:
    """A digit in the middle of a larger image, blurred."""
    half = digit.resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC)
    framed = ImageOps.expand(half, border=SIDE // 4)
    return framed.filter(ImageFilter.GaussianBlur(1.5))


WAYS = (
    Way("an image of the digit {}, white on black.", smooth),
    Way("a drawing of the number {} in black ink on white paper.", inked),
    Way("a small, blurry picture of the digit {}.", small),
    Way("a low resolution scan of the printed symbol {}.", coarse),
)


def turned(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turned by up to 30 degrees; the corners have the grey of the first pixel."""
    corner = int(np.asarray(image)[0, 0])
    angle = float(draw.uniform(-30, 30))
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=corner)


def grainy(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """With noise of a standard deviation of 40 of 255."""
    noisy = np.asarray(image, np.float64) + draw.normal(0, 40, (SIDE, SIDE))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def drawn(rows: Iterable[int], draw: np.random.Generator) -> list[tuple[str, str, Image.Image]]:
    """(name, caption, image) of each digit, in a way that is drawn at random."""
    images, labels = load_digits(return_X_y=True)
    made = []
    for row in rows:
        way = int(draw.integers(len(WAYS)))
        digit = Image.fromarray((images[row].reshape(8, 8) * (255 / 16)).round().astype(np.uint8))
        caption = WAYS[way].caption.format(WORDS[labels[row]])
        made.append((f"{row}-{way}", caption, WAYS[way].draw(digit)))
    return made


def write(folder: Path, name: str, pairs: Iterable[tuple[str, str, Image.Image]]) -> None:
    """Write the images into a folder NAME, and the table NAME.csv beside it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number, caption, image in pairs:
            path = f"{name}/{number}.jpg"
            image.save(folder / path, quality=QUALITY)
            table.writerow([path, caption])


def main() -> None:
    """Write train, test, turned and grainy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    draw = np.random.default_rng(0)
    count = len(load_digits().target)
    train, test = drawn(range(TRAIN), draw), drawn(range(count - TEST, count), draw)
    write(folder, "train", train)
    write(folder, "test", test)
    for name, change in (("turned", turned), ("grainy", grainy)):
        write(folder, name, [(n, caption, change(image, draw)) for n, caption, image in test])
    print(f"{len(train)} training pairs, {len(test)} test pairs, two shifts of them, in {folder}")


if __name__ == "__main__":
    main()
