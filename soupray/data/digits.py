"""The UCI handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels, enlarged to 32 x 32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from soupray.core.errors import ConfigError
from soupray.data.splits import Samples, draw, held_out_shares, set_aside
from soupray.spec.class_numbers import number_of, numbers_by_name
from soupray.spec.data import DigitsSpec

CLASSES, SIDE = 10, 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIGURES = tuple(map(str, range(CLASSES)))


def load_digits() -> Samples:
    """All 1797 digits, white on black, uint8 [1797, 1, 32, 32]."""
    from sklearn.datasets import load_digits as from_sklearn

    bunch = from_sklearn()
    small = torch.from_numpy(bunch.images).float() / 16 * 255
    large = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    return Samples([f"digits/{i}" for i in range(len(labels))], images, labels)


def split_digits(
    spec: DigitsSpec, seed: int, classes: Sequence[str]
) -> tuple[dict[str, Samples], list[str]]:
    """The splits train, held_out, rank (if the spec has it) and test.

    All but test are drawn with equal numbers of each class. The remaining samples are test.

    Args:
        spec: the sizes of the splits.
        seed: of the draw.
        classes: names of the task's classes. If they are the digits in words or figures, a class is
            the digit that it names; else the first class is zero, the second one, ...

    Returns:
        The splits by name, and the digit of each class.

    Raises:
        ConfigError: the held-out set is too small, or no sample of a class is left for test.
    """
    numbers = _numbers(classes)
    found = load_digits()
    found = found._replace(labels=np.array(numbers, np.int64)[found.labels])
    samples, listed = set_aside(found, spec.held_out)
    wanted = {
        "train": [spec.train_per_class] * CLASSES,
        **held_out_shares(spec.held_out, CLASSES),
    }
    asked = [sum(counts) for counts in zip(*wanted.values(), strict=True)]
    for label, (there, count) in enumerate(zip(np.bincount(samples.labels), asked, strict=True)):
        if there <= count:
            raise ConfigError(
                f"data.train_per_class = {spec.train_per_class} and data.held_out = "
                f"{spec.held_out} need {count} images of class {label} and leave none for test: "
                f"the class has {there} images."
            )
    parts = {**draw(samples, wanted, rest="test", seed=seed), **listed}
    return parts, [f"digit {numbers.index(k)}" for k in range(CLASSES)]


def _numbers(classes: Sequence[str]) -> list[int]:
    """The number of the class of each digit."""
    known = numbers_by_name(classes)
    for names in (WORDS, FIGURES):
        numbers = [number_of(name, known) for name in names]
        if sorted(n for n in numbers if n is not None) == list(range(CLASSES)):
            return [n for n in numbers if n is not None]
    return list(range(CLASSES))
