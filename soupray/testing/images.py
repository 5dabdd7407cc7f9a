"""The contracts of a shift and of an augmentation: functions that change images."""

from __future__ import annotations

import torch

from soupray.data.shifts import Shift, images_of
from soupray.testing.called import called

SEED = 5
"""Of the generator that the functions get."""


def check_shift(shift: Shift, *, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Check that a shift keeps its contract.

    It returns finite images of the shape and the range that it gets, for many images and for one,
    for black and white ones; it draws from the generator that it gets and from nothing else; and it
    changes something.

    Args:
        shift: the function of images [N, C, H, W] and a generator.
        shape: of an image of your data: channels, height and width.

    Raises:
        AssertionError: the contract is broken; the message names the function, and says how.
    """
    where = f"shift {called(shift)!r}"
    changed = _check(shift, where, shape)
    assert changed, f"{where}: it changes no image: it would report the test set again"


def check_augmentation(augmentation: Shift, *, shape: tuple[int, int, int] = (3, 32, 32)) -> None:
    """Check that an augmentation keeps its contract: that of a shift, but it may change nothing.

    Args:
        augmentation: the function of images [N, C, H, W] and a generator.
        shape: of an image of your data: channels, height and width.

    Raises:
        AssertionError: the contract is broken; the message names the function, and says how.
    """
    _check(augmentation, f"augmentation {called(augmentation)!r}", shape)


def _check(function: Shift, where: str, shape: tuple[int, int, int]) -> bool:
    """Check a function on several batches, and return whether it changed any of them."""
    draws = torch.Generator().manual_seed(1)
    random = torch.randint(0, 256, (6, *shape), generator=draws).float()
    batches = {
        "six images": random,
        "one image": random[:1],
        "black images": torch.zeros(3, *shape),
        "white images": torch.full((3, *shape), 255.0),
    }
    changed = False
    for name, images in batches.items():
        on = f"{where}, {name}"
        torch.manual_seed(0)
        first = _made(function, images, on)
        torch.manual_seed(1)  # what draws from elsewhere draws other numbers now
        assert torch.equal(first, _made(function, images, on)), (
            f"{on}: a second call with an equal generator gives other images. Draw with the "
            "generator that it gets: torch.rand(..., generator=generator)"
        )
        changed = changed or not torch.equal(first, images)
    return changed


def _made(function: Shift, images: torch.Tensor, where: str) -> torch.Tensor:
    given, generator = images.clone(), torch.Generator().manual_seed(SEED)
    return images_of(lambda: function(given, generator), given, where, AssertionError)
