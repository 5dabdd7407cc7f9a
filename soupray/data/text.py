"""Data sets of texts in CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from soupray.core.errors import ConfigError
from soupray.core.texts import cut, pack
from soupray.data.splits import Samples, draw, held_out_shares, set_aside, shares
from soupray.spec.class_numbers import number_of, numbers_by_name
from soupray.spec.data import TextSpec

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


class _Row(NamedTuple):
    """A sample, and its place as FILE:LINE."""

    text: str
    label: int
    where: str


def split_texts(spec: TextSpec, classes: Sequence[str], seed: int) -> dict[str, Samples]:
    """The splits train, held_out, rank (if the spec has it) and test, by name.

    Args:
        spec: the files and the sizes of the splits.
        classes: names of the task's classes, which are the labels in the files.
        seed: of the draw.

    Returns:
        Samples with texts as bytes [N, L], see `core.texts`.

    Raises:
        ConfigError: a file is missing or broken, a column or a label is unknown, a text is too
            long, or a class has too few samples.
    """
    every, listed = set_aside(read_texts(spec.train, spec, classes), spec.held_out)
    wanted = held_out_shares(spec.held_out, len(classes))
    if isinstance(spec.test, int):
        wanted["test"] = shares(spec.test, len(classes))
    asked = [sum(counts) for counts in zip(*wanted.values(), strict=True)] or [0] * len(classes)
    there = np.bincount(every.labels, minlength=len(classes))
    for name, have, count in zip(classes, there, asked, strict=True):
        if have <= count:
            raise ConfigError(
                f"data.held_out = {spec.held_out} and data.test = {spec.test} need {count} "
                f"texts of class {name!r} and leave none to train on: {spec.train} has {have}."
            )
    parts = {**draw(every, wanted, rest="train", seed=seed), **listed}
    if isinstance(spec.test, str):
        parts["test"] = read_texts(spec.test, spec, classes)
    return {name: parts[name] for name in ("train", "held_out", "rank", "test") if name in parts}


def read_texts(named: str, spec: TextSpec, classes: Sequence[str]) -> Samples:
    """All samples of a file, with ids like train/123.

    Args:
        named: path of the file.
        spec: the columns, and the largest length of a text.
        classes: names of the task's classes, which are the labels in the file.

    Raises:
        ConfigError: the file is missing, broken or empty, a column or a label is unknown, or a text
            is too long.
    """
    path = Path(named).expanduser()
    rows = list(_rows(path, spec, classes))
    if not rows:
        raise ConfigError(f"{path}: there is no sample in it.")
    long = [row for row in rows if len(row.text.encode()) > spec.max_bytes]
    if long and spec.on_long == "fail":
        size = len(long[0].text.encode())
        raise ConfigError(
            f"{path}: {len(long)} of {len(rows)} texts are longer than data.max_bytes = "
            f"{spec.max_bytes}, the first at {long[0].where} with {size} bytes. Write a larger "
            "max_bytes, or on_long: cut."
        )
    texts = pack([cut(row.text, spec.max_bytes) for row in rows])
    ids = [f"{path.stem}/{i}" for i in range(len(rows))]
    return Samples(ids, texts, np.array([row.label for row in rows], np.int64))


def _rows(path: Path, spec: TextSpec, classes: Sequence[str]) -> Iterator[_Row]:
    known = numbers_by_name(classes)
    for where, found in _records(path, _read(path)):
        for column in (spec.text_column, spec.label_column):
            if not isinstance(found.get(column), str):
                raise ConfigError(
                    f"{where}: no text in column {column!r}. Its columns are: "
                    f"{', '.join(map(str, found))}. Name the columns of texts and labels in "
                    "data.text_column and data.label_column."
                )
        text, label = found[spec.text_column].strip(), found[spec.label_column]
        if not text:
            raise ConfigError(f"{where}: the text is empty. Remove that line.")
        number = number_of(label, known)
        if number is None:
            raise ConfigError(
                f"{where}: the label {label!r} is not one of task.classes: {', '.join(classes)}."
            )
        yield _Row(text, number, where)


def _records(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    """(FILE:LINE, the columns of a sample) for each sample of a file."""
    try:
        # Not splitlines(): it also splits at other characters, which a text may contain.
        lines = io.StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}.") from error
    if path.suffix in DELIMITERS:
        reader = csv.DictReader(lines, delimiter=DELIMITERS[path.suffix], strict=True)
        try:
            for found in reader:
                yield f"{path}:{reader.line_num}", found
        except csv.Error as error:
            raise ConfigError(f"{path}: after line {reader.line_num}: {error}.") from error
        return
    if path.suffix not in JSON_LINES:
        known = ", ".join((*DELIMITERS, *JSON_LINES))
        raise ConfigError(f"{path}: the ending must say the file format. It is one of {known}.")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: str, where: str) -> dict[str, str]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{where}: a line must be a JSON object with named columns, not {line[:40]!r}."
        )
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Paths in data.train, data.test and "
            "data.shifts start from the folder in which soupray runs."
        ) from error
