"""Augmentation of whole batches: what happens to an image follows from numbers drawn for it.

They are drawn on the CPU for the whole batch, from the trial's own generator: a trial sees the same
augmentation on every device, and each of several workers applies its share of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from soupray.core.hyperparameters import Hyperparameters
from soupray.training.randaugment import randaugmented

RATIO = 4 / 3
"""Of width and height of a crop, at most, either way: torchvision's RandomResizedCrop."""


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) for n images; None where nothing is to be drawn.

    moved: [3, n], for angle and shifts; cut: [5, n], for area, ratio, place (x, y) and flip; ops:
    [operations, 2, n], which, and which way.
    """

    moved: torch.Tensor | None
    cut: torch.Tensor | None
    ops: torch.Tensor | None

    def take(self, rows: torch.Tensor) -> Draws:
        """The draws of some of the images."""
        return Draws(*(None if drawn is None else drawn[..., rows] for drawn in self))


def draw(n: int, wanted: Hyperparameters, generator: torch.Generator) -> Draws:
    """For a batch of n images."""
    moved = cut = ops = None
    if wanted.rotation or wanted.shift:
        moved = torch.rand(3, n, generator=generator)
    if wanted.crop < 1 or wanted.flip:
        cut = torch.rand(5, n, generator=generator)
    if wanted.randaugment:
        ops = torch.rand(wanted.randaugment_ops, 2, n, generator=generator)
    return Draws(moved, cut, ops)


def augmented(images: torch.Tensor, draws: Draws, wanted: Hyperparameters) -> torch.Tensor:
    """[N, C, H, W] in 0..255 -> the same, float32: moved and cut at once, then RandAugment."""
    if draws.moved is None and draws.cut is None and draws.ops is None:
        return images.to(torch.float32)
    if draws.moved is not None or draws.cut is not None:
        theta = torch.eye(3).repeat(len(images), 1, 1)
        if draws.cut is not None:
            theta = theta @ cutting(draws.cut, wanted.crop, wanted.flip)
        if draws.moved is not None:
            theta = theta @ moving(draws.moved, wanted.rotation, wanted.shift)
        theta = theta[:, :2].to(images.device)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images.to(torch.float32), grid, align_corners=False)
    if draws.ops is not None:
        images = randaugmented(images.round().to(torch.uint8), draws.ops, wanted.randaugment)
    return images.to(torch.float32)


def moving(draws: torch.Tensor, rotation: float, shift: float) -> torch.Tensor:
    """[N, 3, 3]: turns by up to `rotation` degrees, moves by up to `shift` sides, either way.

    What comes in from outside is 0.
    """
    signed = 2 * draws - 1
    angle = signed[0] * math.radians(rotation)
    cos, sin = angle.cos(), angle.sin()
    # affine_grid measures in half sides: a shift by one side is 2.
    rows = (cos, -sin, 2 * shift * signed[1], sin, cos, 2 * shift * signed[2])
    return _square(torch.stack(rows, dim=1))


def cutting(draws: torch.Tensor, crop: float, flip: float) -> torch.Tensor:
    """[N, 3, 3]: a window of `crop` to 1 of the area, of a ratio up to 4/3, anywhere inside; flips.

    The window becomes the whole image. Ratios are log-uniform; a window that would stick out is
    made as long as the side.
    """
    area = crop + (1 - crop) * draws[0]
    ratio = (math.log(RATIO) * (2 * draws[1] - 1)).exp() if crop < 1 else torch.ones_like(area)
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    x = (1 - width) * (2 * draws[2] - 1)
    y = (1 - height) * (2 * draws[3] - 1)
    side = torch.where(draws[4] < flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    return _square(torch.stack((side * width, zero, x, zero, height, y), dim=1))


def _square(rows: torch.Tensor) -> torch.Tensor:
    last = torch.tensor([0.0, 0.0, 1.0]).expand(len(rows), 1, 3)
    return torch.cat([rows.view(-1, 2, 3), last], dim=1)
