"""Data sets that `datasets.save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from soupray.core.arrays import Labels
from soupray.core.errors import ConfigError, one_line
from soupray.data.folders import MOST_BYTES
from soupray.data.opening import Unreadable
from soupray.data.splits import Listing, Raw, listing
from soupray.spec.data import HuggingFaceSpec
from soupray.spec.files import path_of, read_regular


def list_huggingface(spec: HuggingFaceSpec, split: str) -> tuple[Listing, list[str] | None]:
    """A split of a data set. The id of a sample is its number.

    Args:
        spec: the path, and the columns of images and labels.
        split: name of the split.

    Returns:
        The samples, and the names of the classes by label: those of the column's `ClassLabel`, or
        the different texts in a column of texts, sorted. None for a column of plain numbers.

    Raises:
        ConfigError: `datasets` is not installed, there is no data set, split or column of that
            name, or the labels are neither texts nor numbers from 0.
    """
    data = _split(spec, split)
    for field, column in (("image", spec.image), ("label", spec.label)):
        if column not in data.column_names:
            raise ConfigError(
                f"data.{field}: {spec.path} has no column {column!r}; it has "
                f"{', '.join(data.column_names)}."
            )
    labels, names = _labels(data, spec)
    images = data.select_columns([spec.image]).cast_column(spec.image, _encoded())

    def read(row: int) -> Raw:
        image = images[row][spec.image]
        if not image:
            raise Unreadable("the row has no image")
        found: bytes = image["bytes"] or read_regular(Path(image["path"]), MOST_BYTES)
        return found

    return listing([str(i) for i in range(len(labels))], labels, read), names


def _labels(data: Any, spec: HuggingFaceSpec) -> tuple[Labels, list[str] | None]:
    feature = data.features[spec.label]
    kind, values = str(getattr(feature, "dtype", "")), data[spec.label][:]
    where = f"data.label: column {spec.label!r} of {spec.path}"
    absent = [row for row, value in enumerate(values) if value is None or value == -1]
    if absent:
        raise ConfigError(
            f"{where}: {len(absent)} of {len(values)} samples have no label, the first in row "
            f"{absent[0]}. Leave them out, or name another split."
        )
    if kind in ("string", "large_string"):
        names = sorted(set(values))
        of = {name: k for k, name in enumerate(names)}
        return np.array([of[value] for value in values], np.int64), names
    if "int" not in kind or min(values, default=-1) < 0:
        raise ConfigError(f"{where} holds neither class names nor class numbers from 0.")
    named = getattr(feature, "names", None)
    return np.asarray(values, np.int64), list(named) if named else None


def _encoded() -> Any:
    """The column type that gives images as the bytes of their files."""
    from datasets import Image

    return Image(decode=False)


def _split(spec: HuggingFaceSpec, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data.kind = huggingface needs the package datasets: pip install 'soupray[hub]'"
        ) from error
    path = path_of(spec.path, "data.path")
    try:
        found = datasets.load_from_disk(str(path))
    # A folder with anything in it; for one without rows the library raises IndexError.
    except Exception as error:
        raise ConfigError(
            f"data.path: {spec.path} is no folder that datasets.save_to_disk wrote: "
            f"{one_line(error)}"
        ) from error
    parts = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    if split not in parts:
        raise ConfigError(f"data: {spec.path} has no split {split!r}; it has {', '.join(parts)}.")
    return parts[split]
