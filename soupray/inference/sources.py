"""The inputs that a user names on the command line: folders, files, tables, standard input."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from soupray.core.errors import ConfigError, InputError
from soupray.core.names import plain
from soupray.data.folders import EXTENSIONS, walked
from soupray.data.splits import shown_name
from soupray.spec.files import each_once, read_text

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
COLUMNS = {"texts": ("text",), "images": ("path", "file", "image")}
"""Names of the column that is read, if the user names none."""


class Inputs(NamedTuple):
    """Inputs in their order.

    Attributes:
        names: how results name each input: its path, or FILE:LINE of a text.
        given: what the model reads: a path, a URL or a text.
        notes: what was left out, and why.
    """

    names: list[str]
    given: list[str]
    notes: list[str]


def find_inputs(
    named: Sequence[str], kind: str, column: str | None, standard_input: TextIO
) -> Inputs:
    """Return all inputs that are named.

    Images: a folder, with all folders in it; a file; a URL of an object; a table (.csv, .tsv,
    .jsonl) with paths. Texts: a table, or a .txt file with one text in each line. `-` is standard
    input: a path or a text in each line. Paths in a table are relative to the table.

    Args:
        named: the names.
        kind: `images` or `texts`.
        column: of a table; None for one of COLUMNS, or for the only column.
        standard_input: is read for `-`.

    Raises:
        ConfigError: a file cannot be read, or is of a kind that the model does not read.
        InputError: there is no input at all.
    """
    found = Inputs([], [], [])
    for name in named:
        for shown, given in _of(name, kind, column, standard_input, found.notes):
            found.names.append(plain(shown))  # not UTF-8, or commands of a terminal: as escapes
            found.given.append(given)
    if not found.names:
        said = "; ".join(found.notes)
        raise InputError(f"no {kind} in {', '.join(named)}{f' ({said})' if said else ''}.")
    return found


def _of(
    name: str, kind: str, column: str | None, standard_input: TextIO, notes: list[str]
) -> Iterable[tuple[str, str]]:
    if name == "-":
        lines = (line.rstrip("\r\n") for line in standard_input)
        return [(f"-:{n}" if kind == "texts" else s, s) for n, s in enumerate(lines, 1) if s]
    path = Path(name)
    if "://" in name and not path.exists():
        return [(name, name)]
    if path.suffix.lower() in (*TABLES, *JSON_LINES):
        return _of_table(path, kind, column)
    if kind == "texts":
        if path.is_dir() or path.suffix.lower() != ".txt":
            raise ConfigError(
                f"{name}: this model reads texts: name a table ({', '.join(TABLES)}, "
                f"{', '.join(JSON_LINES)}), a .txt file with one text in each line, or - for "
                "standard input."
            )
        numbered = enumerate(read_text(path).splitlines(), 1)
        return [(f"{path}:{number}", line) for number, line in numbered if line.strip()]
    return _in_folder(path, notes) if path.is_dir() else [(name, name)]


def _in_folder(root: Path, notes: list[str]) -> list[tuple[str, str]]:
    """Return the image files in a folder and in the folders in it, sorted."""
    found, others = list[str](), list[str]()
    try:
        for folder, files, loops in walked(root):
            others += loops
            for file in files:
                path = str(Path(folder, file))
                (found if file.lower().endswith(EXTENSIONS) else others).append(path)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}.") from error
    if others:
        notes.append(
            f"{len(others)} of {len(others) + len(found)} files in {root} are left out, like "
            f"{shown_name(Path(sorted(others)[0]).name)}: images end in {', '.join(EXTENSIONS)}"
        )
    return [(path, path) for path in sorted(found)]


def _of_table(path: Path, kind: str, column: str | None) -> Iterator[tuple[str, str]]:
    text = read_text(path)
    rows = _json_rows(path, text) if path.suffix.lower() in JSON_LINES else _cells(path, text)
    for line, row in rows:
        value = row[_column(row, kind, column, f"{path}:{line}")]
        if not isinstance(value, str):
            raise ConfigError(f"{path}:{line}: {str(value)[:40]!r} is not a text.")
        if kind == "images":
            where = value if "://" in value else str(path.parent / value)
            yield where, where
        else:
            yield f"{path}:{line}", value


def _column(row: dict[str, Any], kind: str, column: str | None, where: str) -> str:
    if column is not None and column in row:
        return column
    known = [name for name in COLUMNS[kind] if name in row]
    if column is None and (known or len(row) == 1):
        return known[0] if known else next(iter(row))
    raise ConfigError(
        f"{where}: no column {column or COLUMNS[kind][0]!r}. Its columns are: "
        f"{', '.join(map(shown_name, row))}. Name one with --column."
    )


def _cells(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, cells by column) of a table. Raises ConfigError if it is broken."""
    lines = text.splitlines(keepends=True)
    reader = csv.reader(lines, delimiter=TABLES[path.suffix.lower()], strict=True)
    columns: list[str] = []
    start = 1
    try:
        for cells in reader:
            if not columns:
                columns = cells
                if len(set(columns)) < len(columns):
                    raise ConfigError(f"{path}:1: two columns have the same name.")
            elif cells:
                if len(cells) != len(columns):
                    raise ConfigError(
                        f"{path}:{start}: {len(cells)} cells in a table of {len(columns)} columns. "
                        "Put a text with a separator or a line break in it into double quotes."
                    )
                yield start, dict(zip(columns, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}: in the row of line {start}: {error}.") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: a line must be a JSON object, not {line[:40]!r}.")
        yield number, row
