"""Augmentation: known draws, and torchvision's own RandAugment."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from soupray.core.hyperparameters import Hyperparameters
from soupray.data.augment import Draws, augmented, cutting, draw
from soupray.data.randaugment import OPERATIONS, randaugmented
from soupray.spec.space import Space


def wanted(**hparams: float) -> Hyperparameters:
    return Hyperparameters(**Space(lr=0.1, epochs=1, **hparams).model_dump())


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(images: torch.Tensor, rotation: float, shift: float, seed: int) -> torch.Tensor:
    hparams = wanted(rotation=float(rotation), shift=float(shift))
    return augmented(images, draw(len(images), hparams, generator(seed)), hparams)


def drawn(seed: int) -> tuple[float, float, float]:
    """What one image will draw: angle, horizontal and vertical shift, each in [-1, 1)."""
    angle, x, y = (2 * torch.rand(3, 1, generator=generator(seed)) - 1).flatten().tolist()
    return angle, x, y


IMAGES = torch.rand(1, 1, 16, 16, generator=generator(99))


def test_without_augmentation_the_images_are_left_alone():
    assert moved(IMAGES, 0, 0, 0) is IMAGES
    before = generator(0)
    draw(8, wanted(), before)
    assert torch.equal(before.get_state(), generator(0).get_state())  # nothing was drawn


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_by_whole_pixels_moves_the_image_and_fills_with_black(seed):
    _, x, _ = drawn(seed)
    columns = IMAGES[..., :1, :].expand(1, 1, 16, 16)  # the same from top to bottom
    shifted = moved(columns, 0, 3 / 16 / abs(x), seed)
    expected = torch.zeros_like(columns)
    if x > 0:  # the window moves to the right, the image to the left
        expected[..., :-3] = columns[..., 3:]
    else:
        expected[..., 3:] = columns[..., :-3]
    inside = abs(drawn(seed)[2] * 3 / abs(x))  # rows that come in from above or below
    kept = slice(math.ceil(inside), 16 - math.ceil(inside))
    assert torch.allclose(shifted[..., kept, :], expected[..., kept, :], atol=1e-4)


@pytest.mark.parametrize("seed", [s for s in range(20) if abs(drawn(s)[0]) > 0.5][:4])
def test_a_quarter_turn_is_a_quarter_turn(seed):
    angle, _, _ = drawn(seed)
    turned = moved(IMAGES, 90 / abs(angle), 0, seed)
    expected = torch.rot90(IMAGES, 1 if angle > 0 else -1, dims=(2, 3))
    assert torch.allclose(turned, expected, atol=1e-4)


def test_augmentation_is_the_same_for_a_seed_and_differs_from_image_to_image():
    batch = IMAGES.expand(4, 1, 16, 16)
    first, again, other = (moved(batch, 15, 0.1, s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def cut(images: torch.Tensor, *numbers: float, crop: float = 0.01, flip: float = 0.0):
    """With these draws: area, ratio, x, y, flip."""
    draws = torch.tensor(numbers)[:, None].expand(5, len(images))
    return augmented(images, Draws(None, draws, None), wanted(crop=crop, flip=flip))


def test_a_crop_of_a_quarter_at_the_top_left_is_that_quarter_enlarged():
    area = (0.25 - 0.01) / 0.99
    enlarged = cut(IMAGES, area, 0.5, 0.0, 0.0, 0.9)
    expected = F.interpolate(IMAGES[..., :8, :8], (16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(enlarged[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4)


def test_a_crop_of_everything_changes_nothing_and_a_flip_is_a_mirror():
    assert torch.allclose(cut(IMAGES, 1.0, 0.5, 0.3, 0.7, 0.9), IMAGES, atol=1e-4)
    mirrored = cut(IMAGES, 1.0, 0.5, 0.3, 0.7, 0.4, crop=1.0, flip=0.5)
    assert torch.allclose(mirrored, IMAGES.flip(-1), atol=1e-4)
    assert torch.allclose(
        cut(IMAGES, 1.0, 0.5, 0.3, 0.7, 0.6, crop=1.0, flip=0.5), IMAGES, atol=1e-4
    )


def test_no_crop_sticks_out_and_its_area_is_as_asked():
    theta = cutting(torch.rand(5, 2000, generator=generator(0)), 0.2, 0.5)
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    assert (theta[:, 0, 2].abs() + width <= 1 + 1e-6).all()
    assert (theta[:, 1, 2].abs() + height <= 1 + 1e-6).all()
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 * (3 / 4) - 1e-6  # a side that was cut off at the image's costs some
    assert area.max() <= 1 + 1e-6
    assert ratio.max() <= 4 / 3 + 1e-4
    assert ratio.min() >= 3 / 4 - 1e-4


PHOTOS = torch.randint(256, (3, 3, 20, 24), generator=generator(5), dtype=torch.uint8)
THEIRS = RandAugment()


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("way", [0.25, 0.75])
def test_each_operation_is_torchvisions(number, way):
    name, _, _, both_ways = OPERATIONS[number]
    magnitudes, signed = THEIRS._AUGMENTATION_SPACE[name]
    assert signed == both_ways
    levels = magnitudes(31, 20, 24)
    level = 0.0 if levels is None else float(levels[17])
    expected = THEIRS._apply_image_or_video_transform(
        PHOTOS,
        name,
        -level if signed and way < 0.5 else level,
        interpolation=InterpolationMode.NEAREST,
        fill={},
    )
    draws = torch.tensor([[[(number + 0.5) / 14] * 3, [way] * 3]])
    assert torch.equal(randaugmented(PHOTOS, draws, 17), expected)


def test_the_operations_are_all_of_torchvisions():
    assert [name for name, *_ in OPERATIONS] == list(THEIRS._AUGMENTATION_SPACE)


def test_a_part_of_a_batch_is_augmented_as_in_the_whole():
    hparams = wanted(
        rotation=10.0, shift=0.1, crop=0.5, flip=0.5, randaugment=9.0, randaugment_ops=2
    )
    images = torch.randint(256, (8, 3, 16, 16), generator=generator(1), dtype=torch.uint8)
    draws = draw(8, hparams, generator(2))
    whole = augmented(images, draws, hparams)
    rows = torch.tensor([1, 4, 6])
    assert torch.equal(augmented(images[rows], draws.take(rows), hparams), whole[rows])
    assert len({image.numpy().tobytes() for image in whole}) == 8
