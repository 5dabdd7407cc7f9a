"""Files in which people judge answers: the published JSON, or tables of one's own.

Which answers are right:

JSON, as `human_accuracy_v3.0.0.json` of arXiv:2205.04596:

    {"initial_annots": {FILE: {"correct": [CLASS], "unclear": [CLASS]}},
     "problematic_images": {FILE: ...}, "imagenet_m": [FILE]}

CSV, with classes by name and `|` between them:

    id,ok_labels,unclear_labels,problematic
    img_12.png,seven|one,,no

How bad a mistake is: JSON as `vit3b_mistakes.json` of github.com/google-research/imagenet-mistakes,
or CSV. A class in that JSON is a number of ImageNet.

    {FILE: {"top_prediction": 192, "failure category": CATEGORY, "failure severity": "Minor"}}

    id,answer,category,severity
    img_12.png,nine,fine-grained,minor
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from soupray.core.errors import ConfigError
from soupray.core.records import Record
from soupray.spec.class_numbers import imagenet_list
from soupray.spec.files import each_once, read_text

COLUMNS = ("id", "ok_labels", "unclear_labels", "problematic")
MISTAKES = ("id", "answer", "category", "severity")
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


class Assessed(Record, frozen=True, kw_only=True):
    """What people say of a wrong answer.

    Attributes:
        answer: the class.
        category: kind of the mistake.
        severity: in lower case; borderline mistakes are minor, as in arXiv:2205.04596.
    """

    answer: str
    category: str
    severity: str


class Annotations(Record, frozen=True, kw_only=True):
    """What people say of test samples.

    Attributes:
        source: names of the files.
        samples: by the name of the sample in the file.
        slices: named sets of samples.
        mistakes: wrong answers that people judged, by the name of the sample.
    """

    source: str
    samples: dict[str, Said]
    slices: dict[str, tuple[str, ...]]
    mistakes: dict[str, tuple[Assessed, ...]]


def read_annotations(paths: Sequence[Path]) -> Annotations | None:
    """Return what files say of samples; None for no files.

    Args:
        paths: of `.json` and `.csv` files; see this module.

    Raises:
        ConfigError: one cannot be read, is not such a file, or contradicts another one.
    """
    files = [_read(path) for path in paths]
    if not files:
        return None
    samples: dict[str, Said] = {}
    for one in files:
        if twice := sorted(samples.keys() & one.samples):
            raise ConfigError(
                f"{one.source}: {twice[0]!r} is in two files of annotations. Leave it in one."
            )
        samples |= one.samples
    listed = Counter(name for one in files for name in one.slices)
    if again := sorted(name for name, times in listed.items() if times > 1):
        raise ConfigError(
            f"{' and '.join(one.source for one in files)}: the slice {again[0]} is in two files. "
            "Leave it in one."
        )
    return Annotations(
        source=" and ".join(one.source for one in files),
        samples=samples,
        slices={name: members for one in files for name, members in one.slices.items()},
        mistakes=_joined(files),
    )


def _joined(files: Sequence[Annotations]) -> dict[str, tuple[Assessed, ...]]:
    """Return the mistakes of all files, each once. Raises ConfigError if two contradict."""
    found: dict[str, dict[str, Assessed]] = {}
    for file in files:
        for name, some in file.mistakes.items():
            for one in some:
                before = found.setdefault(name, {}).setdefault(one.answer, one)
                if before != one:
                    raise ConfigError(
                        f"{file.source}: the answer {one.answer} to {name!r} is {_said(one)}, and "
                        f"{_said(before)} in a file before it. Leave one of the two."
                    )
    return {name: tuple(some.values()) for name, some in found.items()}


def _said(one: Assessed) -> str:
    return f"{one.severity} ({one.category})"


def _read(path: Path) -> Annotations:
    text = read_text(path)
    if path.suffix == ".json":
        return _of_json(text, path)
    if path.suffix == ".csv":
        return _of_csv(text, path)
    raise ConfigError(f"{path}: annotations are in a .json or a .csv file; see `diagnose --help`.")


def _of_json(text: str, path: Path) -> Annotations:
    try:
        data = json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}.") from error
    if _are_mistakes(data):
        return Annotations(
            source=path.name, samples={}, slices={}, mistakes=_mistakes_of_json(data, path)
        )
    if not isinstance(data, dict) or not isinstance(data.get("initial_annots"), dict):
        raise ConfigError(
            f"{path}: it has neither a mapping `initial_annots`, as human_accuracy_v3.0.0.json "
            "has, nor a `failure severity` for each file, as vit3b_mistakes.json has."
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
    return Annotations(source=path.name, samples=samples, slices=slices, mistakes={})


def _are_mistakes(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(one, dict) and "failure severity" in one for one in data.values())
    )


def _mistakes_of_json(data: Mapping[str, Any], path: Path) -> dict[str, tuple[Assessed, ...]]:
    synsets = imagenet_list("synsets")
    found: dict[str, tuple[Assessed, ...]] = {}
    for name, said in data.items():
        answer, words = (
            said.get("top_prediction"),
            [said.get(f"failure {what}") for what in ("category", "severity")],
        )
        if type(answer) is not int or not 0 <= answer < len(synsets):
            raise ConfigError(f"{path}: {name!r}: top_prediction is {answer!r}; it is 0 to 999.")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ConfigError(f"{path}: {name!r}: category and severity are {words!r}, no words.")
        found[name] = (_assessed(synsets[answer], *words),)
    return found


def _assessed(answer: str, category: str, severity: str) -> Assessed:
    word = severity.strip().lower()
    return Assessed(
        answer=answer, category=category.strip(), severity="minor" if word == "borderline" else word
    )


def _names(value: Any, path: Path, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | dict) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{path}: {where} is no list of names.")
    return tuple(value)


def _of_csv(text: str, path: Path) -> Annotations:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV: {error}.") from error
    head = tuple(c.strip() for c in rows[0]) if rows else ()
    if len(rows) == 1 and head in (COLUMNS, MISTAKES):
        raise ConfigError(f"{path}: there is no row below its first line.")
    if head == MISTAKES:
        found = _mistakes_of_csv(rows, path)
        return Annotations(source=path.name, samples={}, slices={}, mistakes=found)
    if head != COLUMNS:
        raise ConfigError(
            f"{path}: the first line is {','.join(rows[0]) if rows else ''!r}; it must be "
            f"{','.join(COLUMNS)}, or {','.join(MISTAKES)}."
        )
    return Annotations(
        source=path.name, samples=_samples_of_csv(rows, path), slices={}, mistakes={}
    )


def _samples_of_csv(rows: Sequence[Sequence[str]], path: Path) -> dict[str, Said]:
    samples: dict[str, Said] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        where = f"{path}:{number}"
        if len(row) != len(COLUMNS):
            raise ConfigError(f"{where}: {len(row)} cells; there are {len(COLUMNS)} columns.")
        name, right, unclear, problematic = (cell.strip() for cell in row)
        if not name:
            raise ConfigError(f"{where}: the id is empty.")
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
    return samples


def _mistakes_of_csv(rows: Sequence[Sequence[str]], path: Path) -> dict[str, tuple[Assessed, ...]]:
    found: dict[str, dict[str, Assessed]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        cells = [cell.strip() for cell in row]
        if len(cells) != len(MISTAKES) or not all(cells):
            raise ConfigError(
                f"{path}:{number}: {','.join(row)!r}; each of {','.join(MISTAKES)} needs a word."
            )
        name, answer, category, severity = cells
        if answer in found.setdefault(name, {}):
            raise ConfigError(f"{path}:{number}: the answer {answer} to {name!r} is there twice.")
        found[name][answer] = _assessed(answer, category, severity)
    return {name: tuple(some.values()) for name, some in found.items()}


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
