"""Image data sets with a folder for each class, in torchvision's layout: ROOT/CLASS/.../IMAGE."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.data.splits import Listing, Raw, listing, shown_name
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.class_numbers import class_numbers
from soupray.spec.data import FolderSpec
from soupray.spec.files import path_of, read_regular

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The endings of image files, as in torchvision, in lower case."""

MOST_BYTES = 2**30
"""The largest image file: Pillow's limit of 89 million pixels, with 8 bytes each, takes fewer."""

MOST_FOLDERS = 1_000_000
"""The most folders of a class. Links to folders of links can make any number from a few."""

SHOWN = 5
"""Number of classes that a message lists."""


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

    The notes of the listing say which files are left out.

    Args:
        root: the folder that has the folders in it.
        labels: the label of each folder, by its name.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: a folder has no images, or cannot be listed.
    """
    ids: list[str] = []
    of: list[int] = []
    others: dict[str, Counter[str]] = {}
    for name in sorted(labels):
        found, others[name] = _images_in(root, name, field)
        if not found:
            there = f" but {_counted(others[name])}" if others[name] else ""
            raise ConfigError(
                f"{field}: the folder {root / name} has no images ({', '.join(EXTENSIONS)})"
                f"{there}. Fill it, or remove it."
            )
        ids += found
        of += [labels[name]] * len(found)

    def read(row: int) -> Raw:
        return read_regular(root / ids[row], MOST_BYTES)

    return listing(ids, of, read)._replace(notes=_notes(root, others, len(ids), field))


def _images_in(root: Path, name: str, field: str) -> tuple[list[str], Counter[str]]:
    """Paths relative to `root`, in the order of torchvision; and numbers of other files by kind."""
    skipped = len(str(root)) + 1
    found: list[str] = []
    others = Counter[str]()
    try:
        for folder, files, loops in sorted(walked(root / name)):
            others["links to a folder that contains them"] += len(loops)
            for file in files:
                if file.lower().endswith(EXTENSIONS):
                    found.append(f"{folder[skipped:]}/{file}")
                else:
                    others[Path(file).suffix.lower() or "without an ending"] += 1
    except OSError as error:
        raise ConfigError(f"{field}: {error.filename}: {error.strerror}.") from error
    return found, +others


def walked(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """All folders in `root`, itself first, also through links, but none within itself.

    Returns:
        (path, names of its files, names of its links to a folder that contains it) of each folder.
        The names are sorted. A file is whatever is no folder.

    Raises:
        OSError: a folder cannot be listed.
    """
    outside = [folder.stat() for folder in root.resolve().parents]
    waiting = [(str(root), frozenset((about.st_dev, about.st_ino) for about in outside))]
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        path, above = waiting.pop()
        about = os.stat(path)  # noqa: PTH116 - faster than pathlib, for many folders
        inside = above | {(about.st_dev, about.st_ino)}
        files, loops = list[str](), list[str]()
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not _is_folder(entry):
                    files.append(entry.name)
                elif _identity(entry) in inside:
                    loops.append(entry.name)
                else:
                    waiting.append((entry.path, inside))
        yield path, files, loops
    raise OSError(errno.EMLINK, f"more than {MOST_FOLDERS} folders, many by links", str(root))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    about = entry.stat()
    return about.st_dev, about.st_ino


def _notes(
    root: Path, others: Mapping[str, Counter[str]], read: int, field: str
) -> tuple[str, ...]:
    """What is left out of the folders of classes, and what lies beside them, in words."""
    notes = []
    if total := sum(counts.total() for counts in others.values()):
        most = sorted(others, key=lambda name: -others[name].total())
        shown = "; ".join(
            f"{shown_name(name)}: {_counted(others[name])}" for name in most[:SHOWN] if others[name]
        )
        more = " ..." if sum(map(bool, others.values())) > SHOWN else ""
        notes.append(
            f"{field}: {total} of {total + read} files in {root} are left out, because images end "
            f"in {', '.join(EXTENSIONS)}: {shown}{more}"
        )
    beside = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    loose = sorted(entry.name for entry in beside if not entry.is_dir())
    if loose:
        notes.append(
            f"{field}: {len(loose)} files in {root} are in no folder of a class and are left out, "
            f"like {shown_name(loose[0])}"
        )
    return tuple(notes)


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} {shown_name(kind)}" for kind, count in others.most_common())


def existing(path: str, field: str) -> Path:
    """The folder at `path`.

    Args:
        path: with `~` for the home folder.
        field: the field of the spec that error messages name.

    Raises:
        ConfigError: there is no such folder.
    """
    found = path_of(path, field)
    if not found.is_dir():
        raise ConfigError(f"{field}: there is no folder {found}. Mount it, or correct the path.")
    return found
