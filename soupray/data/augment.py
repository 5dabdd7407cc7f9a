"""Augmentation of whole batches, from random numbers that are drawn for each image.

The numbers are drawn on the CPU for the whole batch, from the trial's own generator. A trial has
the same augmentation on every device, and with any number of workers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from soupray.core.errors import TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.plugins import load
from soupray.data.shifts import images_of
from soupray.spec.plugged_in import AUGMENTATIONS

RATIO = 4 / 3
"""The largest ratio of width to height of a crop, and of height to width, as in the
RandomResizedCrop of torchvision."""


class Draws(NamedTuple):
    """Uniform random numbers in [0, 1) for n images. None: the augmentation does not need them.

    Attributes:
        moved: [3, n], for the angle and the shifts along x and y.
        cut: [5, n], for area, ratio, position (x, y) and flip.
        ops: [operations, 2, n], for the choice of each RandAugment operation and its direction.
    """

    moved: torch.Tensor | None
    cut: torch.Tensor | None
    ops: torch.Tensor | None

    def take(self, rows: torch.Tensor) -> Draws:
        """The draws for the images at the positions `rows`."""
        return Draws(*(None if drawn is None else drawn[..., rows] for drawn in self))


def draw(n: int, wanted: Hyperparameters, generator: torch.Generator) -> Draws:
    """Draw the random numbers for a batch.

    Args:
        n: number of images.
        wanted: the hyperparameters, which say what is needed.
        generator: the trial's generator, on the CPU.
    """
    moved = cut = ops = None
    if wanted.rotation or wanted.shift:
        moved = torch.rand(3, n, generator=generator)
    if wanted.crop < 1 or wanted.flip:
        cut = torch.rand(5, n, generator=generator)
    if wanted.randaugment:
        ops = torch.rand(wanted.randaugment_ops, 2, n, generator=generator)
    return Draws(moved, cut, ops)


def augmented(images: torch.Tensor, draws: Draws, wanted: Hyperparameters) -> torch.Tensor:
    """Augment images: rotation, shift, crop and flip in one step, then RandAugment.

    Args:
        images: [N, C, H, W], values from 0 to 255.
        draws: random numbers for the N images.
        wanted: the hyperparameters.

    Returns:
        float32, with the shape and the range of `images`.
    """
    if draws.moved is None and draws.cut is None and draws.ops is None:
        return images.to(torch.float32)
    if (grid := _grid(images, draws, wanted)) is not None:
        images = F.grid_sample(images.to(torch.float32), grid, align_corners=False)
    if draws.ops is not None:
        # Here, because torchvision takes a second to import, and most programs need none of it.
        from soupray.data.randaugment import randaugmented

        images = randaugmented(images.round().to(torch.uint8), draws.ops, wanted.randaugment)
    return images.to(torch.float32)


def with_images(
    masks: torch.Tensor, side: int, draws: Draws, wanted: Hyperparameters
) -> torch.Tensor:
    """Masks that are rotated, shifted, cropped and flipped as `augmented` does with their images.

    A pixel is taken from the nearest one. Outside an image no pixel belongs to its mask.

    Args:
        masks: 0 or 1, [N, side * side].
        side: height and width in pixels.
        draws: the random numbers of the N images.
        wanted: the hyperparameters.

    Returns:
        Masks of the shape and the dtype of `masks`.
    """
    pictures = masks.view(len(masks), 1, side, side)
    grid = _grid(pictures, draws, wanted)
    if grid is None:
        return masks
    moved = F.grid_sample(pictures.to(torch.float32), grid, mode="nearest", align_corners=False)
    return moved.flatten(1).to(masks.dtype)


def _grid(images: torch.Tensor, draws: Draws, wanted: Hyperparameters) -> torch.Tensor | None:
    """Where the pixels of augmented images come from, [N, H, W, 2]. None: they stay."""
    if draws.moved is None and draws.cut is None:
        return None
    theta = torch.eye(3).repeat(len(images), 1, 1)
    if draws.cut is not None:
        theta = theta @ cutting(draws.cut, wanted.crop, wanted.flip)
    if draws.moved is not None:
        theta = theta @ moving(draws.moved, wanted.rotation, wanted.shift)
    theta = theta[:, :2].to(images.device)
    return F.affine_grid(theta, list(images.shape), align_corners=False)


class OwnAugmentation:
    """An augmentation of the user: images [N, C, H, W] and a generator to images of that shape."""

    def __init__(self, named: str, code: str) -> None:
        """Find the function. Raises ConfigError; TrialError if its code is not that of the trial.

        Args:
            named: the function, as a spec names it.
            code: the digest of its code.
        """
        self._found = load(AUGMENTATIONS, named)
        self._where = f"augmentation {named!r} ({self._found.origin})"
        if self._found.digest != code:
            raise TrialError(
                f"{self._where}: the code here has the digest {self._found.digest[:12]}, that of "
                f"the sweep had {code[:12]}. Start again, with the same code on all machines."
            )

    def __call__(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """The augmented images; the generator that the function gets is on the CPU.

        Args:
            images: float32, values from 0 to 255.
            seed: of the generator; another one in each step.

        Raises:
            TrialError: the function raises, or returns something else than images of this shape.
        """
        generator = torch.Generator().manual_seed(seed)
        call = self._found.value
        return images_of(lambda: call(images, generator), images, self._where, TrialError)


def moving(draws: torch.Tensor, rotation: float, shift: float) -> torch.Tensor:
    """Random rotations and shifts in both directions, as affine maps.

    Pixels from outside the image are 0.

    Args:
        draws: [3, N], see `Draws.moved`.
        rotation: the largest angle, in degrees.
        shift: the largest shift, as a share of the side.

    Returns:
        [N, 3, 3], as affine_grid of torch uses them.
    """
    signed = 2 * draws - 1
    angle = signed[0] * math.radians(rotation)
    cos, sin = angle.cos(), angle.sin()
    # The unit of affine_grid is half a side: a shift by one side is 2.
    rows = (cos, -sin, 2 * shift * signed[1], sin, cos, 2 * shift * signed[2])
    return _square(torch.stack(rows, dim=1))


def cutting(draws: torch.Tensor, crop: float, flip: float) -> torch.Tensor:
    """Random crops and flips, as affine maps. The window of a crop becomes the whole image.

    The area of a window is uniform, its ratio of sides is log-uniform up to 4/3, and its position
    inside the image is uniform. A window that is longer than a side is cut to that side.

    Args:
        draws: [5, N], see `Draws.cut`.
        crop: the smallest share of the area.
        flip: the probability of a mirror image.

    Returns:
        [N, 3, 3], as affine_grid of torch uses them.
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
