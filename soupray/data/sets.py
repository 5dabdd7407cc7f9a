"""The splits of every kind of data set. No image is decoded here.

The files of a data set are identified by a digest that is quick to compute. For a few files (IDX,
label maps, lists of ids), the digest is of their contents. For many files, it is of their paths,
sizes and modification times. If a copy of a data set has other modification times, the data are
decoded again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.errors import ConfigError
from soupray.core.records import Objective
from soupray.data.captions import image_files
from soupray.data.digits import split_digits
from soupray.data.folders import existing, folder_labels, list_part, mapped_labels, walked
from soupray.data.idx import file_digests, split_idx
from soupray.data.natural import Shifted, list_shift
from soupray.data.pairs import pairs_in, split_pairs
from soupray.data.shards import list_shards, shards
from soupray.data.splits import Listing, Part, draw, held_out_shares, set_aside, shares
from soupray.data.targets import notes_on
from soupray.data.text import read_texts, split_texts
from soupray.spec.class_numbers import class_numbers
from soupray.spec.data import (
    DigitsSpec,
    FolderSpec,
    HeldOutIds,
    HuggingFaceSpec,
    IdxSpec,
    ImagesSpec,
    TorchDataSpec,
    TorchvisionSpec,
    WebDatasetSpec,
)
from soupray.spec.files import path_of
from soupray.spec.tables import CaptionsSpec, DataSpec, TextSpec

MOST_CLASSES = 1_000_000
"""The most classes: fifty times those of ImageNet-21k."""

TRAIN, TEST = "data.train", "data.test"


class Parts(NamedTuple):
    """The splits of a data set, without shifts.

    `splits`: train, held_out, rank (if the spec has it) and test, by name. `sources`: for each
    class of the task, what the data call it.
    """

    splits: dict[str, Part]
    sources: list[str]


def parts_of(
    data: DataSpec,
    seed: int,
    classes: Sequence[str],
    objective: Objective | UnsetType = UNSET,
) -> Parts:
    """The splits of a data set, and what it calls the classes.

    Args:
        data: the spec of the data.
        seed: of the draw.
        classes: names of the task's classes.
        objective: what the targets are; unset: one class.

    Raises:
        ConfigError: the data cannot be read, are fewer than the spec needs, or have other classes.
    """
    if isinstance(data, DigitsSpec):
        digits, names = split_digits(data, seed, classes)
        return Parts(dict(digits), names)
    if isinstance(data, IdxSpec):
        return Parts(dict(split_idx(data, seed)), _numbers(classes))
    if objective is not UNSET and objective.kind == "retrieval":
        assert isinstance(data, TextSpec | CaptionsSpec), "checked when the spec was read"
        return Parts(split_pairs(data, seed), list(classes))
    if objective is not UNSET:
        assert isinstance(data, TorchDataSpec), "checked when the spec was read"
        return Parts(_drawn(data, seed, classes, objective), list(classes))
    if isinstance(data, TextSpec):
        return Parts(dict(split_texts(data, classes, seed)), list(classes))
    assert not isinstance(data, CaptionsSpec), "checked when the spec was read"
    every, test, sources = _sources(data, classes)
    _refuse_many_classes(every, test)
    every, listed = set_aside(every, data.held_out)
    count = int(every.labels.max()) + 1
    wanted = held_out_shares(data.held_out, count)
    if isinstance(data.test, int):
        wanted["test"] = shares(data.test, count)
    _check_enough(every, wanted, classes)
    parts = {**draw(every, wanted, rest="train", seed=seed), **listed}
    if test is not None:
        parts["test"] = test
    order = ("train", "held_out", "rank", "test")
    return Parts({name: parts[name] for name in order if name in parts}, sources)


def _drawn(
    data: TorchDataSpec, seed: int, classes: Sequence[str], objective: Objective
) -> dict[str, Part]:
    """The splits of data whose samples have no class, but labels, numbers or masks: at random."""
    from soupray.data.torch_sets import list_targets

    every = list_targets(data, "train", classes, objective)
    test = data.test if data.test is not None else list_targets(data, "test", classes, objective)
    targets = every.labels
    every = every._replace(notes=(*every.notes, *notes_on(targets, classes, objective)))
    # One class for all: the draw is not by class.
    alike = every._replace(labels=np.zeros(len(every.ids), np.int64), rows=np.arange(len(targets)))
    alike, listed = set_aside(alike, data.held_out)
    wanted = held_out_shares(data.held_out, 1)
    if isinstance(test, int):
        wanted["test"] = [test]
    asked = sum(n for counts in wanted.values() for n in counts)
    if asked >= len(alike.ids):
        raise ConfigError(
            f"data.{' and data.'.join(wanted)} need {asked} samples and leave none to train on: "
            f"{data.dataset} has {len(alike.ids)} of split 'train'. Lower them."
        )
    found = {**draw(alike, wanted, rest="train", seed=seed), **listed}
    parts: dict[str, Part] = {
        name: part._replace(labels=targets[part.rows]) for name, part in found.items()
    }
    if not isinstance(test, int):
        parts["test"] = test
    order = ("train", "held_out", "rank", "test")
    return {name: parts[name] for name in order if name in parts}


def _numbers(classes: Sequence[str]) -> list[str]:
    """What data without class names call the classes."""
    return [f"label {k}" for k in range(len(classes))]


class _Source(NamedTuple):
    """All train images, the test images (None: drawn from them), and the data's class names."""

    train: Listing
    test: Listing | None
    names: list[str]


def _sources(data: ImagesSpec, classes: Sequence[str]) -> _Source:
    drawn = isinstance(data.test, int)
    if isinstance(data, FolderSpec):
        train, names = list_part(data.train, classes, data, TRAIN)
        test = None if drawn else list_part(str(data.test), classes, data, TEST)[0]
        return _Source(train, test, names)
    if isinstance(data, WebDatasetSpec):
        skip = data.on_error == "skip"
        test = None if drawn else list_shards(str(data.test), TEST, skip)
        return _Source(list_shards(data.train, TRAIN, skip), test, _numbers(classes))
    # The imports are here because each library takes seconds to import, or is not installed.
    if isinstance(data, TorchDataSpec):
        from soupray.data.torch_sets import list_torch

        where = data.dataset
        found = [list_torch(data, part) for part in (("train",) if drawn else ("train", "test"))]
    elif isinstance(data, TorchvisionSpec):
        from soupray.data.torchvision_sets import list_torchvision

        where = f"{data.name} of torchvision"
        found = [list_torchvision(data, part) for part in ((True,) if drawn else (True, False))]
    else:
        from soupray.data.huggingface import list_huggingface

        where = f"column {data.label!r} of {data.path}"
        named = [data.train] if drawn else [data.train, str(data.test)]
        found = [list_huggingface(data, name) for name in named]
    train, names = _by_name(*found[0], data, classes, f"{TRAIN}: {where}")
    return _Source(
        train, None if drawn else _by_name(*found[1], data, classes, f"{TEST}: {where}")[0], names
    )


def _by_name(
    listing: Listing,
    names: Sequence[str] | None,
    data: TorchvisionSpec | HuggingFaceSpec | TorchDataSpec,
    classes: Sequence[str],
    where: str,
) -> tuple[Listing, list[str]]:
    """The samples with the labels of the task's classes, and what the data call each class.

    Args:
        listing: samples with the labels of the data.
        names: names of the classes of the data, by label; None: its labels are those of the task.
        data: the spec, with its label map.
        classes: names of the task's classes.
        where: names the data in messages.
    """
    if names is None:
        return listing, _numbers(classes)
    if data.label_map is None:
        advice = (
            "Write these names in task.classes, or name a data.label_map: a YAML file with lines "
            "like `cat: [tabby, siamese]`, the names of the data for each class."
        )
        numbers = class_numbers(names, classes, where, advice, complete=where.startswith(TRAIN))
    else:
        of = mapped_labels(data.label_map, classes)
        if unknown := [name for name in names if name not in of]:
            raise ConfigError(f"{where}: {data.label_map} does not list its class {unknown[0]!r}.")
        numbers = [of[name] for name in names]
    called = [
        ", ".join(n for n, k in zip(names, numbers, strict=True) if k == number)
        for number in range(len(classes))
    ]
    return listing._replace(labels=np.array(numbers, np.int64)[listing.labels]), called


def _refuse_many_classes(*parts: Listing | None) -> None:
    """Refuse labels that no data set has, and no labels, before anything is counted by class."""
    if any(part is not None and not part.ids for part in parts):
        raise ConfigError("data: there is no sample in a split. Name another one, or fill it.")
    largest = max(int(part.labels.max()) for part in parts if part is not None)
    if largest >= MOST_CLASSES:
        raise ConfigError(
            f"data: a label is {largest}; allowed is 0 to {MOST_CLASSES - 1}. Labels are numbers "
            "of classes, without gaps."
        )


def _check_enough(every: Listing, wanted: dict[str, list[int]], classes: Sequence[str]) -> None:
    there = np.bincount(every.labels)
    asked = [sum(counts) for counts in zip(*wanted.values(), strict=True)] or [0] * len(there)
    for label, (have, count) in enumerate(zip(there, asked, strict=True)):
        if have == 0:
            raise ConfigError(
                f"data.train: no train image is of class {label}, though classes go up to "
                f"{len(there) - 1}. Number the classes from 0, without gaps."
            )
        if have <= count:
            raise ConfigError(
                f"data.{' and data.'.join(wanted)} need {count} images of class {label} and "
                f"leave none to train on: the class {_called(classes, label)}has {have} images. "
                "Each class gives equally many. Lower them, or add images of it."
            )


def _called(classes: Sequence[str], label: int) -> str:
    return f"{classes[label]!r} " if label < len(classes) else ""


def shifts_of(
    data: DataSpec, classes: Sequence[str], objective: Objective | UnsetType = UNSET
) -> dict[str, Shifted]:
    """The natural shifts, by the names of their splits.

    Args:
        data: the spec of the data.
        classes: names of the task's classes.
        objective: what the targets are; unset: one class.

    Raises:
        ConfigError: the data of a shift are missing or do not fit the task.
    """
    if objective is not UNSET and isinstance(data, TextSpec | CaptionsSpec):
        return {n: Shifted(pairs_in(file, data), None) for n, file in data.shifts.items()}
    if isinstance(data, TextSpec):
        return {n: Shifted(read_texts(f, data, classes), None) for n, f in data.shifts.items()}
    if isinstance(data, TorchDataSpec):
        from soupray.data.torch_sets import list_targets, list_torch

        if objective is not UNSET:
            own = {n: list_targets(data, n, classes, objective) for n in data.own_shifts}
        else:
            where = "data.shifts: {}".format
            own = {
                n: _by_name(*list_torch(data, n), data, classes, where(n))[0]
                for n in data.own_shifts
            }
        return {name: Shifted(samples, None) for name, samples in own.items()}
    folders = dict[str, int]()
    if isinstance(data, FolderSpec) and data.natural_shifts:
        folders = folder_labels(existing(data.train, TRAIN), classes, data, TRAIN)
    return {shift.split: list_shift(shift, classes, folders) for shift in data.natural_shifts}


def fingerprints(data: DataSpec) -> list[str]:
    """Digests of the current files of a data set. They are part of the cache's name.

    Raises:
        ConfigError: a folder or a shard is missing.
    """
    found = file_digests(data) if isinstance(data, IdxSpec) else []
    files = [s.label_map for s in data.natural_shifts]
    if isinstance(data, TextSpec | CaptionsSpec):
        files += data.files
    if isinstance(data, FolderSpec | TorchvisionSpec | HuggingFaceSpec | TorchDataSpec):
        files.append(data.label_map)
    if isinstance(data.held_out, HeldOutIds):
        files.append(data.held_out.ids)
    found += [_file_digest(path_of(file, "data")) for file in files if file is not None]
    if isinstance(data, CaptionsSpec):
        found += [_stats(image_files(data))]
    roots = [s.root for s in data.natural_shifts]
    if isinstance(data, WebDatasetSpec):
        patterns = [(data.train, TRAIN)]
        patterns += [(data.test, TEST)] if isinstance(data.test, str) else []
        found += [_stats([str(p) for pattern, f in patterns for p in shards(pattern, f)])]
    elif isinstance(data, FolderSpec):
        roots += [data.train] + ([data.test] if isinstance(data.test, str) else [])
    elif isinstance(data, TorchDataSpec):
        there = [Path(v) for v in data.args.values() if isinstance(v, str) and Path(v).exists()]
        found += [_file_digest(path) for path in there if path.is_file()]
        roots += [str(path) for path in there if path.is_dir()]
    elif isinstance(data, TorchvisionSpec | HuggingFaceSpec):
        roots.append(data.root if isinstance(data, TorchvisionSpec) else data.path)
    return found + [_tree(path_of(root, "data")) for root in roots]


def _file_digest(path: Path) -> str:
    # No error for a missing file here: the code that reads it has a better message.
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree(root: Path) -> str:
    """Digest of the paths, sizes and modification times of all files in `root`."""
    total = hashlib.sha256()
    if not root.is_dir():
        return ""
    try:
        for folder, files, _ in sorted(walked(root)):
            paths = [f"{folder}/{name}" for name in files]
            total.update(_stats(paths, len(str(root))).encode())
    except OSError as error:
        raise ConfigError(f"data: {error.filename}: {error.strerror}.") from error
    return total.hexdigest()


def _stats(paths: Sequence[str], prefix: int = 0) -> str:
    """Digest of path, size and modification time. A path loses its first `prefix` characters."""
    total = hashlib.sha256()
    for path in paths:
        try:
            seen = os.stat(path)  # noqa: PTH116 - faster than pathlib, for a million files
            about = f"{seen.st_size}\0{seen.st_mtime_ns}"
        except OSError as error:  # a link to nothing
            about = str(error.errno)
        except ValueError:  # a NUL: the code that reads the file refuses it
            about = "NUL"
        total.update(os.fsencode(path[prefix:]) + f"\0{about}\n".encode())
    return total.hexdigest()
