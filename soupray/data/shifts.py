"""Synthetic distribution shifts of images.

Every shift is a function of float32 images [N, C, H, W] with values from 0 to 255, and a seeded
generator. It returns images of the same shape, whose values may be outside this range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from soupray.core.arrays import Images
from soupray.core.errors import ConfigError
from soupray.core.plugins import load, raised
from soupray.spec.data import OwnShift
from soupray.spec.plugged_in import SHIFTS as OWN_SHIFTS


def inverted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Exchange black and white."""
    return 255 - images


def rotated(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate by 25 degrees, counter-clockwise."""
    # Here, because it takes a second to import, and the driver of a soup shifts nothing.
    from torchvision.transforms.v2 import functional as TF

    turned: torch.Tensor = TF.rotate(images, 25.0, interpolation=TF.InterpolationMode.BILINEAR)
    return turned


def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise with a standard deviation of 0.3 of the range."""
    return images + 0.3 * 255 * torch.randn(images.shape, generator=generator)


def low_contrast(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reduce the contrast to a fifth of the range, around its middle."""
    return 127.5 + (images - 127.5) * 0.2


def thickened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Dilate bright strokes by two pixels on each side."""
    return F.max_pool2d(images, kernel_size=5, stride=1, padding=2)


def blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur with a Gaussian of standard deviation 1.5 pixels, cut off at 4 pixels."""
    from torchvision.transforms.v2 import functional as TF

    soft: torch.Tensor = TF.gaussian_blur(images, kernel_size=[9, 9], sigma=[1.5, 1.5])
    return soft


def faded(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reduce the brightness to 30 %. Black stays black."""
    return images * 0.3


def grainy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise with a standard deviation of 0.1 of the range."""
    return images + 0.1 * 255 * torch.randn(images.shape, generator=generator)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image by a seventh of its side in a random direction. The free area is black."""
    height, width = images.shape[-2:]
    y, x = height // 7, width // 7
    padded = F.pad(images, (x, x, y, y))
    corners = ((2 * y, x), (0, x), (y, 2 * x), (y, 0))  # top left of each window in `padded`
    ways = [padded[..., top : top + height, left : left + width] for top, left in corners]
    drawn = torch.randint(4, (len(images),), generator=generator)
    return torch.stack(ways)[drawn, torch.arange(len(images))]


def pixelated(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replace each block of 3 x 3 pixels by its mean. Blocks at the edge may be smaller."""
    height, width = images.shape[-2:]
    blocks = F.avg_pool2d(images, 3, ceil_mode=True)
    large = blocks.repeat_interleave(3, dim=-2).repeat_interleave(3, dim=-1)
    return large[..., :height, :width]


def occluded(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cover a random square of each image with black. Its side is three sevenths of the image's."""
    n, _, height, width = images.shape
    hidden = []
    for side in (height, width):
        size = side * 3 // 7
        start = torch.randint(side - size + 1, (n, 1), generator=generator)
        at = torch.arange(side)
        hidden.append((at >= start) & (at < start + size))
    rows, columns = hidden
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


Shift = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Images [N, C, H, W] and a generator to images of the same shape."""

SHIFTS: dict[str, Shift] = {
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
"""Number of pixel values that are shifted at a time: 256 MiB as float32."""


FAINT, FAINT_OF = 4.0, 64.0
"""Images up to FAINT, made of images above FAINT_OF, are taken for images of 0 to 1, or for
normalised ones: those with the mean and the deviation of ImageNet are below 2.7."""


def own_shift(spec: OwnShift) -> Shift:
    """A corruption of the user, which is checked at each call.

    Args:
        spec: names the function.

    Raises:
        ConfigError: there is no such function, or its code is not that of the spec. When it is
            called: it raises, or returns something else than finite images of the same shape.
    """
    found = load(OWN_SHIFTS, spec.function)
    where = f"data.shifts: {spec.function!r} ({found.origin})"
    if spec.code and found.digest != spec.code:
        raise ConfigError(
            f"{where}: the code here has the digest {found.digest[:12]}, that of the sweep had "
            f"{spec.code[:12]}. Start again, with the same code on all machines."
        )

    def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images_of(lambda: found.value(images.clone(), generator), images, where)

    return shift


def images_of(
    call: Callable[[], object],
    images: torch.Tensor,
    where: str,
    error: type[Exception] = ConfigError,
) -> torch.Tensor:
    """What a function of the user makes of images.

    Args:
        call: calls the function.
        images: what it gets, [N, C, H, W].
        where: names the function in messages.
        error: the error to raise.

    Raises:
        ConfigError: it raises, or returns something else than finite images of the same shape.
    """
    brightest = images.max()  # before the call, which may change them in place
    try:
        made = call()
    except Exception as raising:
        raise error(f"{where} raised {raised(raising)}.") from raising
    if not isinstance(made, torch.Tensor) or (form := _unlike(made, images)):
        form = form if isinstance(made, torch.Tensor) else type(made).__name__
        raise error(
            f"{where} returned {form}. Return images of the shape that it gets, "
            f"{list(images.shape)}, with values from 0 to 255."
        )
    made = made.detach().to(images.device, torch.float32)
    if not torch.isfinite(made).all():
        raise error(f"{where} returned values that are NaN or infinite.")
    if brightest > FAINT_OF >= FAINT >= made.max() and (made != made.round()).any():
        raise error(
            f"{where} returned values from {float(made.min()):.3g} to {float(made.max()):.3g}, "
            f"but got values up to {float(brightest):.0f}. Images have values from 0 to 255 "
            "here, before any normalisation."
        )
    return made


def _unlike(made: torch.Tensor, images: torch.Tensor) -> str:
    """What a tensor is, if it is no images of this shape; else an empty text."""
    if made.shape != images.shape:
        return f"a tensor {list(made.shape)}"
    odd = made.is_complex() or made.dtype == torch.bool
    return f"a tensor of {str(made.dtype).removeprefix('torch.')}" if odd else ""


def shifted_parts(shift: Shift, images: Images, seed: int) -> Iterator[Images]:
    """Make a shifted copy of images, part by part, so that a large test set is never in memory.

    Args:
        shift: the function.
        images: [N, C, H, W].
        seed: of the random numbers.

    Yields:
        Consecutive parts of the copy.
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        part = torch.from_numpy(np.array(images[start : start + step])).float()
        shifted = shift(part, generator)
        yield shifted.round().clamp(0, 255).to(torch.uint8).numpy()
