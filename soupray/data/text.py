"""Data sets of texts in CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soupray.core.errors import ConfigError
from soupray.core.texts import cut, pack
from soupray.data.splits import Samples, draw, held_out_shares, set_aside, shares, shown_name
from soupray.spec.class_numbers import number_of, numbers_by_name
from soupray.spec.files import path_of, read_regular
from soupray.spec.tables import PairsSpec, TextSpec

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")

MOST_BYTES = 4 * 2**30
"""The largest file: all its texts are in memory at a time."""


class Row(NamedTuple):
    """A sample: its text, what stands in the column of labels, and its place as FILE:LINE."""

    text: str
    label: str
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
    path, known = path_of(named, "data"), numbers_by_name(classes)
    rows, labels = list[Row](), list[int]()
    for row in rows_of(path, spec, known):
        number = number_of(row.label, known)
        if number is None:
            raise ConfigError(
                f"{row.where}: the label {row.label!r} is not one of task.classes: "
                f"{', '.join(classes)}."
            )
        rows.append(row)
        labels.append(number)
    if not rows:
        raise ConfigError(f"{path}: there is no sample in it.")
    texts = pack(short([(row.text, row.where) for row in rows], path, spec))
    return Samples(ids_of(path, len(rows)), texts, np.array(labels, np.int64))


def ids_of(path: Path, count: int) -> list[str]:
    """The ids of the samples of a file, like train/123."""
    return [f"{path.stem}/{i}" for i in range(count)]


def first_equal(texts: Sequence[str]) -> list[int]:
    """For each text, the position of the first equal one."""
    first: dict[str, int] = {}
    return [first.setdefault(text, place) for place, text in enumerate(texts)]


def short(texts: Sequence[tuple[str, str]], path: Path, spec: PairsSpec) -> list[str]:
    """The texts of a file, cut to the largest length if the spec says so.

    Args:
        texts: each with its place as FILE:LINE.
        path: of the file.
        spec: says the largest length, and what happens to longer texts.

    Raises:
        ConfigError: a text is too long, and is not to be cut.
    """
    long = [(text, where) for text, where in texts if len(text.encode()) > spec.max_bytes]
    if long and spec.on_long == "fail":
        text, where = long[0]
        raise ConfigError(
            f"{path}: {len(long)} of {len(texts)} texts are longer than data.max_bytes = "
            f"{spec.max_bytes}, the first at {where} with {len(text.encode())} bytes. Write a "
            "larger max_bytes, or on_long: cut."
        )
    return [cut(text, spec.max_bytes) for text, _ in texts]


def pair_rows(named: str, spec: PairsSpec, second: str) -> tuple[Path, list[Row]]:
    """The path of a table of pairs, and its rows.

    Args:
        named: the path, as the spec names it.
        spec: names the columns.
        second: what messages call the second one of a pair.

    Raises:
        ConfigError: the table is missing, broken or empty, a column is not there, or a text is
            empty.
    """
    path = path_of(named, "data")
    rows = list(rows_of(path, spec, {}))
    if not rows:
        raise ConfigError(f"{path}: there is no pair in it.")
    _, column = spec.columns.values()
    for row in rows:
        if not row.label.strip():
            raise ConfigError(
                f"{row.where}: the {second}, in column {column!r}, is empty. Remove that line."
            )
    return path, rows


def rows_of(path: Path, spec: PairsSpec, known: Mapping[str, int]) -> Iterator[Row]:
    """The samples of a file, without white space at the ends of their texts.

    Args:
        path: of the file.
        spec: names the columns.
        known: numbers of the classes by the names that mean them; empty: labels are no classes.

    Raises:
        ConfigError: the file is missing or broken, a column is not there, or a text is empty.
    """
    first, second = spec.columns.values()
    for where, found in _records(path, _read(path), spec, known):
        for column in (first, second):
            if not isinstance(found.get(column), str):
                raise ConfigError(
                    f"{where}: no text in column {column!r}. Its columns are: "
                    f"{', '.join(map(shown_name, found))}. Name the columns in "
                    f"{' and '.join(f'data.{key}' for key in spec.columns)}."
                )
        text, label = found[first].strip(), found[second]
        if not text:
            raise ConfigError(f"{where}: the text is empty. Remove that line.")
        yield Row(text, label, where)


def _records(
    path: Path, data: bytes, spec: PairsSpec, known: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(FILE:LINE, the columns of a sample) for each sample of a file."""
    try:
        # Not splitlines(): it also splits at other characters, which a text may contain.
        lines = list(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}.") from error
    if path.suffix in DELIMITERS:
        yield from _cells(path, lines, spec, known)
        return
    if path.suffix not in JSON_LINES:
        formats = ", ".join((*DELIMITERS, *JSON_LINES))
        raise ConfigError(f"{path}: the ending must say the file format. It is one of {formats}.")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _cells(
    path: Path, lines: list[str], spec: PairsSpec, known: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The samples of a table. A row has a cell for each column, and ends where its lines say."""
    delimiter = DELIMITERS[path.suffix]
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    start = 1
    try:
        for cells in reader:
            where = f"{path}:{start}"
            if not columns:
                columns = cells
                _refuse_twice(columns, spec, where)
            elif cells:
                if len(cells) != len(columns):
                    raise ConfigError(
                        f"{where}: {len(cells)} cells in a table of {len(columns)} columns. Put a "
                        f"text with {delimiter!r} or a line break in it into double quotes."
                    )
                inside = lines[start : reader.line_num]
                if row := _swallowed(inside, columns, spec, delimiter, known):
                    raise ConfigError(
                        f"{where}: a quoted text goes on for {len(inside)} more lines, and one of "
                        f"them is a row itself: {row[:60]!r}. Close the quote, write a quote in a "
                        'text twice (""), or use JSON lines.'
                    )
                yield where, dict(zip(columns, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}: in the row of line {start}: {error}.") from error


def _refuse_twice(columns: Sequence[str], spec: PairsSpec, where: str) -> None:
    """Refuse a header in which the column of the texts or of the labels is there twice."""
    for column in spec.columns.values():
        if columns.count(column) > 1:
            raise ConfigError(
                f"{where}: {columns.count(column)} columns are called {column!r}. Give each one a "
                "name of its own."
            )


def _swallowed(
    inside: Sequence[str],
    columns: Sequence[str],
    spec: PairsSpec,
    delimiter: str,
    known: Mapping[str, int],
) -> str:
    """A line within a quoted text that is a row itself: the quote was never closed. Empty: none.

    Args:
        inside: the lines of the row after its first one.
        columns: names of the table's columns.
        spec: names the columns.
        delimiter: of cells.
        known: the numbers of the classes by the names that mean them.
    """
    _, label = spec.columns.values()
    place = columns.index(label) if label in columns else -1
    for line in inside:
        cells = line.strip("\r\n").split(delimiter)
        if len(cells) == len(columns) and number_of(cells[place].strip('"'), known) is not None:
            return line.strip("\r\n")
    return ""


def _object(line: str, where: str) -> dict[str, str]:
    try:
        found = json.loads(line, object_pairs_hook=_without_twice)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: half of a surrogate pair is no character. Write the character itself."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: not JSON: too many levels.") from error
    except ValueError as error:  # also a number of more digits than Python reads
        raise ConfigError(f"{where}: not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{where}: a line must be a JSON object with named columns, not {line[:40]!r}."
        )
    return found


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise ValueError(f"the column {twice!r} is there twice")
    return found


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Paths in data.train, data.test and "
            "data.shifts start from the folder in which soupray runs."
        ) from error
