"""The `data` of a spec: training data, held-out data, test data and shifts."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from soupray.spec.space import Count, SpecModel

LARGEST_SIDE = 10_000
"""Pixels: ten times the side of what the largest models of timm and open_clip read."""

MOST_PIXELS = 2**31 - 1
"""Pixels of an image: Pillow counts them in an int."""

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
"""Shifts that are made from copies of the ID test images."""

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

    The split is called `name`, or `kind` without a name. `label_map`, for the kind `folder`, is a
    YAML file that lists the folders of each class; it is needed if the folder names differ from
    those of the training images.
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
        """Name of the split."""
        return self.name or self.kind


Shift = Annotated[
    Annotated[Corruption, Tag("a word")] | Annotated[NaturalShift, Tag("a mapping")],
    Discriminator(lambda v: "a mapping" if isinstance(v, dict | NaturalShift) else "a word"),
]


class HeldOutParts(SpecModel):
    """Held-out data in two parts: `select` samples to choose soups, `rank` to compare them."""

    select: Count
    rank: Count


class HeldOutIds(SpecModel):
    """Held-out samples by id: a text file with one id per line, or the published split of ImageNet.

    The published split is model-soups' `imagenet_98_idxs.npy`. It has one number per training
    sample, in order: 1 for training, 0 for held-out.
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
    # Errors then refer to the form that the user wrote.
    Discriminator(_written_as),
]


class _Shifted(SpecModel):
    """Data with shifts of the test set.

    `overlap` says what to do if a training or held-out sample has the same content as a reported
    one, or a training sample the same as a held-out one: `fail` is an error, `drop` leaves it out.
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
        """Shifts that are made from copies of the ID test images."""
        return tuple(s for s in self.shifts if isinstance(s, str))

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Shifts that are separate data sets."""
        return tuple(s for s in self.shifts if not isinstance(s, str))


class DigitsSpec(_Shifted):
    """The UCI digits in scikit-learn, as 32 x 32 images.

    `train_per_class` images of each class are for training, `held_out` to choose soups; all others
    are ID test.
    """

    kind: Literal["digits"]
    train_per_class: Count = 20
    held_out: HeldOut = 500


class IdxSpec(_Shifted):
    """Images and labels in four IDX files, the format of MNIST and Fashion-MNIST.

    The files are in the first of `folders` that exists (`~` is the home folder). `train` and
    `held_out` samples are drawn by class from the train files; the t10k files are ID test.
    """

    kind: Literal["idx"]
    folders: tuple[str, ...] = Field(min_length=1)
    train: Count
    held_out: HeldOut


class Pictures(_Shifted):
    """Images of any size and format.

    The short side is resized to `size` pixels (bicubic), and the centre is cut out. `channels` is 3
    for RGB, 1 for grey. Training images are kept at `train_size` pixels, by default one seventh
    larger than `size`, so that augmentation can cut from them. `keep: stream` decodes the original
    files batch by batch, for training sets that are too large to store decoded. `on_error` is for
    images that cannot be read. An image of more than `max_pixels` cannot; without it, this is an
    image of more than Pillow's limit, 89 478 485.
    """

    held_out: HeldOut
    size: Annotated[Count, Field(le=LARGEST_SIDE)]
    train_size: Annotated[Count, Field(le=LARGEST_SIDE)] | None = None
    channels: Literal[1, 3] = 3
    keep: Literal["mapped", "stream"] = "mapped"
    on_error: Literal["fail", "skip"] = "fail"
    # Left out if not given, so that digests of specs from before this field do not change.
    max_pixels: Annotated[Count, Field(le=MOST_PIXELS)] | None = Field(
        default=None, exclude_if=lambda most: most is None
    )

    @property
    def side_of_train(self) -> int:
        """Side of a stored training image, in pixels."""
        return self.train_size or self.size * 8 // 7


class FolderSpec(Pictures):
    """One folder of images per class, in `train` and in `test`.

    `test` is a path, or a number of images that are drawn by class from `train`. The names of the
    folders are matched with those of the task's classes. With `label_map`, a YAML file that lists
    the folders of each class, other folders are left out.
    """

    kind: Literal["folder"]
    train: str
    test: str | Count
    label_map: str | None = None


class WebDatasetSpec(Pictures):
    """WebDataset shards: tar files in which `KEY.jpg` (png, webp) and `KEY.cls` are one sample.

    `train` and `test` are paths with `*` or `{000..127}` for the numbers. `test` may also be a
    number of images that are drawn by class from `train`.
    """

    kind: Literal["webdataset"]
    train: str
    test: str | Count


def _is_absent(value: object) -> bool:
    """Whether a field is left out, so that digests of specs from before it do not change."""
    return value is None


class TorchvisionSpec(Pictures):
    """A data set of torchvision, by the name of its class, as torchvision stored it in `root`.

    Nothing is downloaded. `test` is a number of images that are drawn by class from the training
    part; by default the test part is used. The names that torchvision gives to the classes are
    matched with those of the task; `label_map` is a YAML file that lists torchvision's names of
    each class, if they differ.
    """

    kind: Literal["torchvision"]
    name: str
    root: str
    test: Count | None = None
    label_map: str | None = Field(default=None, exclude_if=_is_absent)


class HuggingFaceSpec(Pictures):
    """A data set that `datasets.save_to_disk` wrote to `path`.

    `train` and `test` are names of splits; `test` may also be a number of images that are drawn by
    class from `train`. `image` and `label` are names of columns. Names of classes (a `ClassLabel`,
    or a column of texts) are matched with those of the task; `label_map` is a YAML file that lists
    the names of the data for each class, if they differ.
    """

    kind: Literal["huggingface"]
    path: str
    train: str = "train"
    test: str | Count = "test"
    image: str = "image"
    label: str = "label"
    label_map: str | None = Field(default=None, exclude_if=_is_absent)


class TextSpec(SpecModel):
    """Texts and their labels in files: CSV, TSV or JSON lines, by the ending of the file name.

    A label is the name of one of the task's classes. `held_out` samples are drawn by class from the
    train file. `test` is a file, or a number of samples drawn in the same way. `shifts` names
    further files, which are reported like test. `on_long` says whether a text above `max_bytes`
    (UTF-8) or the task's max_tokens is an error or is cut. `overlap` has the same meaning as for
    images.
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
    max_bytes: Annotated[Count, Field(le=1_000_000)] = 2000
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
        """All files that the spec names."""
        test = (self.test,) if isinstance(self.test, str) else ()
        return (self.train, *test, *self.shifts.values())

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Always empty: corruptions exist only for images."""
        return ()

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Always empty: the shifts of texts are files."""
        return ()


ImagesSpec = FolderSpec | WebDatasetSpec | TorchvisionSpec | HuggingFaceSpec
DataSpec = DigitsSpec | IdxSpec | TextSpec | ImagesSpec
