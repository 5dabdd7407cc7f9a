"""Files in which people say which answers are right: the published JSON, or a table of one's own.

JSON, as `human_accuracy_v3.0.0.json` of arXiv:2205.04596:

    {"initial_annots": {FILE: {"correct": [CLASS], "unclear": [CLASS]}},
     "problematic_images": {FILE: ...}, "imagenet_m": [FILE]}

CSV, with classes by name and `|` between them:

    id,ok_labels,unclear_labels,problematic
    img_12.png,seven|one,,no
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from soupray.core.errors import ConfigError
from soupray.core.records import Record
from soupray.spec.files import read_text

COLUMNS = ("id", "ok_labels", "unclear_labels", "problematic")
YES, NO = ("yes", "true", "1"), ("no", "false", "0", "")
SHOWN = 5


class Said(Record, frozen=True, kw_only=True):
    """What people say of a sample: names of classes.

    Attributes:
        right: the right classes.
        unclear: classes of which they are not sure.
        problematic: the sample shall not count.
    """

    right: tuple[str, ...]
    unclear: tuple[str, ...] = ()
    problematic: bool = False


class Annotations(Record, frozen=True, kw_only=True):
    """What people say of test samples.

    Attributes:
        source: name of the file.
        samples: by the name of the sample in the file.
        slices: named sets of samples.
    """

    source: str
    samples: dict[str, Said]
    slices: dict[str, tuple[str, ...]]


def read_annotations(path: Path) -> Annotations:
    """Return what a file says of samples.

    Args:
        path: of a `.json` file, or of a `.csv` file; see this module.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    text = read_text(path)
    if path.suffix == ".json":
        return _of_json(text, path)
    if path.suffix == ".csv":
        return _of_csv(text, path)
    raise ConfigError(f"{path}: annotations are in a .json or a .csv file; see `diagnose --help`.")


def _of_json(text: str, path: Path) -> Annotations:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("initial_annots"), dict):
        raise ConfigError(
            f"{path}: it has no mapping `initial_annots`, as human_accuracy_v3.0.0.json has."
        )
    problematic = set(_names(data.get("problematic_images", {}), path, "problematic_images"))
    samples = {}
    for name, said in data["initial_annots"].items():
        if not isinstance(said, dict):
            raise ConfigError(f"{path}: initial_annots[{name!r}] is no mapping.")
        right, unclear = (
            _names(said.get(key, []), path, f"initial_annots[{name!r}].{key}")
            for key in ("correct", "unclear")
        )
        samples[name] = Said(right=right, unclear=unclear, problematic=name in problematic)
    slices = {}
    if "imagenet_m" in data:
        slices["imagenet_m"] = _names(data["imagenet_m"], path, "imagenet_m")
    return Annotations(source=path.name, samples=samples, slices=slices)


def _names(value: Any, path: Path, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | dict) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{path}: {where} is no list of names.")
    return tuple(value)


def _of_csv(text: str, path: Path) -> Annotations:
    rows = list(csv.reader(text.splitlines()))
    if not rows or tuple(c.strip() for c in rows[0]) != COLUMNS:
        raise ConfigError(
            f"{path}: the first line is {','.join(rows[0]) if rows else ''!r}; it must be "
            f"{','.join(COLUMNS)}."
        )
    samples: dict[str, Said] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        where = f"{path}:{number}"
        if len(row) != len(COLUMNS):
            raise ConfigError(f"{where}: {len(row)} cells; there are {len(COLUMNS)} columns.")
        name, right, unclear, problematic = (cell.strip() for cell in row)
        if name in samples:
            raise ConfigError(f"{where}: {name!r} is there twice.")
        if problematic.lower() not in YES + NO:
            raise ConfigError(f"{where}: problematic is {problematic!r}; write yes or no.")
        samples[name] = Said(
            right=_classes(right),
            unclear=_classes(unclear),
            problematic=problematic.lower() in YES,
        )
        if not (samples[name].right or samples[name].unclear or samples[name].problematic):
            raise ConfigError(f"{where}: {name!r} has no right and no unclear class.")
    return Annotations(source=path.name, samples=samples, slices={})


def _classes(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split("|") if name.strip())


def rows_of(names: Iterable[str], ids: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Match names of samples with the ids of a split.

    A name is an id, or the last part of its path, or that without its ending, where only one id
    has it.

    Args:
        names: as a file has them.
        ids: of the split, in order.

    Returns:
        The row of each name that is found, and the names that are not.
    """
    known = _unique((i, row) for row, i in enumerate(ids))
    files = _unique((PurePosixPath(i).name, row) for row, i in enumerate(ids))
    stems = _unique((PurePosixPath(i).stem, row) for row, i in enumerate(ids))
    found, missing = {}, []
    for name in names:
        path = PurePosixPath(name)
        row = known.get(name, files.get(path.name, stems.get(path.stem)))
        if row is None:
            missing.append(name)
        else:
            found[name] = row
    return found, missing


def _unique(pairs: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    listed = list(pairs)
    times = Counter(name for name, _ in listed)
    return {name: row for name, row in listed if times[name] == 1}
