"""The `data` of a spec that are tables, of texts or of images and captions; and every kind of data.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from soupray.spec.data import (
    LARGEST_SIDE,
    DigitsSpec,
    HeldOut,
    IdxSpec,
    ImagesSpec,
    NaturalShift,
    OwnShift,
)
from soupray.spec.space import Count, SpecModel


class _Tables(SpecModel):
    """Samples in files: CSV, TSV or JSON lines, by the ending of the file name."""

    train: str
    """The table with the training samples."""

    test: str | Count
    """The table with the test samples, or a number of them that are drawn from `train`."""

    max_bytes: Annotated[Count, Field(le=1_000_000)] = 2000
    """Most bytes of a text, in UTF-8."""

    on_long: Literal["fail", "cut"] = "fail"
    """A text above `max_bytes`, or of more tokens than the model reads: `fail` is an error, `cut`
    cuts it."""

    shifts: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")], str] = Field(
        default={}
    )
    """Further files that are reported like the test file, by the name of the split."""

    @pydantic.field_validator("shifts")
    @classmethod
    def _are_not_splits(cls, shifts: dict[str, str]) -> dict[str, str]:
        for name in ("train", "held_out", "rank", "test"):
            if name in shifts:
                raise ValueError(f"a shift cannot be called {name!r}, which is a split; rename it")
        return shifts

    @property
    def files(self) -> tuple[str, ...]:
        """All tables that the spec names."""
        test = (self.test,) if isinstance(self.test, str) else ()
        return (self.train, *test, *self.shifts.values())

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Always empty: the shifts of tables are files."""
        return ()

    @property
    def proxy_shifts(self) -> tuple[str, ...]:
        """Always empty, for the same reason."""
        return ()

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Always empty, for the same reason."""
        return ()

    @property
    def functions(self) -> tuple[OwnShift, ...]:
        """Always empty, for the same reason."""
        return ()


class TextSpec(_Tables):
    """Texts and their labels in files: CSV, TSV or JSON lines, by the ending of the file name."""

    kind: Literal["text"]

    train: str
    """The file with the training texts. A label is the name of one of the task's classes, or with
    `objective: retrieval` the document that is right for a query."""

    test: str | Count
    """The file with the test texts, or a number of samples that are drawn by class from `train`."""

    held_out: HeldOut
    """Samples that choose soups, drawn by class from the train file: a number, two numbers, or a
    list of ids."""

    text_column: str = "text"
    """Name of the column with the texts; in retrieval with the queries."""

    label_column: str = "label"
    """Name of the column with the classes; in retrieval with the documents."""

    on_error: Literal["fail", "skip"] = Field(
        default="fail", exclude_if=lambda what: what == "fail"
    )
    """A row without a text or a label, with a label that is no class, or that is no row of the
    file's format: `fail` is an error, `skip` leaves it out and says so. A quote that is not closed
    is an error always: nobody knows which rows it hides."""

    overlap: Literal["fail", "drop"] = "fail"
    """A training or held-out text that is also reported, or a training text that is also held out:
    `fail` is an error, `drop` leaves it out. In retrieval it is about queries: documents may be in
    several splits."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the keys of the spec that name them."""
        return {"text_column": self.text_column, "label_column": self.label_column}


class CaptionsSpec(_Tables):
    """Images and their captions, for `objective: retrieval`: CSV, TSV or JSON lines."""

    kind: Literal["captions"]

    train: str
    """The table of training pairs: a row names the file of an image, by its path from the folder of
    the table, and has a caption. An image may be in several rows, and so may a caption."""

    test: str | Count
    """Such a table of test pairs, or a number of images that are drawn from `train`."""

    held_out: HeldOut
    """What chooses soups, drawn from the train table: a number of images, two numbers, or a list of
    ids. All captions of an image go with it."""

    image_column: str = "image"
    """Name of the column with the paths of the images."""

    caption_column: str = "caption"
    """Name of the column with the captions."""

    size: Annotated[Count, Field(le=LARGEST_SIDE)]
    """Side of the stored images, in pixels. Left out: that of the checkpoint."""

    on_error: Literal["fail", "skip"] = "fail"
    """An image or a row that cannot be read: `fail` is an error, `skip` leaves its pairs out and
    says so."""

    overlap: Literal["fail", "drop"] = "fail"
    """A training or held-out image that is also reported, or a training image that is also held
    out: `fail` is an error, `drop` leaves its pairs out. Captions may be in several splits."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the keys of the spec that name them."""
        return {"image_column": self.image_column, "caption_column": self.caption_column}


PairsSpec = TextSpec | CaptionsSpec
"""What has pairs of a query and its document."""

DataSpec = DigitsSpec | IdxSpec | PairsSpec | ImagesSpec
"""Every kind of data."""
