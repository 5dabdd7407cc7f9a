"""The `data` of a spec that are images: training data, held-out data, test data and shifts.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Discriminator, Field, JsonValue, Tag

from soupray.core.plugins import MODULE, installed
from soupray.spec.plugged_in import SHIFTS, Corruption
from soupray.spec.proxies import check_kinds
from soupray.spec.space import Count, SpecModel
from soupray.spec.task import Code

LARGEST_SIDE = 10_000
"""Pixels: ten times the side of what the largest models of timm and open_clip read."""

SPLIT_NAME = "[a-z0-9][a-z0-9_.-]{0,62}"

MOST_PIXELS = 2**31 - 1
"""Pixels of an image: Pillow counts them in an int."""

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
    """Other images of the same classes, or of some of them."""

    kind: ShiftKind
    """How the folder is laid out; `folder` is a folder of images for each class."""

    root: str
    """The folder with the images."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")] | None = None
    """Name of the split. Left out: `kind`."""

    label_map: str | None = None
    """For the kind `folder`: a YAML file with lines like `cat: [tabby, siamese]`, which lists the
    folders of each class. Needed if the folders have other names than the training images'."""

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


class OwnShift(SpecModel):
    """A corruption of the user: a function that changes copies of the test images."""

    function: str
    """The function, as `package.module:name`, or the name of an entry point in `soupray.shifts`."""

    code: Code = ""
    """The digest of its code, filled in when the spec is read."""

    @pydantic.field_validator("function")
    @classmethod
    def _names_a_split(cls, function: str) -> str:
        if not re.fullmatch(SPLIT_NAME, name := _last(function)):
            raise ValueError(
                f"the split would be called {name!r}; names of splits are lower-case letters, "
                "digits, _, . and -, and start with a letter or a digit: give the function "
                "another name"
            )
        return function

    @property
    def split(self) -> str:
        """Name of the split: that of the function, in lower case."""
        return _last(self.function)


def _last(function: str) -> str:
    return function.rpartition(":")[2].lower()


_Named = Annotated[str, Field(json_schema_extra={"pattern": f"^{MODULE}$"})]


def _says_shifts(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which shifts there are, installed ones too."""
    schema["enum"] = [*schema["enum"], *installed(SHIFTS)]


def _as_function(value: object) -> object:
    return {"function": value} if isinstance(value, str) else value


def _form(value: object) -> str:
    if isinstance(value, OwnShift) or (isinstance(value, dict) and "function" in value):
        return "a function"
    if isinstance(value, str) and ":" in value:
        return "a function"
    return "a mapping" if isinstance(value, dict | NaturalShift) else "a word"


_Function = Annotated[
    OwnShift,
    pydantic.BeforeValidator(_as_function, json_schema_input_type=OwnShift | _Named),
    Tag("a function"),
]
Shift = Annotated[
    Annotated[Corruption, Field(json_schema_extra=_says_shifts), Tag("a word")]
    | _Function
    | Annotated[NaturalShift, Tag("a mapping")],
    Discriminator(_form),
]
SplitName = Annotated[str, Field(pattern=f"^{SPLIT_NAME}$")]


class HeldOutParts(SpecModel):
    """Held-out data in two parts: recipes choose with one, and models are ranked with the other."""

    select: Count
    """Samples with which recipes choose."""

    rank: Count
    """Samples with which models are ranked. Nothing is chosen with them."""


class HeldOutIds(SpecModel):
    """Held-out samples by id.

    The published split of ImageNet is model-soups' `imagenet_98_idxs.npy`. It has one number per
    training sample, in order: 1 for training, 0 for held-out.
    """

    ids: str
    """A text file with one id per line, or `imagenet_98_idxs.npy`, the published split of
    ImageNet."""


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
    """Data with shifts of the test set."""

    shifts: tuple[Shift, ...] = ()
    """What is reported beside the test set. A word is a changed copy of the test images, and
    `package.module:name` a function of your own that changes them; a mapping is another data
    set."""

    # Left out if not given, so that digests of specs from before this field do not change.
    proxy_shifts: tuple[Corruption, ...] = Field(default=(), exclude_if=lambda words: not words)
    """Changed copies of the held-out images, by which recipes may choose (`dial`). They are never
    reported, and each is of another kind than every one of `shifts`: see the guide."""

    overlap: Literal["fail", "drop"] = "fail"
    """A training or held-out sample with the content of a reported one, or a training sample with
    that of a held-out one: `fail` is an error, `drop` leaves it out."""

    @pydantic.field_validator("shifts")
    @classmethod
    def _differ(cls, shifts: tuple[Shift, ...]) -> tuple[Shift, ...]:
        names = [s if isinstance(s, str) else s.split for s in shifts]
        if len(set(names)) < len(names):
            raise ValueError("a shift is listed twice; give one of the two another name")
        if taken := {"train", "held_out", "rank", "test"} & set(names):
            raise ValueError(f"a shift cannot be called {taken.pop()!r}: another split is")
        return shifts

    @pydantic.field_validator("proxy_shifts")
    @classmethod
    def _are_of_other_kinds(
        cls, proxies: tuple[Corruption, ...], info: pydantic.ValidationInfo
    ) -> tuple[Corruption, ...]:
        shifts = info.data.get("shifts", ())
        check_kinds(proxies, [s if isinstance(s, str) else s.split for s in shifts])
        return proxies

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Shifts that are made from copies of the ID test images."""
        return tuple(s for s in self.shifts if isinstance(s, str))

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Shifts that are separate data sets."""
        return tuple(s for s in self.shifts if isinstance(s, NaturalShift))

    @property
    def functions(self) -> tuple[OwnShift, ...]:
        """Shifts that functions of the user make from copies of the ID test images."""
        return tuple(s for s in self.shifts if isinstance(s, OwnShift))


class DigitsSpec(_Shifted):
    """The UCI digits in scikit-learn, as 32 x 32 images."""

    kind: Literal["digits"]

    train_per_class: Count = 20
    """Training images of each class."""

    held_out: HeldOut = 500
    """Samples that choose soups: a number, two numbers, or a list of ids. All others are ID
    test."""


class IdxSpec(_Shifted):
    """Images and labels in four IDX files, the format of MNIST and Fashion-MNIST."""

    kind: Literal["idx"]

    folders: tuple[str, ...] = Field(min_length=1)
    """The files are in the first of these folders that exists; `~` is the home folder. The t10k
    files are ID test."""

    train: Count
    """Training samples, drawn by class from the train files."""

    held_out: HeldOut
    """Samples that choose soups, drawn by class from the train files: a number, two numbers, or a
    list of ids."""


class Pictures(_Shifted):
    """Images of any size and format. The side that evaluation reads is cut from the centre."""

    held_out: HeldOut
    """Samples that choose soups, drawn by class from the train part: a number, two numbers, or a
    list of ids."""

    size: Annotated[Count, Field(le=LARGEST_SIDE)]
    """Side of evaluated images in pixels: the short side is brought to it, and the centre is cut
    out. Left out: that of the model."""

    train_size: Annotated[Count, Field(le=LARGEST_SIDE)] | None = None
    """Side at which training images are kept, so that augmentation can cut from them. Left out:
    size * 8 / 7."""

    channels: Literal[1, 3] = 3
    """3: RGB. 1: grey."""

    keep: Literal["mapped", "stream"] = "mapped"
    """`mapped`: images are decoded once into the cache of each node. `stream`: training images are
    decoded as they are read, for what fits on no disk decoded."""

    on_error: Literal["fail", "skip"] = "fail"
    """An image that cannot be read: `fail` is an error, `skip` leaves it out and says so."""

    # Left out if not given, so that digests of specs from before this field do not change.
    max_pixels: Annotated[Count, Field(le=MOST_PIXELS)] | None = Field(
        default=None, exclude_if=lambda most: most is None
    )
    """An image of more pixels cannot be read. Left out: Pillow's limit, 89 478 485."""

    @property
    def side_of_train(self) -> int:
        """Side of a stored training image, in pixels."""
        return self.train_size or self.size * 8 // 7


class FolderSpec(Pictures):
    """One folder of images per class.

    The names of the folders are matched with those of the task's classes.
    """

    kind: Literal["folder"]

    train: str
    """The folder with a folder of training images for each class."""

    test: str | Count
    """Another such folder, or a number of images that are drawn by class from `train`."""

    label_map: str | None = None
    """A YAML file with lines like `cat: [tabby, siamese]`, which lists the folders of each class.
    Other folders are left out. Without it, folders and classes have the same names."""


class WebDatasetSpec(Pictures):
    """WebDataset shards: tar files in which `KEY.jpg` (png, webp) and `KEY.cls` are one sample."""

    kind: Literal["webdataset"]

    train: str
    """Paths of the shards, with `*` or `{000..127}` for the numbers."""

    test: str | Count
    """Paths of the test shards, or a number of images that are drawn by class from `train`."""


def _is_absent(value: object) -> bool:
    """Whether a field is left out, so that digests of specs from before it do not change."""
    return value is None


class TorchvisionSpec(Pictures):
    """A data set of torchvision, as torchvision stored it. Nothing is downloaded.

    The names that torchvision gives to the classes are matched with those of the task.
    """

    kind: Literal["torchvision"]

    name: str
    """The name of torchvision's class, such as `CIFAR10`."""

    root: str
    """The folder in which torchvision stored it."""

    test: Count | None = None
    """A number of images that are drawn by class from the training part. Left out: torchvision's
    test part."""

    label_map: str | None = Field(default=None, exclude_if=_is_absent)
    """A YAML file with lines like `cat: [tabby, siamese]`: torchvision's names of each class, if
    they differ from those of the task."""


class HuggingFaceSpec(Pictures):
    """A data set that `datasets.save_to_disk` wrote.

    Names of classes (a `ClassLabel`, or a column of texts) are matched with those of the task.
    """

    kind: Literal["huggingface"]

    path: str
    """The folder that `save_to_disk` wrote."""

    train: str = "train"
    """Name of the split with the training images."""

    test: str | Count = "test"
    """Name of the split with the test images, or a number of images that are drawn by class from
    `train`."""

    image: str = "image"
    """Name of the column with the images."""

    label: str = "label"
    """Name of the column with the classes."""

    label_map: str | None = Field(default=None, exclude_if=_is_absent)
    """A YAML file with lines like `cat: [tabby, siamese]`: the data's names of each class, if they
    differ from those of the task."""


_OwnOrSplit = Annotated[Annotated[SplitName, Tag("a word")] | _Function, Discriminator(_form)]


class TorchDataSpec(Pictures):
    """Data sets of your own: a function that returns map-style datasets of torch."""

    kind: Literal["torch"]

    dataset: str
    """The function, as `package.module:name`, or the name of an entry point in `soupray.data`. It
    is called with the name of a split (`train`, `test`, or one of `shifts`) and with `args`. Each
    sample is a pair: an image (Pillow, array [H, W, C], tensor [C, H, W]) and its class, as a name
    or a number."""

    args: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of the function. Where one is the path of a file or folder, changes there
    are noticed."""

    test: Count | None = None
    """A number of images that are drawn by class from the training part. Left out: the split
    `test` of the function."""

    # A word that is no corruption is the name of a split.
    shifts: tuple[_OwnOrSplit, ...] = ()  # type: ignore[assignment]
    """What is reported beside the test set: corruptions of the test images, also by a function of
    your own (`package.module:name`), and splits of the function."""

    label_map: str | None = Field(default=None, exclude_if=_is_absent)
    """A YAML file with lines like `cat: [tabby, siamese]`: the data's names of each class, if they
    differ from those of the task."""

    code: Code = ""
    """The digest of the function's code, filled in when the spec is read."""

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Shifts that are made from copies of the ID test images."""
        named = (s for s in self.shifts if isinstance(s, str))
        return tuple(s for s in named if s in get_args(Corruption))

    @property
    def natural_shifts(self) -> tuple[NaturalShift, ...]:
        """Always empty: the other shifts are splits of the function."""
        return ()

    @property
    def own_shifts(self) -> tuple[str, ...]:
        """Shifts that are splits of the function."""
        named = (s for s in self.shifts if isinstance(s, str))
        return tuple(s for s in named if s not in get_args(Corruption))


ImagesSpec = FolderSpec | WebDatasetSpec | TorchvisionSpec | HuggingFaceSpec | TorchDataSpec
