"""The UCI handwritten digits (scikit-learn's copy, 1797 images of 8 x 8) as 32 x 32 images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from soupray.errors import ConfigError
from soupray.spec import DataSpec

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
CLASSES, SIDE = 10, 32


class Samples(NamedTuple):
    """ids: N strings; images: [N, 1, H, W] uint8; labels: [N] int64."""

    ids: list[str]
    images: Images
    labels: Labels


def load_digits() -> Samples:
    """All 1797 digits, white on black."""
    from sklearn.datasets import load_digits as from_sklearn

    bunch = from_sklearn()
    small = torch.from_numpy(bunch.images).float() / 16 * 255
    large = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    return Samples([f"digits/{i}" for i in range(len(labels))], images, labels)


def split_digits(spec: DataSpec, seed: int) -> dict[str, Samples]:
    """`train`, `held_out` and `test`: train and held-out are drawn by class, the rest is test.

    Raises:
        ConfigError: the held-out set is empty, lacks a class, or nothing is left for test.
    """
    samples = load_digits()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(samples.labels))
    if spec.held_out < CLASSES:
        raise ConfigError(
            f"data.held_out = {spec.held_out}: held-out data chooses the soup and needs at least "
            f"one image of each of the {CLASSES} classes. Write {CLASSES} or more."
        )
    by_class = [order[samples.labels[order] == c] for c in range(CLASSES)]
    train = [rows[: spec.train_per_class] for rows in by_class]
    left = [rows[spec.train_per_class :] for rows in by_class]
    # As equal as possible; the first classes take the remainder.
    counts = [len(part) for part in np.array_split(np.arange(spec.held_out), CLASSES)]
    for label, (rows, count) in enumerate(zip(left, counts, strict=True)):
        if len(rows) <= count:
            raise ConfigError(
                f"data.train_per_class = {spec.train_per_class} and data.held_out = "
                f"{spec.held_out} ask for {spec.train_per_class + count} images of class {label} "
                f"and leave none for test: it has {spec.train_per_class + len(rows)}."
            )
    held_out = [rows[:n] for rows, n in zip(left, counts, strict=True)]
    test = [rows[n:] for rows, n in zip(left, counts, strict=True)]
    parts = {"train": train, "held_out": held_out, "test": test}
    return {name: _take(samples, np.sort(np.concatenate(rows))) for name, rows in parts.items()}


def _take(samples: Samples, rows: npt.NDArray[np.int64]) -> Samples:
    return Samples([samples.ids[i] for i in rows], samples.images[rows], samples.labels[rows])
