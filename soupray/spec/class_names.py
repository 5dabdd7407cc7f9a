"""Class names and prompt templates: from a known set, a file, or the folders of the data.

They are resolved once, when a spec is read. A spec in memory, in the store or in a worker contains
the names themselves, so it does not depend on a file that may change or be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soupray.core.errors import ConfigError
from soupray.spec.files import path_of
from soupray.spec.libraries import imagenet
from soupray.spec.yaml import read_yaml

CLASS_SETS = ("imagenet",)
TEMPLATE_SETS = ("imagenet", "imagenet_simple")


def resolved(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the plain data of a spec with class names and templates instead of references to them.

    Invalid values are not changed; the checks of the spec report them.

    Args:
        data: the plain data of a spec.
        source: names the spec in messages.

    Raises:
        ConfigError: an unknown name, or a file or folder that cannot be read.
    """
    task = data.get("task")
    if not isinstance(task, dict):
        return data
    task = dict(task)
    try:
        if isinstance(task.get("classes"), str):
            task["classes"] = _class_names(task["classes"])
        if isinstance(task.get("templates"), str):
            task["templates"] = _templates(task["templates"])
        if "classes" not in task and (names := _names_of_folders(data.get("data"))):
            task["classes"] = names
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return {**data, "task": task}


def _class_names(given: str) -> list[Any]:
    if given in CLASS_SETS:
        return list(imagenet().IMAGENET_CLASSNAMES)
    return _listed("task.classes", given, CLASS_SETS)


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether these are open_clip's names of ImageNet's classes, in their order."""
    return len(classes) == 1000 and list(classes) == list(imagenet().IMAGENET_CLASSNAMES)


def _templates(given: str) -> list[Any]:
    if given in TEMPLATE_SETS:
        kind = "SIMPLE" if given == "imagenet_simple" else "OPENAI"
        sentences = getattr(imagenet(), f"{kind}_IMAGENET_TEMPLATES")
        return [sentence("{}") for sentence in sentences]
    return _listed("task.templates", given, TEMPLATE_SETS)


def _listed(field: str, given: str, known: tuple[str, ...]) -> list[Any]:
    path = path_of(given, field)
    if not path.is_file():
        raise ConfigError(
            f"{field}: {given!r} is neither a known set ({', '.join(known)}) nor a file. "
            "Write one of these, a list, or the path of a YAML file with a list."
        )
    names = read_yaml(path)
    if not isinstance(names, list):
        raise ConfigError(f"{field}: {path} holds no list. Write one entry a line, after a dash.")
    return names


def _names_of_folders(data: Any) -> list[str]:
    """Return the class names that the data give, in the order of their labels; empty if none."""
    if not isinstance(data, dict) or data.get("kind") != "folder":
        return []
    if isinstance(data.get("label_map"), str):
        return list(read_label_map(data["label_map"]))
    if not isinstance(data.get("train"), str):
        return []
    root = path_of(data["train"], "data.train")
    if not root.is_dir():
        raise ConfigError(
            "task.classes is left out, which means the names of the folders in data.train, but "
            f"there is no folder {root}. Name the classes, or mount the data."
        )
    return class_folders(root)


def class_folders(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted as text, as torchvision orders labels.

    Raises:
        ConfigError: `root` cannot be listed, or the name of a folder in it cannot name a class.
    """
    try:
        found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{root}: cannot be listed: {error.strerror}.") from error
    for name in found:
        if not name.isprintable():  # also a name that is not UTF-8
            raise ConfigError(
                f"{root}: the folder {name!r} cannot name a class: its name is not printable text "
                "in UTF-8. Rename it."
            )
    return found


def read_label_map(path: str) -> dict[str, tuple[str, ...]]:
    """Return the folders of each class, from a YAML file with lines like `cat: [tabby, siamese]`.

    Raises:
        ConfigError: the file cannot be read, or has another form.
    """
    found = read_yaml(path_of(path, "label_map"))
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path}: a label map has a line a class, like `cat: [tabby, siamese]`.")
    folders: dict[str, tuple[str, ...]] = {}
    for name, listed in found.items():
        entries = listed if isinstance(listed, list) else [listed]
        if not entries or not all(isinstance(e, str | int) for e in entries):
            raise ConfigError(
                f"{path}: {name}: {listed!r} names no folders; write a folder, or a list of them."
            )
        folders[str(name)] = tuple(map(str, entries))
    return folders
