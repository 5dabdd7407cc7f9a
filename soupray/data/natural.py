"""Natural distribution shifts: other data sets of the same classes, with their label maps.

imagenet_v2      arXiv:1902.10811: folders 0 to 999 are class numbers, in the order of the numbers
imagenet_r       arXiv:2006.16241: synset folders of 200 classes
imagenet_a       arXiv:1907.07174: synset folders of 200 other classes
imagenet_sketch  arXiv:1905.13549: synset folders of all 1000 classes
objectnet        113 of its 313 classes are in ImageNet; some of them are two classes there. Its own
                 mappings say which. Images have a red border of two pixels
cifar10_1        arXiv:1806.00451: arrays, with the labels of CIFAR-10
stl10            nine classes of CIFAR-10, in another order; its class monkey is left out
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soupray.core.errors import ConfigError
from soupray.data.folders import existing, list_folders
from soupray.data.splits import Listing, Part, Raw, listing, read_array
from soupray.spec.class_names import class_folders, read_label_map
from soupray.spec.class_numbers import (
    class_numbers,
    imagenet_list,
    number_of,
    numbers_by_name,
)
from soupray.spec.data import NaturalShift
from soupray.spec.files import MOST_TEXT, read_regular

LabelMap = tuple[tuple[int, ...], ...]
"""For each class of a split, the model's classes that mean it."""
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""The classes of CIFAR-10, in the order of its labels."""
BORDER = 2
STL_SIDE = 96
STL_TO_CIFAR = (0, 2, 1, 3, 4, 5, 7, None, 8, 9)
"""The class of CIFAR-10 for each class of STL-10: airplane, bird, car, cat, deer, dog, horse,
monkey, ship, truck."""


class Shifted(NamedTuple):
    """The samples of a shift.

    Attributes:
        samples: labelled with the classes of the shift.
        label_map: the model's classes for each class of the shift. None: the classes are equal.
    """

    samples: Part
    label_map: LabelMap | None


def list_shift(
    shift: NaturalShift, classes: Sequence[str], folders: Mapping[str, int] | None = None
) -> Shifted:
    """The samples of a natural shift.

    Args:
        shift: its kind and its folder.
        classes: names of the task's classes.
        folders: the number of the class of each folder of train images. None: the train images are
            not in folders.

    Raises:
        ConfigError: the data are missing, are of another kind, or have classes that the model does
            not have.
    """
    field = f"data.shifts: {shift.split}"
    root = existing(shift.root, field)
    known = {**(folders or {}), **numbers_by_name(classes)}
    if shift.kind == "folder":
        meaning = _meaning_of_folders(root, shift, classes, known, field)
        return _mapped(root, meaning, len(classes), field)
    suite, names = "ImageNet", imagenet_list("synsets")
    if shift.kind in ("cifar10_1", "stl10"):
        suite, names = "CIFAR-10", list(CIFAR10)
    order = _order(names, classes, known, f"{field}: {shift.kind} is a shift of {suite}")
    match shift.kind:
        case "cifar10_1":
            return _ordered(_cifar10_1(root, field), order)
        case "stl10":
            return _stl10(root, order, field)
        case "objectnet":
            return _objectnet(root, order, field)
        case "imagenet_v2":
            return _ordered(_complete(root, [str(i) for i in range(1000)], field), order)
        case "imagenet_sketch":
            return _ordered(_complete(root, names, field), order)
        case _:
            some = imagenet_list(f"{shift.kind.removeprefix('imagenet_')}_synsets")
            label_map = tuple((order[names.index(s)],) for s in some)
            return Shifted(_complete(root, some, field), label_map)


def _order(
    names: Sequence[str], classes: Sequence[str], known: Mapping[str, int], what: str
) -> list[int]:
    """The task's class for each class of a suite. The task has these classes and no others."""
    numbers = [number_of(name, known) for name in names]
    order = [n for n in numbers if n is not None]
    if sorted(order) == list(range(len(names))) == list(range(len(classes))):
        return order
    lost = [name for name, n in zip(names, numbers, strict=True) if n is None]
    has = f"has no class {lost[0]!r}" if lost else f"has {len(classes)} classes"
    raise ConfigError(
        f"{what}'s {len(names)} classes, but the task {has}. Name all of them, in any "
        "order (for ImageNet: classes: imagenet, or synset ids, which a data.label_map may give "
        "to names of your own). For other classes use kind: folder, with a label map."
    )


def _ordered(samples: Listing, order: Sequence[int]) -> Shifted:
    """Samples of the task's classes; `order` has the task's class for each class of the suite."""
    return Shifted(samples._replace(labels=np.array(order, np.int64)[samples.labels]), None)


def _complete(root: Path, folders: list[str], field: str) -> Listing:
    """Images in `folders`, labelled by the order of the folders. All folders must be there.

    With fewer classes, a model would have fewer wrong classes to choose, and a better score.
    """
    there = set(class_folders(root))
    missing = [name for name in folders if name not in there]
    if missing:
        raise ConfigError(
            f"{field}: {root} lacks {len(missing)} of the {len(folders)} class folders, like "
            f"{missing[0]!r}. Name the folder that contains all class folders."
        )
    return list_folders(root, {name: k for k, name in enumerate(folders)}, field)


def _meaning_of_folders(
    root: Path, shift: NaturalShift, classes: Sequence[str], known: Mapping[str, int], field: str
) -> dict[str, tuple[int, ...]]:
    """The model's classes of each folder: by the folder's name, or by a label map.

    Args:
        root: the folder of the shift.
        shift: its label map, if there is one.
        classes: names of the task's classes.
        known: the number of each class, by its names and by the names of its train folders.
        field: the field of the spec that error messages name.
    """
    if shift.label_map is not None:
        meaning = _meaning(read_label_map(shift.label_map), known, shift.label_map)
    else:
        there = class_folders(root)
        numbers = [number_of(name, known) for name in there]
        if None in numbers:  # the message has both lists; numbers as names are understood too
            advice = "Write a label_map: a YAML file with the folders of each class."
            numbers = [*class_numbers(there, classes, f"{field}: {root}", advice, complete=False)]
        meaning = {name: (k,) for name, k in zip(there, numbers, strict=True) if k is not None}
    if not meaning:
        raise ConfigError(f"{field}: {root} has no folders.")
    if missing := sorted(set(meaning) - set(class_folders(root))):
        raise ConfigError(
            f"{field}: {root} has no folder {missing[0]!r}, which the label map names."
        )
    return meaning


def _meaning(
    folders: Mapping[str, Sequence[str]], numbers: Mapping[str, int], path: str
) -> dict[str, tuple[int, ...]]:
    """The model's classes of each folder that a label map lists."""
    meaning: dict[str, tuple[int, ...]] = {}
    for name, listed in folders.items():
        number = number_of(name, numbers)
        if number is None:
            some = ", ".join(list(numbers)[:5])
            raise ConfigError(
                f"{path}: {name!r} is not a class of the task. Its classes are {some} ..."
            )
        for folder in listed:
            meaning[folder] = tuple(sorted({*meaning.get(folder, ()), number}))
    return meaning


def _mapped(root: Path, meaning: Mapping[str, tuple[int, ...]], total: int, field: str) -> Shifted:
    """The images of all folders. Folders with the same meaning are one class of the shift.

    No label map is needed if the classes are all classes of the model, in their order.
    """
    label_map = tuple(sorted(set(meaning.values())))
    labels = {folder: label_map.index(group) for folder, group in meaning.items()}
    plain = label_map == tuple((k,) for k in range(total))
    return Shifted(list_folders(root, labels, field), None if plain else label_map)


def _objectnet(root: Path, order: Sequence[int], field: str) -> Shifted:
    """ObjectNet, as its README describes it: ROOT/images/FOLDER and four files in ROOT/mappings."""
    label_of = _json(root, "folder_to_objectnet_label.json", field)
    names_of = _json(root, "objectnet_to_imagenet_1k.json", field)
    line_of = _json(root, "pytorch_to_imagenet_2012_id.json", field)
    lines = _mapping_text(root, "imagenet_to_label_2012_v2", field).splitlines()
    try:
        number = {lines[int(line)].strip(): order[int(k)] for k, line in line_of.items()}
        meaning = {
            folder: tuple(sorted(number[name.strip()] for name in names_of[label].split(";")))
            for folder, label in label_of.items()
            if label in names_of
        }
    except KeyError as error:
        raise ConfigError(
            f"{field}: {root}/mappings: {error} is not a class of ImageNet."
        ) from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{field}: {root}/mappings: not ObjectNet's own files: {error}. Fetch them again."
        ) from error
    images = existing(str(root / "images"), field)
    missing = sorted(set(meaning) - set(class_folders(images)))
    if missing:
        raise ConfigError(f"{field}: {images} lacks {len(missing)} folders, like {missing[0]!r}.")
    shifted = _mapped(images, meaning, 1000, field)
    assert isinstance(shifted.samples, Listing)
    return shifted._replace(samples=shifted.samples._replace(border=BORDER))


def _json(root: Path, name: str, field: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_mapping_text(root, name, field))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{field}: {root}/mappings/{name}: not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{field}: {root}/mappings/{name}: not a mapping. Fetch it again.")
    return found


def _mapping_text(root: Path, name: str, field: str) -> str:
    try:
        return read_regular(root / "mappings" / name, MOST_TEXT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{field}: {root}/mappings/{name} cannot be read: {error}. `root` must be the folder "
            "objectnet-1.0, with the folders images and mappings in it."
        ) from error


def _cifar10_1(root: Path, field: str) -> Listing:
    """CIFAR-10.1, version 6 (2000 images) or version 4: uint8 [N, 32, 32, 3], and labels [N]."""
    for version in ("v6", "v4"):
        paths = [root / f"cifar10.1_{version}_{part}.npy" for part in ("data", "labels")]
        if all(path.is_file() for path in paths):
            images, labels = (read_array(path, field) for path in paths)
            break
    else:
        raise ConfigError(f"{field}: {root} has no cifar10.1_v6_data.npy and _labels.npy.")
    if labels.ndim != 1 or not np.isin(labels, range(10)).all():
        raise ConfigError(f"{field}: {paths[1]}: not a list of labels 0 to 9. Fetch it again.")
    if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8:
        raise ConfigError(
            f"{field}: {root}: images are {images.dtype} {list(images.shape)}, with {len(labels)} "
            "labels. CIFAR-10.1 has uint8 images [N, 32, 32, 3] and N labels."
        )

    def read(row: int) -> Raw:
        return np.ascontiguousarray(images[row])

    return listing([f"{version}/{i}" for i in range(len(labels))], np.asarray(labels), read)


def _stl10(root: Path, order: Sequence[int], field: str) -> Shifted:
    """STL-10. test_X.bin has [N, 3, 96, 96], columns before rows; test_y.bin has labels 1 to 10."""
    folder = root / "stl10_binary" if (root / "stl10_binary").is_dir() else root
    pixels, labels = (_bytes(folder / f"test_{part}.bin", field) for part in ("X", "y"))
    each = 3 * STL_SIDE * STL_SIDE
    if len(pixels) != len(labels) * each or not np.isin(labels, range(1, 11)).all():
        raise ConfigError(
            f"{field}: {folder}: test_X.bin has {len(pixels)} bytes and test_y.bin {len(labels)} "
            f"labels. An image has {each} bytes, and labels are 1 to 10. Fetch both files again."
        )
    images = pixels.reshape(-1, 3, STL_SIDE, STL_SIDE)

    def read(row: int) -> Raw:
        return np.ascontiguousarray(images[row].transpose(2, 1, 0))

    to_task = [None if c is None else order[c] for c in STL_TO_CIFAR]
    label_map = tuple(sorted((k,) for k in to_task if k is not None))
    rows = np.flatnonzero(labels != 1 + STL_TO_CIFAR.index(None))
    numbers = [to_task[label - 1] for label in labels[rows].tolist()]
    meant = [label_map.index((k,)) for k in numbers if k is not None]
    every = listing([f"test/{i}" for i in range(len(labels))], np.zeros(len(labels)), read)
    return Shifted(every.take(rows)._replace(labels=np.array(meant, np.int64)), label_map)


def _bytes(path: Path, field: str) -> Any:
    if not path.is_file() or not path.stat().st_size:
        raise ConfigError(f"{field}: there is no {path}, or nothing in it. Fetch it again.")
    return np.memmap(path, np.uint8, "r")
