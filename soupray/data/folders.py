"""Image data sets with a folder for each class, in torchvision's layout: ROOT/CLASS/.../IMAGE."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.data.splits import Listing, Raw, listing
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.class_numbers import class_numbers
from soupray.spec.data import FolderSpec

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The endings of image files, as in torchvision, in lower case."""


def list_part(
    root: str, classes: Sequence[str], spec: FolderSpec, field: str
) -> tuple[Listing, list[str]]:
    """The images in a folder with a folder for each class. Test images may lack classes.

    Args:
        root: the folder.
        classes: names of the task's classes, with which the names of the folders are compared.
        spec: of the data.
        field: the field of the spec that error messages name.

    Returns:
        The images, and for each class the names of its folders as text.

    Raises:
        ConfigError: a folder has no images or is not a class, or the folder of a class is missing.
    """
    path = existing(root, field)
    labels = folder_labels(path, classes, spec, field)
    names = [
        ", ".join(n for n, k in labels.items() if k == number) for number in range(len(classes))
    ]
    return list_folders(path, labels, field), names


def folder_labels(
    root: Path, classes: Sequence[str], spec: FolderSpec, field: str
) -> dict[str, int]:
    """The number of the class of each folder in `root`, by the name of the folder.

    Args:
        root: the folder that has the folders in it.
        classes: names of the task's classes.
        spec: of the data. With its label map, folders that it does not list are left out.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: a folder is not a class, or the folder of a class is missing.
    """
    there = class_folders(root)
    source, train = f"{field}: {root}", field == "data.train"
    if spec.label_map is None:
        return dict(zip(there, class_numbers(there, classes, source, _ADVICE, train), strict=True))
    listed = mapped_labels(spec.label_map, classes)
    missing = [name for name in listed if name not in there]
    if missing and (train or len(missing) == len(listed)):
        more = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise ConfigError(f"{source} has no folder {missing[0]!r}{more}.")
    return {name: listed[name] for name in there if name in listed}


_ADVICE = (
    "Write the names of the folders in task.classes, or leave task.classes out (it then has these "
    "names), or name a data.label_map: a YAML file with lines like `cat: [tabby, siamese]`."
)


def mapped_labels(path: str, classes: Sequence[str]) -> dict[str, int]:
    """The number of the class of each folder that a label map of training data lists.

    Args:
        path: the label map.
        classes: names of the task's classes.

    Raises:
        ConfigError: the map names other classes, or a folder under two classes.
    """
    folders = read_label_map(path)
    advice = "Write the same names in the label map and in task.classes."
    numbers = class_numbers(list(folders), classes, f"data.label_map: {path}", advice)
    labels: dict[str, int] = {}
    for number, (name, listed) in zip(numbers, folders.items(), strict=True):
        for folder in listed:
            if labels.setdefault(folder, number) != number:
                raise ConfigError(
                    f"{path}: folder {folder} is listed under {name} and another class. "
                    "Train images have exactly one class."
                )
    return labels


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
