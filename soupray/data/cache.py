"""Decoded data: each node builds one memory-mapped uint8 cache, and all its processes share it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from filelock import FileLock
from msgspec import UNSET

from soupray.core.arrays import Images, Labels
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.records import PROXY, Record, Role, Split, decode, digest
from soupray.data.building import build, is_whole, left_out, look_of
from soupray.data.pairs import check_gallery
from soupray.data.reading import Stream
from soupray.data.sets import fingerprints, parts_of, shifts_of
from soupray.data.splits import Listing, Part
from soupray.spec.data import ImagesSpec
from soupray.spec.sweep_spec import SweepSpec

CACHE_VERSION = "4"
"""Version of the code that reads, labels, decodes and shifts. It is part of the cache's name only.

Increase it when the labels or images of some data sets change: all caches are then built again.
Labels and images are in the digests of splits, so that a sweep whose data have changed is refused.
"""

ADVICE = (
    "Restore the data. Or put the new ones at another path and name it in the spec: then they have "
    "a theta_0 and trials of their own."
)


class Data:
    """The splits of a sweep, as memory maps. A streamed train split is decoded on each read."""

    def __init__(self, folder: Path, streamed: Callable[[], Stream] | None = None) -> None:
        self.folder = folder
        self.splits: tuple[Split, ...] = decode(
            (folder / "splits.json").read_bytes(), tuple[Split, ...]
        )
        self._stream = functools.cache(streamed) if streamed else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data, and why."""
        path = self.folder / "notes.json"
        return decode(path.read_bytes(), tuple[str, ...]) if path.exists() else ()

    def split(self, name: str) -> Split:
        """The split with this name."""
        return next(s for s in self.splits if s.name == name)

    def samples(self, split: Split) -> tuple[Images, Labels]:
        """The samples and labels of a split. They are read from disk when they are used.

        Returns:
            Images [N, C, H, W] or texts [N, L], and labels [N].

        Raises:
            EvaluationError: the data of this node are not those of `split`.
        """
        mine = self.split(split.name)
        if mine.digest != split.digest:
            raise EvaluationError(
                f"split {split.name}: the data here have digest {mine.digest[:12]}, the data of "
                f"the sweep had {split.digest[:12]}. The data changed, or the code that decodes "
                f"and labels them. {ADVICE}"
            )
        labels = np.load(self.folder / f"{split.name}.labels.npy", mmap_mode="r")
        path = self.folder / f"{split.name}.images.npy"
        if self._stream is not None and not path.exists():
            # A Stream has those methods of an array that the readers of images use.
            return cast(Images, self._stream()), labels
        return np.load(path, mmap_mode="r"), labels

    def ids(self, split: Split) -> list[str]:
        """The ids of the samples in their source, in order."""
        return (self.folder / f"{split.name}.ids.txt").read_bytes().decode().split("\n")[:-1]


def open_data(spec: SweepSpec, cache: Path) -> Data:
    """The data of a sweep. The first process of a node decodes them, the others wait for it.

    If a full disk or a crash interrupted the decoding, it starts again.

    Args:
        spec: of the sweep.
        cache: the folder for all data caches of the node.

    Raises:
        ConfigError: the data cannot be read, or are fewer than the spec needs.
    """
    folder = _folder_of(spec, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            if folder.exists():
                shutil.rmtree(folder)
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
            part.mkdir()
            try:
                build_folder(spec, part)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return Data(folder, functools.partial(_streamed, spec, folder))


def find_data(spec: SweepSpec, cache: Path) -> Data | None:
    """The data of a sweep, if they are decoded on this machine already and did not change.

    Args:
        spec: of the sweep.
        cache: the folder for all data caches of the node.
    """
    try:
        folder = _folder_of(spec, cache)
    except ConfigError:  # their source is not on this machine
        return None
    return Data(folder, functools.partial(_streamed, spec, folder)) if is_whole(folder) else None


def _folder_of(spec: SweepSpec, cache: Path) -> Path:
    """The folder of the decoded data: its name is a digest of all that shapes them."""
    source = [spec.data.model_dump(mode="json"), spec.task.classes, spec.seed]
    source += [list(look_of(spec, side=0, train=False))]
    source += [] if spec.targets is UNSET else [spec.targets]
    source += [] if spec.own_metric is UNSET else [spec.own_metric]
    return cache / digest([CACHE_VERSION, *source, *fingerprints(spec.data)])[:32]


def build_folder(spec: SweepSpec, folder: Path) -> None:
    """Read the data of `spec` at their source and write them into `folder`, which is new."""
    parts = parts_of(spec.data, spec.seed, spec.task.classes, spec.targets).splits
    natural = shifts_of(spec.data, spec.task.classes, spec.targets)
    _check_labels(spec, parts)
    build(spec, folder, parts, natural)


def _streamed(spec: SweepSpec, folder: Path) -> Stream:
    """The train images in their source. They are listed again, in the order of the cache."""
    assert isinstance(spec.data, ImagesSpec)
    found = parts_of(spec.data, spec.seed, spec.task.classes, spec.targets)
    train = found.splits["train"]
    assert isinstance(train, Listing)
    rows = np.load(folder / "train.rows.npy")
    return Stream(train.take(rows), look_of(spec, spec.data.side_of_train, train=True))


class PlannedClass(Record, frozen=True, kw_only=True):
    """A class of the task: its name, what the data call it, and its samples in three splits."""

    name: str
    source: str
    train: int
    held_out: int
    test: int


class Planned(NamedTuple):
    """The data of a sweep before they are decoded.

    Attributes:
        sizes: (name, role, number of samples) of each split.
        classes: all classes of the task.
        notes: what of the sources is left out, and why.
    """

    sizes: list[tuple[str, Role, int]]
    classes: list[PlannedClass]
    notes: tuple[str, ...]


def planned(spec: SweepSpec) -> Planned:
    """The sizes of all splits, and the classes, without decoding. They hold if all can be read.

    Raises:
        ConfigError: the data are missing, are fewer than the spec needs, or have other classes.
    """
    names = spec.task.classes
    parts, sources = parts_of(spec.data, spec.seed, names, spec.targets)
    _check_labels(spec, parts)
    sizes: list[tuple[str, Role, int]] = [
        (name, cast(Role, name), len(part.ids)) for name, part in parts.items()
    ]
    own = [shift.split for shift in spec.data.functions]
    sizes += [(n, "shift", len(parts["test"].ids)) for n in (*spec.data.corruptions, *own)]
    shifts = shifts_of(spec.data, names, spec.targets)
    for name, part in {**parts, **{n: s.samples for n, s in shifts.items()}}.items():
        check_gallery(name, part.labels, spec.targets)
    sizes += [(name, "shift", len(s.samples.ids)) for name, s in shifts.items()]
    proxies = [PROXY + name for name in spec.data.proxy_shifts]
    sizes += [(name, "proxy", len(parts["held_out"].ids)) for name in proxies]
    counts = [_counts(parts[split].labels, spec) for split in ("train", "held_out", "test")]
    fields = PlannedClass.__struct_fields__
    classes = [
        PlannedClass(**dict(zip(fields, row, strict=True)))
        for row in zip(names, sources, *counts, strict=True)
    ]
    every = [*parts.values(), *(shifted.samples for shifted in shifts.values())]
    return Planned(sizes, classes, tuple(left_out(every)))


def _counts(labels: Labels, spec: SweepSpec) -> list[int]:
    """The samples of each class; of a regression all, for each output; with a mask; documents."""
    if spec.targets is UNSET:
        counts: list[int] = np.bincount(labels, minlength=len(spec.task.classes)).tolist()
        return counts
    if spec.targets.kind == "regression":
        return [len(labels)] * len(spec.task.classes)
    if spec.targets.kind == "retrieval":
        return [len(np.unique(labels[:, 1]))]
    if spec.targets.kind == "segmentation":
        return [int(labels.any(axis=1).sum())]
    positive: list[int] = labels.sum(axis=0, dtype=np.int64).tolist()
    return positive


def _check_labels(spec: SweepSpec, parts: Mapping[str, Part]) -> None:
    """Check that the task has as many classes as the data; names are matched before."""
    if spec.targets is UNSET:
        check_classes(spec, max(int(part.labels.max()) for part in parts.values()) + 1)


def check_classes(spec: SweepSpec, labels: int) -> None:
    """Check that the task names as many classes as the data have.

    Args:
        spec: of the sweep.
        labels: number of classes of the data.

    Raises:
        ConfigError: the numbers differ.
    """
    named = len(spec.task.classes)
    if named != labels:
        raise ConfigError(
            f"task.classes has {named} names; data of kind {spec.data.kind} have {labels} "
            f"classes, labelled 0 to {labels - 1}. Name all classes, in the order of the labels."
        )
