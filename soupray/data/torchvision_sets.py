"""Data sets of torchvision that are on disk."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from soupray.core.errors import ConfigError, one_line
from soupray.data.folders import MOST_BYTES
from soupray.data.opening import Unreadable
from soupray.data.splits import Listing, Raw, listing
from soupray.spec.data import TorchvisionSpec
from soupray.spec.files import path_of, read_regular

LABELS = ("targets", "labels", "_labels")
"""The attributes in which torchvision's classes have the labels."""


FILES = ("_image_files", "_images", "samples", "data")
"""The attributes in which torchvision's classes have the paths of image files. Those that keep
arrays have them in `data` too."""


def list_torchvision(spec: TorchvisionSpec, train: bool) -> tuple[Listing, list[str] | None]:
    """The train part or the test part of a data set. The id of a sample is its number.

    Image files are read as those of folders are: torchvision itself leaves out the orientation that
    a photo has in its EXIF, and lays transparent pixels on whatever colour they hide.

    Args:
        spec: the name of the data set, and its folder.
        train: the train part. False: the test part.

    Returns:
        The samples, and the names of the classes by label; None if torchvision does not name them.
        For ImageNet they are synset ids.

    Raises:
        ConfigError: torchvision has no such data set, or does not find it in the folder.
    """
    data = _open(spec, train)
    labels = next((getattr(data, name) for name in LABELS if hasattr(data, name)), None)
    if labels is None:
        raise ConfigError(
            f"data.name = {spec.name!r}: torchvision gives its labels only together with the "
            "images. Write the images to a folder for each class, and use kind: folder."
        )

    files = _files(data)
    if files is None and not _has_arrays(data):
        raise ConfigError(
            f"data.name = {spec.name!r}: torchvision does not say which files its images are in, "
            "so that soupray cannot see how they are to be read. Write the images to a folder for "
            "each class, and use kind: folder."
        )

    def read(row: int) -> Raw:
        if files is not None:
            return read_regular(files[row], MOST_BYTES)
        try:
            image = data[row][0]
        except Exception as error:  # Pillow's exceptions are of many types
            raise Unreadable(f"{type(error).__name__}: {one_line(error)}") from error
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))

    named = getattr(data, "wnids", None) or getattr(data, "classes", None)
    names = None if named is None else [str(name) for name in named]
    return listing([str(i) for i in range(len(data))], np.asarray(labels), read), names


def _files(data: Any) -> list[Path] | None:
    """The image file of each sample, or None if the data set does not list them."""
    for name in FILES:
        found = getattr(data, name, None)
        if isinstance(found, list) and len(found) == len(data):
            # With its label. LFWPairs has two images a sample, which are no sample of a class.
            paths = [one[0] if _is_labelled(one) else one for one in found]
            if all(isinstance(path, str | Path) for path in paths):
                return [Path(path) for path in paths]
    return None


def _is_labelled(sample: object) -> bool:
    return isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[1], int)


def _has_arrays(data: Any) -> bool:
    """Whether the images are arrays in memory, of which `data[row]` makes images."""
    found = getattr(data, "data", None)
    return isinstance(found, np.ndarray | torch.Tensor)


def _open(spec: TorchvisionSpec, train: bool) -> Any:
    kind: Any = getattr(datasets, spec.name, None)
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "train" in parameters:
        part: dict[str, Any] = {"train": train}
    elif "split" in parameters:
        part = {"split": "train" if train else "test"}
    else:
        raise ConfigError(
            f"data.name = {spec.name!r}: torchvision has no data set of this name with a train "
            "and a test part. Names are those of its classes, like CIFAR10, STL10 or Food101."
        )
    root = path_of(spec.root, "data.root")
    try:
        return kind(root=str(root), **part)  # download is false
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"data.root: {spec.name} is not in {spec.root}: {one_line(error)} soupray does not "
            f"download it. Run: python -c 'import torchvision; "
            f'torchvision.datasets.{spec.name}("{spec.root}", download=True)\''
        ) from error
