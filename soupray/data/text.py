"""Data sets of texts in CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from soupray.core.errors import ConfigError
from soupray.core.texts import cut, pack
from soupray.data.splits import Samples, draw, held_out_shares, set_aside, shares, shown_name
from soupray.spec.class_numbers import number_of, numbers_by_name
from soupray.spec.files import each_once, path_of, read_regular
from soupray.spec.tables import PairsSpec, TextSpec

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")

SHOWN, LISTED = 5, 20
"""Numbers of rows and of classes that a message lists."""

MOST_BYTES = 4 * 2**30
"""The largest file: all its texts are in memory at a time."""


class Row(NamedTuple):
    """A sample: its text, what stands in the column of labels, and its place as FILE:LINE."""

    text: str
    label: str
    where: str


class Table(NamedTuple):
    """A file with texts: its path, its rows, and notes on those that are left out."""

    path: Path
    rows: list[Row]
    notes: tuple[str, ...]


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
        ConfigError: the file is missing, broken or empty, or a text is too long; or (without
            `on_error: skip`) a row has another number of cells, no such column, an empty text, or a
            label that is no class.
    """
    known = numbers_by_name(classes)

    def check(row: Row) -> None:
        if number_of(row.label, known) is None:
            raise ConfigError(
                f"{row.where}: the label {row.label!r} is not one of task.classes: "
                f"{', '.join(classes[:LISTED])}{', ...' * (len(classes) > LISTED)}."
            )

    path, rows, notes = _table(named, spec, known, check)
    texts = pack(short([(row.text, row.where) for row in rows], path, spec))
    labels = [number_of(row.label, known) for row in rows]
    return Samples(ids_of(path, len(rows)), texts, np.array(labels, np.int64), notes)


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


def pairs_of(named: str, spec: PairsSpec) -> Table:
    """The rows of a table of pairs.

    Args:
        named: its path, as the spec names it.
        spec: names the columns, and says what happens to rows that cannot be read.

    Raises:
        ConfigError: see `read_texts`, or a document or a caption is empty.
    """
    _, column = spec.columns.values()
    what = "document" if isinstance(spec, TextSpec) else "caption"

    def check(row: Row) -> None:
        if not row.label.strip():
            raise ConfigError(
                f"{row.where}: the {what}, in column {column!r}, is empty. Remove that line."
            )

    return _table(named, spec, {}, check)


def _table(
    named: str, spec: PairsSpec, known: Mapping[str, int], check: Callable[[Row], None]
) -> Table:
    """The rows of a file. `check` raises ConfigError for a label that is none."""
    path = path_of(named, "data")
    rows, problems = list[Row](), list[str]()
    for where, cells in _records(path, _read(path), spec, known):
        try:
            row = _row(where, cells(), spec)
            check(row)
            rows.append(row)
        except ConfigError as error:
            if spec.on_error == "fail":
                raise
            problems.append(str(error))
    if not rows:
        why = f" The first row: {problems[0]}" if problems else ""
        raise ConfigError(f"{path}: there is no {'sample' if known else 'pair'} in it.{why}")
    if not problems:
        return Table(path, rows, ())
    shown = " ".join(problems[:SHOWN]) + (" ..." if len(problems) > SHOWN else "")
    count = f"{len(problems)} of {len(problems) + len(rows)}"
    return Table(path, rows, (f"{count} rows of {path} are left out: {shown}",))


def _row(where: str, found: dict[str, str], spec: PairsSpec) -> Row:
    """A row of a file, without white space at the ends of its text."""
    first, second = spec.columns.values()
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
    return Row(text, label, where)


Cells = Callable[[], dict[str, str]]
"""Returns the cells of a row by their columns. Raises ConfigError if that row has others."""


def _records(
    path: Path, data: bytes, spec: PairsSpec, known: Mapping[str, int]
) -> Iterator[tuple[str, Cells]]:
    """(FILE:LINE, the cells of a sample) for each sample of a file."""
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
            yield f"{path}:{number}", partial(_object, line, f"{path}:{number}")


def _cells(
    path: Path, lines: list[str], spec: PairsSpec, known: Mapping[str, int]
) -> Iterator[tuple[str, Cells]]:
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
                inside = lines[start : reader.line_num]
                if row := _swallowed(inside, columns, spec, delimiter, known):
                    raise ConfigError(
                        f"{where}: a quoted text goes on for {len(inside)} more lines, and one of "
                        f"them is a row itself: {row[:60]!r}. Close the quote, write a quote in a "
                        'text twice (""), or use JSON lines.'
                    )
                yield where, partial(_by_column, columns, cells, where, delimiter)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}: in the row of line {start}: {error}.") from error


def _by_column(
    columns: Sequence[str], cells: Sequence[str], where: str, delimiter: str
) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ConfigError(
            f"{where}: {len(cells)} cells in a table of {len(columns)} columns. Put a text with "
            f"{delimiter!r} or a line break in it into double quotes."
        )
    return dict(zip(columns, cells, strict=True))


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
        found = json.loads(line, object_pairs_hook=each_once)
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


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Paths in data.train, data.test and "
            "data.shifts start from the folder in which soupray runs."
        ) from error
