"""Decoded data: one memory-mapped uint8 cache a node, built once, shared by all processes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from soupray.data.digits import split_digits
from soupray.data.idx import file_digests, split_idx
from soupray.data.shifts import apply_shift
from soupray.data.splits import Images, Labels, Samples
from soupray.data.text import split_texts, text_digests
from soupray.errors import ConfigError, EvaluationError
from soupray.records import Role, Split, decode, digest, encode
from soupray.spec import SweepSpec
from soupray.subject import IdxSpec, TextSpec

DATA_VERSION = "1"
"""Of the code that decodes and shifts; part of the cache's name."""


class Data:
    """The splits of a sweep, as memory maps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.splits: tuple[Split, ...] = decode(
            (folder / "splits.json").read_bytes(), tuple[Split, ...]
        )

    def split(self, name: str) -> Split:
        """The split called `name`."""
        return next(s for s in self.splits if s.name == name)

    def samples(self, split: Split) -> tuple[Images, Labels]:
        """(images [N, C, H, W] uint8, labels [N] int64), read from disk as they are used.

        Raises:
            EvaluationError: this node's data are not those of `split`.
        """
        mine = self.split(split.name)
        if mine.digest != split.digest:
            raise EvaluationError(
                f"split {split.name}: the data here have digest {mine.digest[:12]}, the sweep was "
                f"made with {split.digest[:12]}. The data or the code that decodes them changed: "
                "restore them, or delete bases/ in the store and sweep again."
            )
        images = np.load(self._folder / f"{split.name}.images.npy", mmap_mode="r")
        labels = np.load(self._folder / f"{split.name}.labels.npy", mmap_mode="r")
        return images, labels


def open_data(spec: SweepSpec, cache: Path) -> Data:
    """The data of `spec`, decoded into `cache` by whoever comes first.

    Raises:
        ConfigError: the spec asks for more than there is; see the data set's module.
    """
    source = [spec.data.model_dump(mode="json"), spec.task.classes, spec.seed]
    files = file_digests(spec.data) if isinstance(spec.data, IdxSpec) else []
    if isinstance(spec.data, TextSpec):
        files = text_digests(spec.data)
    key = digest([DATA_VERSION, *source, *files])
    folder = cache / key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _build(spec, part)
            part.rename(folder)
    return Data(folder)


def _build(spec: SweepSpec, folder: Path) -> None:
    parts = _parts(spec)
    _check_classes(parts, spec)
    splits = []
    for name, samples in parts.items():
        splits.append(_split(spec, name, _ROLES.get(name, "shift"), samples))
        _write(folder, name, samples)
    test = parts["test"]
    for shift in () if isinstance(spec.data, TextSpec) else spec.data.shifts:
        seed = int(digest([spec.seed, shift])[:15], 16)
        shifted = test._replace(images=apply_shift(shift, test.images, seed))
        splits.append(_split(spec, shift, "shift", shifted, f"{shift}/{seed}"))
        _write(folder, shift, shifted)
    (folder / "splits.json").write_bytes(encode(splits))


_ROLES: dict[str, Role] = {
    "train": "train",
    "held_out": "held_out",
    "rank": "rank",
    "test": "test",
}


def _parts(spec: SweepSpec) -> dict[str, Samples]:
    """The data set's samples by split; shifts only where they have samples of their own."""
    data = spec.data
    if isinstance(data, TextSpec):
        return split_texts(data, spec.task.classes, spec.seed)
    return (
        split_idx(data, spec.seed) if isinstance(data, IdxSpec) else split_digits(data, spec.seed)
    )


def _check_classes(parts: dict[str, Samples], spec: SweepSpec) -> None:
    named = len(spec.task.classes)
    labels = max(int(part.labels.max()) for part in parts.values()) + 1
    if named != labels:
        raise ConfigError(
            f"task.classes has {named} names; data of kind {spec.data.kind} have {labels} "
            f"classes, labelled 0 to {labels - 1}. Name them all, in that order."
        )


def _split(spec: SweepSpec, name: str, role: Role, samples: Samples, corruption: str = "") -> Split:
    return Split(
        name=name,
        role=role,
        digest=_digest(samples, spec.task.classes, corruption),
        size=len(samples.labels),
        classes=len(spec.task.classes),
    )


def _write(folder: Path, name: str, samples: Samples) -> None:
    np.save(folder / f"{name}.images.npy", samples.images)
    np.save(folder / f"{name}.labels.npy", samples.labels)


def _digest(samples: Samples, classes: Sequence[str], corruption: str) -> str:
    """Over (id, content, label) in order, the label map, and the corruption with its seed."""
    rows = [
        (sample_id, hashlib.sha256(image.tobytes()).hexdigest(), int(label))
        for sample_id, image, label in zip(*samples, strict=True)
    ]
    return digest([rows, list(classes), corruption])
