"""Data and models for two_digits, digit_angle and digit_masks, made of the digits in scikit-learn.

A function that a spec names is all that a task of your own needs: docs/plugins/data.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from torch import nn

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN = 1297
"""The first digits are for training, the last 500 for test: other hands wrote them."""


def make_model(num_classes: int, width: int = 16) -> nn.Module:
    """A small convolutional network for grey images of 32 x 32 pixels.

    Args:
        num_classes: number of outputs.
        width: channels of its first layer.
    """

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip

    return nn.Sequential(
        block(1, width),
        block(width, 2 * width),
        block(2 * width, 4 * width),
        nn.Flatten(),
        nn.Linear(64 * width, num_classes),
    )


def _digits(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}: write train or test")
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    part = slice(0, TRAIN) if split == "train" else slice(TRAIN, None)
    return pixels[part], labels[part]


def two_digits(split: str, count: int = 1600) -> list[tuple[Image.Image, list[str]]]:
    """Two digits side by side, at heights drawn at random; the target has the names of both.

    Args:
        split: train or test.
        count: number of images.

    Returns:
        (image of 32 x 32 pixels, names of its digits: one if they are equal) for each sample.
    """
    pixels, labels = _digits(split)
    draw = np.random.default_rng(["train", "test"].index(split))
    made = []
    for left, right in draw.integers(len(pixels), size=(count, 2)).tolist():
        canvas = np.zeros((16, 16), np.uint8)
        for place, row in enumerate((left, right)):
            top = int(draw.integers(0, 9))
            canvas[top : top + 8, 8 * place : 8 * place + 8] = pixels[row]
        names = sorted({NAMES[labels[left]], NAMES[labels[right]]})
        made.append((Image.fromarray(canvas).resize((32, 32), Image.Resampling.BILINEAR), names))
    return made


def rotated_digits(split: str, count: int = 1600) -> list[tuple[Image.Image, float]]:
    """A digit that is turned by up to 60 degrees; the target is the angle in radians.

    Args:
        split: train or test.
        count: number of images.

    Returns:
        (image of 32 x 32 pixels, angle counter-clockwise) for each sample.
    """
    pixels, _ = _digits(split)
    draw = np.random.default_rng(["train", "test"].index(split))
    made = []
    for row in draw.integers(len(pixels), size=count).tolist():
        angle = float(draw.uniform(-60, 60))
        large = Image.fromarray(np.pad(pixels[row], 2)).resize((32, 32), Image.Resampling.BILINEAR)
        made.append((large.rotate(angle, Image.Resampling.BILINEAR), float(np.radians(angle))))
    return made


def make_mask_model(width: int = 16) -> nn.Module:
    """A small network from grey images of 32 x 32 pixels to a logit for each pixel, [N, 1, 32, 32].

    Args:
        width: channels of its first layer.
    """

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )

    return nn.Sequential(
        block(1, width),
        nn.MaxPool2d(2),
        block(width, 2 * width),
        block(2 * width, 2 * width),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        block(2 * width, width),
        nn.Conv2d(width, 1, 1),
    )


def digit_masks(split: str, count: int | None = None) -> list[tuple[Image.Image, Image.Image]]:
    """A faint digit on a texture of waves and noise; the target is the mask of its thick stroke.

    Args:
        split: train or test.
        count: number of images; left out: 1 600 of train, 800 of test.

    Returns:
        (image, mask) of 32 x 32 pixels for each sample; the mask is 255 within a pixel of the
        stroke, and 0 elsewhere.
    """
    pixels, _ = _digits(split)
    draw = np.random.default_rng(["train", "test"].index(split))
    y, x = np.mgrid[:32, :32] / 32
    made = []
    size = count or {"train": 1600, "test": 800}[split]
    for row in draw.integers(len(pixels), size=size).tolist():
        large = Image.fromarray(np.pad(pixels[row], 2)).resize((32, 32), Image.Resampling.BILINEAR)
        large = large.rotate(float(draw.uniform(-20, 20)), Image.Resampling.BILINEAR)
        thick = large.point(lambda value: 255 * (value > 128)).filter(ImageFilter.MaxFilter(3))
        across, along, phase = draw.uniform(2, 8), draw.uniform(-8, 8), draw.uniform(0, 6.3)
        waves = 35 * np.sin(2 * np.pi * (across * x + along * y) + phase)
        noise = draw.normal(0, 25, size=(32, 32))
        canvas = 80 + waves + noise + np.asarray(large) * draw.uniform(0.2, 0.6)
        made.append((Image.fromarray(canvas.clip(0, 255).astype(np.uint8)), thick))
    return made
