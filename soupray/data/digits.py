"""The UCI handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels, enlarged to 32 x 32."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from soupray.core.errors import ConfigError
from soupray.data.splits import Samples, draw, held_out_shares, set_aside
from soupray.spec.data import DigitsSpec

CLASSES, SIDE = 10, 32


def load_digits() -> Samples:
    """All 1797 digits, white on black, uint8 [1797, 1, 32, 32]."""
    from sklearn.datasets import load_digits as from_sklearn

    bunch = from_sklearn()
    small = torch.from_numpy(bunch.images).float() / 16 * 255
    large = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    return Samples([f"digits/{i}" for i in range(len(labels))], images, labels)


def split_digits(spec: DigitsSpec, seed: int) -> dict[str, Samples]:
    """The splits train, held_out, rank (if the spec has it) and test.

    All but test are drawn with equal numbers of each class. The remaining samples are test.

    Args:
        spec: the sizes of the splits.
        seed: of the draw.

    Raises:
        ConfigError: the held-out set is too small, or no sample of a class is left for test.
    """
    samples, listed = set_aside(load_digits(), spec.held_out)
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
    return {**draw(samples, wanted, rest="test", seed=seed), **listed}
