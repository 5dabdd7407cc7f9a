"""Augmentation of whole batches, drawn from the trial's own generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def rotate_and_shift(
    images: torch.Tensor, rotation: float, shift: float, generator: torch.Generator
) -> torch.Tensor:
    """Each image [N, C, H, W] turned by up to `rotation` degrees, moved by up to `shift` sides.

    Both are uniform and symmetric around 0; what comes in from outside is 0. The draws are made
    on the CPU, so that a trial sees the same augmentation on every device.
    """
    if rotation == 0 and shift == 0:
        return images
    n = len(images)
    draws = 2 * torch.rand(3, n, generator=generator) - 1
    angle = draws[0] * math.radians(rotation)
    cos, sin = angle.cos(), angle.sin()
    # affine_grid measures in half sides: a shift by one side is 2.
    rows = (cos, -sin, 2 * shift * draws[1], sin, cos, 2 * shift * draws[2])
    theta = torch.stack(rows, dim=1).view(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
