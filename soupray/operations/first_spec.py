"""The first spec for data of one's own: looks at the data, and writes a spec that runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import ConfigError
from soupray.core.records import Record
from soupray.data.folders import EXTENSIONS, walked
from soupray.data.text import DELIMITERS, JSON_LINES
from soupray.spec.schema import shipped
from soupray.spec.sweep_spec import NAME_ALLOWED, NAME_PATTERN
from soupray.tasks.files import clip_folder

IMAGE_MODEL = "ViT-B-32/laion2b_s34b_b79k"
TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Models that most people know: CLIP of LAION-2B, and MiniLM of sentence-transformers."""

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
"""Usual names of the folders of training and of test data."""

TEXTS, LABELS = ("text", "sentence", "content", "review"), ("label", "class", "category", "topic")
"""Usual names of the columns of a table of texts."""

HELD_OUT, REPORTED = 0.15, 0.2
"""Shares of the training data that choose soups, and that are ID test where there is none."""

MOST_HELD_OUT, MOST_TEST = 5000, 10_000
"""Samples: with these, one standard error of an accuracy of 90 % is .4 and .3 points."""

UNEVEN = 5
"""A class with so many times the samples of another one makes accuracy a bad measure (assumed)."""

MOST_LISTED = 200
"""Classes that a spec lists: of more, the folders are the list."""


class Drafted(Record, frozen=True, kw_only=True):
    """A spec, and what was seen in the data.

    Attributes:
        text: the spec, as YAML with comments.
        samples: number of training samples of each class, before held-out data are taken from them.
        notes: what a person should know about the data, in sentences.
    """

    text: str
    samples: dict[str, int]
    notes: tuple[str, ...]


class _Data(NamedTuple):
    """What was seen: samples by class, and the lines of `data` in the spec."""

    samples: Counter[str]
    lines: list[str]
    notes: list[str]


def images_spec(name: str, folder: Path, model: str = IMAGE_MODEL) -> Drafted:
    """Draft a spec for a folder of images for each class.

    Args:
        name: of the sweep.
        folder: with a folder for each class, or with folders `train` and `test` (or `val`) that
            have these.
        model: `ARCHITECTURE/TAG` of open_clip, `local-dir:PATH` or `soupray:digits`, or a model of
            timm.

    Raises:
        ConfigError: there is no such folder, fewer than two classes with images in it, or a class
            with too few.
    """
    train, test = _folders(folder)
    samples, others = _images(train)
    if len(samples) < 2:
        raise ConfigError(
            f"--image-folder {folder}: {len(samples)} folders with images in {train}. Put the "
            f"images of each class into a folder of their own. Endings: {', '.join(EXTENSIONS)}."
        )
    notes = []
    if others:
        notes.append(f"{others} files in {train} are no images of a class, and are left out")
    used = {train, test}
    beside = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p not in used]
    if train is not folder and beside:
        notes.append(f"{', '.join(beside[:5])} in {folder}: not used")
    held_out, drawn = _drawn(samples, test is not None, f"--image-folder {folder}", notes)
    if test is not None:
        there, _ = _images(test)
        if missing := sorted(samples.keys() - there.keys()):
            notes.append(f"{test} has no images of {', '.join(missing[:5])}")
        where = str(test.absolute())
    else:
        where = str(drawn)
    lines = [
        "kind: folder",
        f"train: {_quoted(str(train.absolute()))}",
        f"test: {_quoted(where) if test else where}"
        "    # a path, or a number of images that are drawn by class from train",
        f"held_out: {held_out}    # chooses the soups",
        "overlap: drop             # equal images in two splits; fail: an error, with the pairs",
        "on_error: fail            # files that cannot be read; skip: they are left out, and named",
        "shifts: [blurred, faded, moved, pixelated]    # made from the test images",
    ]
    found = _Data(samples, lines, notes)
    return _drafted(name, _image_task(model, list(samples)), found, model)


def _folders(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training classes and, if there is one, of the test classes."""
    if not folder.is_dir():
        raise ConfigError(f"--image-folder {folder}: there is no such folder.")
    train = next((folder / n for n in TRAIN if (folder / n).is_dir()), folder)
    test = next((folder / n for n in TEST if (folder / n).is_dir()), None)
    if train is folder and test is not None:
        raise ConfigError(
            f"--image-folder {folder}: it has a folder {test.name!r}, which is no class, and no "
            f"folder {TRAIN[0]!r} beside it. Put the classes into {folder / TRAIN[0]}, or rename "
            "it."
        )
    return train, test


def texts_spec(name: str, file: Path, model: str = TEXT_MODEL) -> Drafted:
    """Draft a spec for a table of texts with labels.

    Args:
        name: of the sweep.
        file: .csv, .tsv or .jsonl with a column of texts and one of labels.
        model: a model of transformers: a name on the hub, or a folder.

    Raises:
        ConfigError: the file cannot be read, or its columns are not understood.
    """
    rows = list(_rows(file))
    if not rows:
        raise ConfigError(f"--text-csv {file}: no rows.")
    text, label = _columns(rows, file)
    samples = Counter(row[label] for row in rows)
    notes: list[str] = []
    held_out, test = _drawn(samples, False, f"--text-csv {file}", notes)
    longest = max(len(row[text].encode()) for row in rows)
    lines = [
        "kind: text",
        f"train: {_quoted(str(file.absolute()))}",
        f"test: {test}    # drawn by class; or the path of a file",
        f"held_out: {held_out}    # chooses the soups",
        f"text_column: {_quoted(text)}",
        f"label_column: {_quoted(label)}",
        f"max_bytes: {max(200, longest)}    # the longest text here has {longest}",
        "on_long: cut              # or fail: texts above max_bytes or task.max_tokens",
        "overlap: drop",
        "on_error: fail            # rows that cannot be read; skip: they are left out, and named",
    ]
    task = [
        "kind: transformers",
        f"model: {_quoted(model)}    # a name on the hub, or a folder",
        f"classes: {_listed(list(samples))}",
        'templates: ["{}", "about {}"]    # prompts of the zero-shot head',
        "max_tokens: 128",
    ]
    return _drafted(name, task, _Data(samples, lines, notes), model)


def _columns(rows: list[dict[str, str]], file: Path) -> tuple[str, str]:
    """Return the columns of texts and of labels. Raises ConfigError if there are none."""
    label = _column(rows, LABELS, lambda values: len(set(values)), file, "labels")
    rest = [{k: v for k, v in row.items() if k != label} for row in rows]
    text = _column(rest, TEXTS, lambda values: -sum(map(len, values)), file, "texts")
    samples = Counter(row[label] for row in rows)
    if len(samples) < 2 or len(samples) > len(rows) / 2:
        raise ConfigError(
            f"--text-csv {file}: the column {label!r} has {len(samples)} different values in "
            f"{len(rows)} rows, so that it is no column of classes. Call that column `label`."
        )
    if empty := [number for number, row in enumerate(rows, 1) if not row[label].strip()]:
        raise ConfigError(
            f"--text-csv {file}: {len(empty)} rows have no {label!r}, the first is row {empty[0]}. "
            "Give each row its class, or remove it."
        )
    return text, label


def _images(folder: Path) -> tuple[Counter[str], int]:
    """Return the number of images in each folder of a folder, and of all other files in it."""
    found = Counter[str]()
    others = sum(path.is_file() for path in folder.iterdir())
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        for _, files, _ in walked(inner):
            images = sum(name.lower().endswith(EXTENSIONS) for name in files)
            found[inner.name] += images
            others += len(files) - images
    return +found, others


def _rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            if file.suffix.lower() in JSON_LINES:
                for line in lines:
                    if line.strip():
                        yield _texts_of(json.loads(line))
            elif file.suffix.lower() in DELIMITERS:
                table = csv.DictReader(lines, delimiter=DELIMITERS[file.suffix.lower()])
                for row in table:
                    yield _texts_of({k: v for k, v in row.items() if k is not None})
            else:
                known = ", ".join((*DELIMITERS, *JSON_LINES))
                raise ConfigError(f"--text-csv {file}: the ending is one of {known}.")
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise ConfigError(f"--text-csv {file}: cannot be read: {error}.") from error


def _texts_of(row: Mapping[str, object]) -> dict[str, str]:
    return {str(name): "" if value is None else str(value) for name, value in row.items()}


def _column(
    rows: list[dict[str, str]],
    usual: tuple[str, ...],
    cost: Callable[[list[str]], int],
    file: Path,
    what: str,
) -> str:
    """Return the column with a usual name, else the one with the lowest cost of its values."""
    columns = [c for c in rows[0] if all(c in row for row in rows)]
    for name in usual:
        for column in columns:
            if column.strip().lower() == name:
                return column
    if not columns:
        raise ConfigError(
            f"--text-csv {file}: no column of {what}. Write a first line with the names `text` and "
            "`label`."
        )
    return min(columns, key=lambda c: cost([row[c] for row in rows]))


def _image_task(model: str, classes: list[str]) -> list[str]:
    named = [name.replace("_", " ") for name in classes]
    prompts = [
        f"classes: {_listed(named)}    # the words of the prompts",
        'templates: ["a photo of a {}.", "a picture of a {}."]',
    ]
    if clip_folder(model) is not None:
        return ["kind: open_clip", f"model: {_quoted(model)}    # with its weights", *prompts]
    architecture, slash, tag = model.partition("/")
    if not slash:
        architecture, dot, tag = model.partition(".")
        if not dot:
            raise ConfigError(
                f"--model {model}: name the pre-trained weights too: {model}.TAG of timm, such as "
                "resnet50.a1_in1k, or ARCHITECTURE/TAG of open_clip. Models that bring theirs: "
                "soupray:digits, the small CLIP in this package, and local-dir:PATH."
            )
        return [
            "kind: timm",
            f"model: {_quoted(architecture)}",
            f"pretrained: {_quoted(tag)}    # a tag of timm, or a file",
            *([f"classes: {_listed(named)}"] if len(named) <= MOST_LISTED else []),
        ]
    return [
        "kind: open_clip",
        f"model: {_quoted(architecture)}",
        f"pretrained: {_quoted(tag)}    # a tag of open_clip, or a file",
        *prompts,
    ]


def _drafted(name: str, task: list[str], data: _Data, model: str) -> Drafted:
    _refuse_name(name)
    few, many = min(data.samples.values()), max(data.samples.values())
    total = sum(data.samples.values())
    uneven = many > UNEVEN * few
    notes = list(data.notes)
    if uneven:
        least = min(data.samples, key=lambda c: data.samples[c])
        notes.append(
            f"the classes are uneven: {few} samples of {least!r}, {many} of another; the spec "
            "ranks by balanced_accuracy"
        )
    lines = [
        f"# yaml-language-server: $schema={shipped().as_uri()}",
        f"# {len(data.samples)} classes, {total} samples ({few} to {many} a class), {model}.",
        f"name: {name}",
        *(["metric: balanced_accuracy    # the classes are uneven"] if uneven else []),
        "",
        "task:",
        *(f"  {line}" for line in task),
        "",
        "data:",
        *(f"  {line}" for line in data.lines),
        "",
        *_search(_kind(task[0], model), batch=max(4, min(64, total // 8))),
        f"resources: {{cpu: 1, gpu: {1 if shutil.which('nvidia-smi') else 0}}}    # of each trial",
        "storage: embedded         # or s3://bucket/prefix, on a cluster",
        "tracking: embedded        # or http://mlflow:5000",
        "",
    ]
    return Drafted(text="\n".join(lines), samples=dict(data.samples), notes=tuple(notes))


def _refuse_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        small = re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:63]
        hint = f" Write {small!r}, say." if re.fullmatch(NAME_PATTERN, small) else ""
        raise ConfigError(f"{name!r}: the name of a sweep has {NAME_ALLOWED}.{hint}")


RATES = {"timm": "[1.0e-5, 1.0e-3]", "small": "[5.0e-5, 2.0e-3]", "large": "[3.0e-6, 1.0e-4]"}
"""Learning rates by kind of model. Those of the demo's small CLIP are its spec's."""


def _kind(line: str, model: str) -> str:
    """Return the kind of a model: `timm`, the demo's `small` CLIP, or a `large` one."""
    if line == "kind: timm":
        return "timm"
    return "small" if model == "soupray:digits" else "large"


def _search(kind: str, batch: int) -> list[str]:
    """Return the lines of theta_0 and of the search. A model of timm has no zero-shot head."""
    start = [
        "init: {probe: {l2: 1.0e-2}}    # theta_0: the body, and a head fitted to its features",
        "anchor: init",
        "",
    ]
    return [
        *(start if kind == "timm" else []),
        "search:",
        "  trials: 16",
        "  space:",
        f"    lr: {{log_uniform: {RATES[kind]}}}",
        "    epochs: {integer: [3, 8]}",
        f"    batch_size: {batch}",
        "    weight_decay: {log_uniform: [1.0e-4, 0.3]}",
        "    label_smoothing: {uniform: [0.02, 0.2], off: 0.5}",
        "",
    ]


def _drawn(
    samples: Mapping[str, int], has_test: bool, where: str, notes: list[str]
) -> tuple[int, int]:
    """Return how many samples are held out, and how many are ID test if there is none.

    A draw takes equally many of each class: the smallest class keeps as many to train on as it
    gives to a draw.

    Args:
        samples: number of training samples of each class.
        has_test: there are test data, so that only held-out data are drawn.
        where: names the data in messages.
        notes: what a person should know is added to these.

    Raises:
        ConfigError: a class has too few samples for a draw.
    """
    draws = 1 if has_test else 2
    least = min(samples, key=lambda c: samples[c])
    if samples[least] <= draws:
        few = sorted(c for c in samples if samples[c] <= draws)
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise ConfigError(
            f"{where}: {', '.join(map(repr, few[:5]))}{more} have {draws} samples or fewer. Each "
            f"class needs {draws + 1}: to train on, to choose with"
            f"{'' if has_test else ', to test'}. Add samples, or leave these classes out."
        )
    total, most = sum(samples.values()), len(samples) * (samples[least] // (draws + 1))
    wanted = [
        max(len(samples), min(top, int(share * total)))
        for share, top in ((HELD_OUT, MOST_HELD_OUT), (REPORTED, MOST_TEST))
    ]
    held_out, test = (min(one, most) for one in wanted)
    if [held_out, test][:draws] != wanted[:draws]:
        notes.append(
            f"held_out{'' if has_test else ' and test'} are drawn equally from each class, and "
            f"{least!r} has {samples[least]} samples: {most} are few to tell models apart. Add "
            "samples of it, or leave it out and raise them"
        )
    return held_out, test


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _listed(names: list[str]) -> str:
    """Return names as a list of YAML, over several lines."""
    whole = f"[{', '.join(map(_quoted, names))}]"
    return "\n".join(textwrap.wrap(whole, 90, subsequent_indent="    ", break_long_words=False))
