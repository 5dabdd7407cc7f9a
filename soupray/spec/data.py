"""What is learnt from and reported on: the `data` of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from soupray.spec.space import Count, SpecModel

Corruption = Literal[
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
"""Shifts that are copies of ID test, made here."""

ShiftKind = Literal[
    "folder",
    "imagenet_v2",
    "imagenet_r",
    "imagenet_a",
    "imagenet_sketch",
    "objectnet",
    "cifar10_1",
    "stl10",
]


class NaturalShift(SpecModel):
    """Other images of the same classes, or of some of them, in the folder `root`.

    Its split is called `name`, else as its kind. `label_map`, for kind `folder`: a YAML file that
    lists the folders of each class, where they are not called as those of the train images.
    """

    kind: ShiftKind
    root: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")] | None = None
    label_map: str | None = None

    @pydantic.field_validator("label_map")
    @classmethod
    def _is_of_a_folder(cls, path: str | None, info: pydantic.ValidationInfo) -> str | None:
        if path is not None and info.data.get("kind") != "folder":
            raise ValueError(f"the label map of {info.data.get('kind')} is known; leave it out")
        return path

    @property
    def split(self) -> str:
        """The name of its split."""
        return self.name or self.kind


Shift = Annotated[
    Annotated[Corruption, Tag("a word")] | Annotated[NaturalShift, Tag("a mapping")],
    Discriminator(lambda v: "a mapping" if isinstance(v, dict | NaturalShift) else "a word"),
]


class HeldOutParts(SpecModel):
    """Held-out data in two: `select` samples to choose a soup with, `rank` to compare soups on."""

    select: Count
    rank: Count


class HeldOutIds(SpecModel):
    """Held-out samples by id: a text file, an id a line; or the published split of ImageNet.

    The latter is model-soups' `imagenet_98_idxs.npy`: a number for each train sample in order,
    1 where it is trained on and 0 where it is held out.
    """

    ids: str


def _written_as(value: object) -> str:
    if isinstance(value, HeldOutIds) or (isinstance(value, dict) and "ids" in value):
        return "a list"
    return "two parts" if isinstance(value, dict | HeldOutParts) else "a number"


HeldOut = Annotated[
    Annotated[Annotated[int, Field(ge=0)], Tag("a number")]
    | Annotated[HeldOutParts, Tag("two parts")]
    | Annotated[HeldOutIds, Tag("a list")],
    # So that a mistake in one way of writing it is not answered with another way.
    Discriminator(_written_as),
]


class _Shifted(SpecModel):
    """Data with shifts of its test set.

    `overlap`: whether it is an error that a train or held-out sample has the content of one that
    is reported, or a train sample that of one held out; or whether such are left out.
    """

    shifts: tuple[Shift, ...] = ()
    overlap: Literal["fail", "drop"] = "fail"

    @pydantic.field_validator("shifts")
    @classmethod
    def _differ(cls, shifts: tuple[Shift, ...]) -> tuple[Shift, ...]:
        names = [s if isinstance(s, str) else s.split for s in shifts]
        if len(set(names)) < len(names):
            raise ValueError("a shift is listed twice; give one of the two another name")
        if taken := {"train", "held_out", "rank", "test"} & set(names):
            raise ValueError(f"a shift cannot be called {taken.pop()!r}: another split is")
        return shifts

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Shifts that are copies of ID test."""
        return tuple(s for s in self.shifts if isinstance(s, str))

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Shifts that are data sets of their own."""
        return tuple(s for s in self.shifts if not isinstance(s, str))


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


class Pictures(_Shifted):
    """Images of any size and format.

    The short side is resized to `size` pixels (bicubic) and the centre cut out, in `channels`: 3
    for RGB, 1 for grey. Train images are kept at `train_size`, by default an eighth part larger
    than `size`, for augmentation to cut from. `keep: stream` leaves them where they are, to be
    decoded batch by batch: for train sets that no disk holds decoded. `on_error` is for images
    that cannot be read.
    """

    held_out: HeldOut
    size: Count
    train_size: Count | None = None
    channels: Literal[1, 3] = 3
    keep: Literal["mapped", "stream"] = "mapped"
    on_error: Literal["fail", "skip"] = "fail"

    @property
    def side_of_train(self) -> int:
        """Pixels of a train image's side, as it is kept."""
        return self.train_size or self.size * 8 // 7


class FolderSpec(Pictures):
    """A folder of images for each class, in `train` and in `test`.

    `test` is a path, or so many images drawn by class from `train`. The labels follow the folders'
    names, sorted as text; or `label_map`, a YAML file that lists the folders of each class: the
    labels follow its order, and folders that it does not name are left out.
    """

    kind: Literal["folder"]
    train: str
    test: str | Count
    label_map: str | None = None


class WebDatasetSpec(Pictures):
    """WebDataset shards: tar files in which `KEY.jpg` (png, webp) and `KEY.cls` make a sample.

    `train` and `test` are paths with `*` or `{000..127}` for the numbers; `test` may be a count.
    """

    kind: Literal["webdataset"]
    train: str
    test: str | Count


class TorchvisionSpec(Pictures):
    """A data set of torchvision's, by the name of its class, as torchvision left it in `root`.

    Nothing is downloaded. `test`: so many images drawn by class from its train part; by default
    its own test part.
    """

    kind: Literal["torchvision"]
    name: str
    root: str
    test: Count | None = None


class HuggingFaceSpec(Pictures):
    """A data set that `datasets.save_to_disk` wrote to `path`.

    `train` and `test` are names of its splits (`test` may be a count), `image` and `label` of its
    columns.
    """

    kind: Literal["huggingface"]
    path: str
    train: str = "train"
    test: str | Count = "test"
    image: str = "image"
    label: str = "label"


class TextSpec(SpecModel):
    """Texts and their labels in files: CSV, TSV or JSON lines, told by the ending of the name.

    A label is one of the task's classes, in words. `held_out` samples are drawn by class from the
    train file, and so are `test` samples, where `test` is a number and not a file of its own.
    `shifts` names further files, reported on like test. Texts beyond `max_bytes` (of UTF-8), or
    beyond the task's max_tokens, fail, or are cut to it. `overlap` as for images.
    """

    kind: Literal["text"]
    train: str
    test: str | Count
    held_out: HeldOut
    shifts: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")], str] = Field(
        default_factory=dict
    )
    text_column: str = "text"
    label_column: str = "label"
    max_bytes: Count = 2000
    on_long: Literal["fail", "cut"] = "fail"
    overlap: Literal["fail", "drop"] = "fail"

    @pydantic.field_validator("shifts")
    @classmethod
    def _are_not_splits(cls, shifts: dict[str, str]) -> dict[str, str]:
        for name in ("train", "held_out", "rank", "test"):
            if name in shifts:
                raise ValueError(f"a shift cannot be called {name!r}, which is a split; rename it")
        return shifts

    @property
    def files(self) -> tuple[str, ...]:
        """All files, as the spec names them."""
        test = (self.test,) if isinstance(self.test, str) else ()
        return (self.train, *test, *self.shifts.values())

    @property
    def corruptions(self) -> tuple[str, ...]:
        """None: what is made of images has no like for texts."""
        return ()

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """None: the shifts of texts are files."""
        return ()


ImagesSpec = FolderSpec | WebDatasetSpec | TorchvisionSpec | HuggingFaceSpec
DataSpec = DigitsSpec | IdxSpec | TextSpec | ImagesSpec
