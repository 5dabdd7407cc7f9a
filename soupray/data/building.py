"""Builds the data cache of a node: arrays, labels, ids and records of all splits.

    <split>.images.npy   images, [N, C, H, W] uint8; texts, or images with captions, [N, L] uint8
    train.rows.npy       for a streamed train split, in place of its images: rows of the source
    <split>.labels.npy   [N] int64; of several labels [N, C] uint8, of numbers [N, D] float32, of
                         masks [N, P] uint8, a column for each pixel; of pairs [N, 2] int64
    <split>.ids.txt      the id of each sample on a line, as `held_out: {ids: FILE}` reads it
    splits.json          the records of the splits
    notes.json           what was left out, and why
    sizes.json           the size of each of these files, in bytes

The splits of a report are read first, then held-out data, then the train split. When a sample is
read, its content is compared with that of the samples before it, so that no sample is read twice.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET

from soupray.core.arrays import Indices, Labels
from soupray.core.errors import ConfigError
from soupray.core.records import PROXY, Role, Split, decode, digest, encode
from soupray.data.captions import by_content, write_captioned
from soupray.data.decoding import Look
from soupray.data.digits import SIDE
from soupray.data.natural import LabelMap, Shifted
from soupray.data.opening import MAX_PIXELS
from soupray.data.pairs import check_gallery, queries_of
from soupray.data.reading import Content, check_images, keep_rows, new_array, sha256, write_images
from soupray.data.shifts import SHIFTS, Shift, own_shift, shifted_parts
from soupray.data.splits import Part, Samples, shown_name
from soupray.spec.data import DigitsSpec, ImagesSpec
from soupray.spec.objective import MOVING
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import CaptionsSpec
from soupray.spec.task import TransformersSpec

SIZES = "sizes.json"

SHOWN = 5
"""Number of images or pairs that a message lists."""


class Written(NamedTuple):
    """The samples of a split in the cache, in order."""

    ids: list[str]
    labels: Labels
    contents: list[Content]


def build(
    spec: SweepSpec, folder: Path, parts: Mapping[str, Part], natural: Mapping[str, Shifted]
) -> None:
    """Write all files of the cache.

    Args:
        spec: of the sweep.
        folder: where the files go.
        parts: the samples of train, held_out, rank and test.
        natural: the natural shifts, by the name of their split.

    Raises:
        ConfigError: an image cannot be read, or a sample is in two splits, and the spec does not
            say that such samples are left out. Or no sample of a split is left.
    """
    builder = _Builder(spec, folder, parts)
    builder.notes += left_out([*parts.values(), *(shifted.samples for shifted in natural.values())])
    for name, shifted in natural.items():
        builder.add(name, shifted.samples, shifted.label_map)
    for name in ("test", "rank", "held_out", "train"):
        if name in parts:
            builder.add(name, parts[name])
    for name in spec.data.corruptions:
        builder.corrupt(name, SHIFTS[name])
    for own in spec.data.functions:
        builder.corrupt(own.split, own_shift(own), own.code)
    for name in spec.data.proxy_shifts:
        builder.corrupt(PROXY + name, SHIFTS[name], role="proxy")
    made = [*spec.data.corruptions, *(own.split for own in spec.data.functions)]
    names = [*parts, *made, *natural, *(PROXY + name for name in spec.data.proxy_shifts)]
    order = {name: place for place, name in enumerate(names)}
    splits = sorted(builder.splits, key=lambda s: order[s.name])
    (folder / "splits.json").write_bytes(encode(splits))
    (folder / "notes.json").write_bytes(encode(builder.notes))
    (folder / SIZES).write_bytes(encode({f.name: f.stat().st_size for f in folder.iterdir()}))


def look_of(spec: SweepSpec, side: int, train: bool) -> Look:
    """The form of the images of a split, with the preprocessing of the spec's checkpoint.

    Args:
        spec: of the sweep.
        side: height and width in pixels.
        train: train images keep their border, from which augmentation cuts.
    """
    task, channels = spec.task, getattr(spec.data, "channels", 3)
    look = Look(side, channels, most=getattr(spec.data, "max_pixels", None) or MAX_PIXELS)
    if isinstance(task, TransformersSpec):
        return look
    crop = 1.0 if train else task.crop
    return look._replace(interpolation=task.interpolation, resize=task.resize, crop=crop)


def look_of_evaluation(spec: SweepSpec, shape: tuple[int, ...] | None) -> Look | None:
    """The form of the images of test, to which new images are brought.

    Args:
        spec: of the sweep.
        shape: [C, H, W] of an image of test, if the basis says it.

    Returns:
        The form; None if neither the spec nor the basis says it, or the samples are texts.
    """
    if isinstance(spec.data, ImagesSpec | CaptionsSpec):
        return look_of(spec, spec.data.size, train=False)
    if isinstance(spec.data, DigitsSpec):
        shape = (1, SIDE, SIDE)
    if shape is None or len(shape) != 3:
        return None
    return look_of(spec, shape[1], train=False)._replace(channels=shape[0])


def left_out(parts: Iterable[Part]) -> list[str]:
    """What of the sources of some splits is in none of them, and why; each note once."""
    return list(dict.fromkeys(note for part in parts for note in getattr(part, "notes", ())))


def is_whole(folder: Path) -> bool:
    """Whether `folder` has every file of `build`, with the size that `build` wrote."""
    try:
        sizes = decode((folder / SIZES).read_bytes(), dict[str, int])
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):  # a file is missing, or the sizes are cut short
        return False


class _Builder:
    """Writes one split after the other, and remembers the contents of the earlier ones."""

    def __init__(self, spec: SweepSpec, folder: Path, parts: Mapping[str, Part]) -> None:
        self._spec, self._folder = spec, folder
        self._test = parts["test"]
        self._seen: dict[str, str] = {}
        self._written: dict[str, Written] = {}
        self.splits: list[Split] = []
        self.notes: list[str] = []

    def add(self, name: str, part: Part, label_map: LabelMap | None = None) -> None:
        """Write a split, without broken images and without samples of an earlier split."""
        contents = self._contents(name, part)
        broken = [row for row, content in enumerate(contents) if content.problem]
        if broken:
            self._refuse_broken(name, part, contents, broken)
        self._note_done(name, part, contents)
        dropped = set(broken)
        if name in ("held_out", "train"):
            dropped |= self._overlapping(name, part, contents)
        for sample_id, content in zip(part.ids, contents, strict=True):
            if name != "train" and not content.problem:
                self._seen[content.source] = f"{name} {sample_id}"
        kept = np.array([row for row in range(len(contents)) if row not in dropped], np.int64)
        if len(kept) == 0:
            raise ConfigError(f"data: no sample of the {name} split is left.")
        self._keep(name, kept, len(contents))
        labels = part.labels
        if isinstance(self._spec.data, CaptionsSpec):
            labels = by_content(labels, contents)
        written = Written([part.ids[i] for i in kept], labels[kept], [contents[i] for i in kept])
        self._record(name, _ROLES.get(name, "shift"), written, label_map)

    def _contents(self, name: str, part: Part) -> list[Content]:
        path = self._images(name)
        if isinstance(part, Samples):
            np.save(path, part.images)
            if self._spec.objective == "retrieval":
                asked = map(sha256, queries_of(part.images))  # what may be in one split only
                return [Content(sha256(r), a) for r, a in zip(_trimmed(part), asked, strict=True)]
            texts = part.images.ndim == 2  # the number of padding zeros differs between files
            shas = list(map(sha256, _trimmed(part) if texts else part.images))
            return [Content(sha, sha) for sha in shas]
        look = self._look(train=name == "train")
        if self._streams(name):
            return check_images(part, look)
        if part.captions:
            return write_captioned(part, look, path)
        return write_images(part, look, path)

    def _keep(self, name: str, kept: Indices, total: int) -> None:
        if self._streams(name):
            np.save(self._folder / f"{name}.rows.npy", kept)
        elif len(kept) < total:
            keep_rows(self._images(name), kept)

    def _streams(self, name: str) -> bool:
        data = self._spec.data
        if not isinstance(data, ImagesSpec):
            return False
        return name == "train" and data.keep == "stream"

    def _look(self, train: bool) -> Look:
        data = self._spec.data
        if isinstance(data, CaptionsSpec):
            return look_of(self._spec, data.size, train=False)
        if isinstance(data, ImagesSpec):
            return look_of(self._spec, data.side_of_train if train else data.size, train)
        # natural shifts get the shape of the test images
        assert isinstance(self._test, Samples)
        channels, side = self._test.images.shape[1:3]
        return look_of(self._spec, side, train)._replace(channels=channels)

    def _refuse_broken(
        self, name: str, part: Part, contents: list[Content], broken: list[int]
    ) -> None:
        shown = "; ".join(
            f"{shown_name(part.ids[row])} ({contents[row].problem})" for row in broken[:SHOWN]
        )
        said = (
            f"{len(broken)} of {len(contents)} images of the {name} split cannot be read: {shown}"
        )
        said += " ..." if len(broken) > SHOWN else ""
        if getattr(self._spec.data, "on_error", "fail") == "fail":
            raise ConfigError(f"{said}. Replace them, or write data.on_error: skip.")
        self.notes.append(f"{said}; they are left out")

    def _note_done(self, name: str, part: Part, contents: list[Content]) -> None:
        """Say how many images were changed when they were opened, and how."""
        of = defaultdict[str, list[str]](list)
        for sample_id, content in zip(part.ids, contents, strict=True):
            for how in content.done:
                of[how].append(sample_id)
        for how, ids in sorted(of.items()):
            shown = ", ".join(map(shown_name, ids[:SHOWN])) + (" ..." if len(ids) > SHOWN else "")
            self.notes.append(
                f"{len(ids)} of {len(contents)} images of the {name} split: {how} ({shown})"
            )

    def _overlapping(self, name: str, part: Part, contents: list[Content]) -> set[int]:
        """Rows whose content is also in an earlier split."""
        rows = [row for row, content in enumerate(contents) if content.source in self._seen]
        if not rows:
            return set()
        pairs = [f"{part.ids[row]} = {self._seen[contents[row].source]}" for row in rows]
        what = "texts" if isinstance(part, Samples) and part.images.ndim == 2 else "images"
        said = f"{len(rows)} of {len(contents)} {what} of the {name} split are in another split too"
        said += f": {'; '.join(pairs[:SHOWN])}{' ...' if len(rows) > SHOWN else ''}"
        if self._spec.data.overlap == "fail":
            raise ConfigError(f"{said}. Remove them, or write data.overlap: drop.")
        self.notes.append(f"{said}; they are left out of {name}")
        return set(rows)

    def corrupt(self, name: str, shift: Shift, code: str = "", role: Role = "shift") -> None:
        """Write a shifted copy of the test split, or of the held-out split as a proxy shift.

        `code` is the digest of a function of the user.
        """
        source = "held_out" if role == "proxy" else "test"
        seed = int(digest([self._spec.seed, name])[:15], 16)
        before = np.load(self._images(source), mmap_mode="r")
        path, at, contents = self._images(name), 0, list[Content]()
        target = new_array(path, before.shape)
        for images in shifted_parts(shift, before, seed):
            target[at : at + len(images)] = images
            at += len(images)
            contents += [Content(sha256(image), "") for image in images]
        written = self._written[source]._replace(contents=contents)
        if name.removeprefix(PROXY) in MOVING and self._spec.objective == "segmentation":
            masks = self._moved(written.labels, before.shape, shift, seed)
            written = written._replace(labels=masks)
        about = f"{name}/{seed}/{code}" if code else f"{name}/{seed}"
        self._record(name, role, written, None, about)

    def _moved(self, masks: Labels, shape: tuple[int, ...], shift: Shift, seed: int) -> Labels:
        """The masks after a corruption that moves pixels: it draws as it did for the images."""
        pictures = np.broadcast_to(masks.reshape(shape[0], 1, *shape[2:]) * np.uint8(255), shape)
        parts = [part[:, 0] > 127 for part in shifted_parts(shift, pictures, seed)]
        return np.concatenate(parts).reshape(masks.shape).astype(masks.dtype)

    def _record(
        self,
        name: str,
        role: Role,
        written: Written,
        label_map: LabelMap | None,
        corruption: str = "",
    ) -> None:
        classes = self._spec.task.classes
        about: list[object] = [list(classes), corruption]
        about += [label_map] if label_map is not None else []
        about += [self._spec.targets] if self._spec.targets is not UNSET else []
        about += [self._spec.own_metric] if self._spec.own_metric is not UNSET else []
        check_gallery(name, written.labels, self._spec.targets)
        np.save(self._folder / f"{name}.labels.npy", written.labels)
        (self._folder / f"{name}.ids.txt").write_bytes(
            "".join(f"{i}\n" for i in written.ids).encode()
        )
        self._written[name] = written._replace(contents=[])
        self.splits.append(
            Split(
                name=name,
                role=role,
                digest=_digest(written._replace(labels=self._plain(written.labels)), about),
                size=len(written.ids),
                classes=len(label_map) if label_map is not None else len(classes),
                label_map=label_map,
                objective=self._spec.targets,
                metric=self._spec.own_metric,
            )
        )

    def _plain(self, labels: Labels) -> Any:
        """Labels for a digest: of masks, which are large, each has its own."""
        if self._spec.objective == "segmentation":
            return np.array([sha256(mask) for mask in np.asarray(labels)])
        return labels

    def _images(self, name: str) -> Path:
        return self._folder / f"{name}.images.npy"


def _trimmed(part: Samples) -> list[Any]:
    """Texts as bytes, without the zeros that follow them."""
    return [np.trim_zeros(row, "b") for row in part.images]


_ROLES: dict[str, Role] = {
    "train": "train",
    "held_out": "held_out",
    "rank": "rank",
    "test": "test",
}


def _digest(written: Written, about: list[object]) -> str:
    """SHA-256 (hex) of the JSON [rows, *about].

    A row is (id, content, label) of a sample. `about` has the classes, the corruption with its
    seed, and the label map. The JSON is hashed row by row, so that a million rows are never in
    memory at once.
    """
    total = hashlib.sha256(b"[[")
    ids, labels, contents = written
    rows: Iterable[tuple[str, Content, int]] = zip(ids, contents, labels.tolist(), strict=True)
    for number, (sample_id, content, label) in enumerate(rows):
        total.update(b"," if number else b"")
        total.update(encode((sample_id, content.kept, label)))
    total.update(b"],")
    total.update(encode(about)[1:])
    return total.hexdigest()
