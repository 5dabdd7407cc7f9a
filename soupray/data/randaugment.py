"""RandAugment (Cubuk et al., arXiv:1909.13719) on whole batches.

The operations and their strengths are those of torchvision. torchvision processes one image at a
time. Here, all images of a batch with the same operation are processed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torchvision.transforms.v2 import functional as V

BINS = 31
"""Number of magnitudes: 0 to 30."""

Operation = Callable[[torch.Tensor, float], torch.Tensor]
"""Changes images [N, C, H, W] uint8 with a strength."""


def _shear(x: bool) -> Operation:
    def sheared(images: torch.Tensor, level: float) -> torch.Tensor:
        angle = math.degrees(math.atan(level))
        shear = [angle, 0.0] if x else [0.0, angle]
        changed: torch.Tensor = V.affine(images, 0.0, [0, 0], 1.0, shear, center=[0, 0])
        return changed

    return sheared


def _translate(x: bool) -> Operation:
    def translated(images: torch.Tensor, level: float) -> torch.Tensor:
        pixels = int(level * images.shape[-1 if x else -2])
        way = [pixels, 0] if x else [0, pixels]
        changed: torch.Tensor = V.affine(images, 0.0, way, 1.0, [0.0, 0.0])
        return changed

    return translated


# (name, operation, strength at the largest magnitude, whether the strength may be negative)
OPERATIONS: tuple[tuple[str, Operation, float, bool], ...] = (
    ("Identity", lambda images, level: images, 0.0, False),
    ("ShearX", _shear(True), 0.3, True),
    ("ShearY", _shear(False), 0.3, True),
    ("TranslateX", _translate(True), 150 / 331, True),
    ("TranslateY", _translate(False), 150 / 331, True),
    ("Rotate", lambda images, level: V.rotate(images, level), 30.0, True),
    ("Brightness", lambda images, level: V.adjust_brightness(images, 1 + level), 0.9, True),
    ("Color", lambda images, level: V.adjust_saturation(images, 1 + level), 0.9, True),
    ("Contrast", lambda images, level: V.adjust_contrast(images, 1 + level), 0.9, True),
    ("Sharpness", lambda images, level: V.adjust_sharpness(images, 1 + level), 0.9, True),
    ("Posterize", lambda images, level: V.posterize(images, 8 - round(level)), 4.0, False),
    ("Solarize", lambda images, level: V.solarize(images, 255 * (1 - level)), 1.0, False),
    ("AutoContrast", lambda images, level: V.autocontrast(images), 0.0, False),
    ("Equalize", lambda images, level: V.equalize(images), 0.0, False),
)


def randaugmented(images: torch.Tensor, draws: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Apply random operations, one after the other, to each image.

    Args:
        images: [N, C, H, W] uint8.
        draws: uniform random numbers in [0, 1), [operations, 2, N]: the first of two chooses the
            operation, the second its direction.
        magnitude: from 0 to 30.

    Returns:
        [N, C, H, W] uint8.
    """
    for which, way in draws:
        chosen = (which * len(OPERATIONS)).long()
        changed = images.clone()
        for number in chosen.unique().tolist():
            _, operation, strongest, both_ways = OPERATIONS[number]
            level = strongest * magnitude / (BINS - 1)
            for sign in (1, -1) if both_ways else (1,):
                mine = chosen == number
                if both_ways:
                    mine &= (way < 0.5) == (sign < 0)
                rows = mine.nonzero()[:, 0].to(images.device)
                if len(rows):
                    changed[rows] = operation(images[rows], sign * level)
        images = changed
    return images
