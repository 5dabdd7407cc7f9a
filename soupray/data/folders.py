"""Image data sets with a folder for each class, in torchvision's layout: ROOT/CLASS/.../IMAGE."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.data.splits import Listing, Raw, listing
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.data import FolderSpec

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The endings of image files, as in torchvision, in lower case."""


def train_folders(spec: FolderSpec) -> dict[str, int]:
    """The label of each folder of train images, by the folder's name.

    Raises:
        ConfigError: there is no such folder, it has no folders in it, or one belongs to two
            classes.
    """
    if spec.label_map is None:
        root = existing(spec.train, "data.train")
        return {name: label for label, name in enumerate(class_folders(root))}
    labels: dict[str, int] = {}
    for label, (name, folders) in enumerate(read_label_map(spec.label_map).items()):
        for folder in folders:
            if labels.setdefault(folder, label) != label:
                raise ConfigError(
                    f"{spec.label_map}: folder {folder} is listed under {name} and another class. "
                    "Train images have exactly one class."
                )
    return labels


def list_part(root: str, labels: Mapping[str, int], spec: FolderSpec, field: str) -> Listing:
    """The images in a folder with a folder for each class. Test images may lack classes.

    Args:
        root: the folder.
        labels: the label of each class's folder, by its name.
        spec: of the data.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: a folder has no images or is not a class, or the folder of a class is missing.
    """
    path = existing(root, field)
    there = class_folders(path)
    unknown = [name for name in there if name not in labels]
    if unknown and spec.label_map is None:
        raise ConfigError(
            f"{field}: {path} has {len(unknown)} folders that are not a class of the train "
            f"images, like {unknown[0]!r}. Classes are {_some(labels)}."
        )
    missing = [name for name in labels if name not in there]
    if missing and (field == "data.train" or len(missing) == len(labels)):
        raise ConfigError(
            f"{field}: {path} has no folder {missing[0]!r}"
            f"{f' ({len(missing)} are missing)' if len(missing) > 1 else ''}."
        )
    return list_folders(path, {n: k for n, k in labels.items() if n in there}, field)


def list_folders(root: Path, labels: Mapping[str, int], field: str) -> Listing:
    """The images in some folders of `root`, sorted by folder and name, with ids like CLASS/IMAGE.

    Args:
        root: the folder that has the folders in it.
        labels: the label of each folder, by its name.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: a folder has no images.
    """
    ids: list[str] = []
    of: list[int] = []
    for name in sorted(labels):
        found = _images_in(root, name)
        if not found:
            raise ConfigError(
                f"{field}: the folder {root / name} has no images ({', '.join(EXTENSIONS)}). "
                "Fill it, or remove it."
            )
        ids += found
        of += [labels[name]] * len(found)

    def read(row: int) -> Raw:
        return (root / ids[row]).read_bytes()

    return listing(ids, of, read)


def _images_in(root: Path, name: str) -> list[str]:
    """Paths relative to `root`, in the order of torchvision."""
    skipped = len(str(root)) + 1
    return [
        f"{folder[skipped:]}/{file}"
        for folder, _, files in sorted(os.walk(root / name, followlinks=True))
        for file in sorted(files)
        if file.lower().endswith(EXTENSIONS)
    ]


def existing(path: str, field: str) -> Path:
    """The folder at `path`.

    Args:
        path: with `~` for the home folder.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: there is no such folder.
    """
    found = Path(path).expanduser()
    if not found.is_dir():
        raise ConfigError(f"{field}: there is no folder {found}. Mount it, or correct the path.")
    return found


def _some(names: Sequence[str] | Mapping[str, int]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown} ... ({len(names)})" if len(names) > 5 else shown
