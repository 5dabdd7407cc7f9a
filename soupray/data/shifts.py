"""Distribution shifts of images: uint8 [N, C, H, W] to the same, deterministic in the seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

Images = npt.NDArray[np.uint8]


def inverted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Black on white."""
    return 255 - images


def rotated(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By 25 degrees, counter-clockwise."""
    turned: torch.Tensor = TF.rotate(images, 25.0, interpolation=TF.InterpolationMode.BILINEAR)
    return turned


def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian, standard deviation 0.3 of the range."""
    return images + 0.3 * 255 * torch.randn(images.shape, generator=generator)


def low_contrast(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A fifth of the range, around its middle."""
    return 127.5 + (images - 127.5) * 0.2


def thickened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Strokes dilated by two pixels on each side."""
    return F.max_pool2d(images, kernel_size=5, stride=1, padding=2)


SHIFTS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "inverted": inverted,
    "rotated": rotated,
    "noise": noise,
    "low_contrast": low_contrast,
    "thickened": thickened,
}


def apply_shift(name: str, images: Images, seed: int) -> Images:
    """The shifted copy of `images`."""
    generator = torch.Generator().manual_seed(seed)
    shifted = SHIFTS[name](torch.from_numpy(images).float(), generator)
    return shifted.round().clamp(0, 255).to(torch.uint8).numpy()
