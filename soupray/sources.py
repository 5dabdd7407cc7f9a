"""What is learnt from and reported on: the `data` of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from soupray.space import Count, SpecModel

Shift = Literal[
    "inverted",
    "rotated",
    "noise",
    "low_contrast",
    "thickened",
    "blurred",
    "faded",
    "grainy",
    "moved",
    "pixelated",
    "occluded",
]


class HeldOutParts(SpecModel):
    """Held-out data in two: `select` samples to choose a soup with, `rank` to compare soups on."""

    select: Count
    rank: Count


HeldOut = Annotated[
    Annotated[Annotated[int, Field(ge=0)], Tag("a number")]
    | Annotated[HeldOutParts, Tag("two parts")],
    # So that a mistake in one way of writing it is not answered with the other way.
    Discriminator(lambda v: "two parts" if isinstance(v, dict | HeldOutParts) else "a number"),
]


class _Shifted(SpecModel):
    """Data with shifts of its test set."""

    shifts: tuple[Shift, ...] = ()

    @pydantic.field_validator("shifts")
    @classmethod
    def _differ(cls, shifts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(shifts)) < len(shifts):
            raise ValueError("a shift is listed twice")
        return shifts


class DigitsSpec(_Shifted):
    """Scikit-learn's copy of the UCI digits, as 32 x 32 images.

    `train_per_class` images a class to train on, `held_out` to choose with, the rest is ID test.
    """

    kind: Literal["digits"]
    train_per_class: Count = 20
    held_out: HeldOut = 500


class IdxSpec(_Shifted):
    """Images and labels in the four IDX files of MNIST, Fashion-MNIST and their like.

    They are in the first of `folders` that exists (`~` is the home folder). `train` and `held_out`
    samples are drawn by class from the train files; the t10k files are ID test.
    """

    kind: Literal["idx"]
    folders: tuple[str, ...] = Field(min_length=1)
    train: Count
    held_out: HeldOut


DataSpec = DigitsSpec | IdxSpec
