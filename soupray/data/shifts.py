"""Distribution shifts of images: uint8 [N, C, H, W] to the same, deterministic in the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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


def blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By a Gaussian with a standard deviation of 1.5 pixels, cut off at 4."""
    soft: torch.Tensor = TF.gaussian_blur(images, kernel_size=[9, 9], sigma=[1.5, 1.5])
    return soft


def faded(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """At 30 % of the brightness; black stays black."""
    return images * 0.3


def grainy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise, standard deviation 0.1 of the range."""
    return images + 0.1 * 255 * torch.randn(images.shape, generator=generator)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By a seventh of the side: up, down, left or right, drawn per image; black comes in."""
    height, width = images.shape[-2:]
    y, x = height // 7, width // 7
    padded = F.pad(images, (x, x, y, y))
    corners = ((2 * y, x), (0, x), (y, 2 * x), (y, 0))  # where the window starts, in `padded`
    ways = [padded[..., top : top + height, left : left + width] for top, left in corners]
    drawn = torch.randint(4, (len(images),), generator=generator)
    return torch.stack(ways)[drawn, torch.arange(len(images))]


def pixelated(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """In blocks of 3 x 3 pixels, each its mean; blocks that stick out count what is inside."""
    height, width = images.shape[-2:]
    blocks = F.avg_pool2d(images, 3, ceil_mode=True)
    large = blocks.repeat_interleave(3, dim=-2).repeat_interleave(3, dim=-1)
    return large[..., :height, :width]


def occluded(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By a black square, three sevenths of the side, somewhere in the image."""
    n, _, height, width = images.shape
    hidden = []
    for side in (height, width):
        size = side * 3 // 7
        start = torch.randint(side - size + 1, (n, 1), generator=generator)
        at = torch.arange(side)
        hidden.append((at >= start) & (at < start + size))
    rows, columns = hidden
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


SHIFTS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "inverted": inverted,
    "rotated": rotated,
    "noise": noise,
    "low_contrast": low_contrast,
    "thickened": thickened,
    "blurred": blurred,
    "faded": faded,
    "grainy": grainy,
    "moved": moved,
    "pixelated": pixelated,
    "occluded": occluded,
}


CHUNK = 2**26
"""Values of an array that are shifted at a time: a quarter of a gigabyte as float32."""


def apply_shift(name: str, images: Images, seed: int) -> Images:
    """The shifted copy of `images`."""
    return np.concatenate(list(shifted_parts(name, images, seed)))


def shifted_parts(name: str, images: Images, seed: int) -> Iterator[Images]:
    """The shifted copy of `images`, part by part: a large test set is not in memory at once."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        part = torch.from_numpy(np.array(images[start : start + step])).float()
        shifted = SHIFTS[name](part, generator)
        yield shifted.round().clamp(0, 255).to(torch.uint8).numpy()
