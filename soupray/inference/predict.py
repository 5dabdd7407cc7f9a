"""Predict many inputs, and write the predictions as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from soupray.core.arrays import Probabilities
from soupray.core.errors import ConfigError
from soupray.core.progress import Progress, Show
from soupray.core.records import Record
from soupray.inference.model import Model
from soupray.inference.sources import Inputs

FORMATS = (".csv", ".jsonl", ".parquet")
Write = Callable[[list[dict[str, Any]]], None]
"""Writes some predictions: a row for each, values by column."""


class Wanted(NamedTuple):
    """What of a prediction is written: the `top` classes, and all `probabilities` if true."""

    top: int = 1
    probabilities: bool = False


class Predicted(Record, frozen=True, kw_only=True):
    """How many inputs were predicted, which could not be read, and what was done to the others.

    Attributes:
        predicted: number of inputs with a prediction.
        failed: why an input could not be read, by its name.
        done: what was done to inputs, in words, and how often.
        classes: number of inputs by their most probable class.
    """

    predicted: int
    failed: dict[str, str]
    done: dict[str, int]
    classes: dict[str, int]


def predict(
    model: Model, inputs: Inputs, wanted: Wanted, write: Write, show: Show | None = None
) -> Predicted:
    """Predict all inputs, part by part, and write each part at once.

    Args:
        model: the model.
        inputs: the inputs.
        wanted: what is written.
        write: receives the rows.
        show: shows the progress.
    """
    failed: dict[str, str] = {}
    counts = np.zeros(len(model.classes), int)
    first = 0
    with Progress("predicting", len(inputs.given), show) as progress:
        for part, read in model.parts(inputs.given):
            names = inputs.names[first : first + len(part)]
            failed |= {names[row]: why for row, why in read.problems.items()}
            found = model.probabilities(model.run(read.samples))
            counts += np.bincount(found.argmax(axis=1), minlength=len(counts))
            write(rows_of([names[row] for row in read.rows], found, model.classes, wanted))
            first += len(part)
            progress.note = f" ({len(failed)} cannot be read)" if failed else ""
            progress.advance(len(part))
    classes = {name: int(n) for name, n in zip(model.classes, counts, strict=True) if n}
    return Predicted(
        predicted=int(counts.sum()),
        failed=failed,
        done=dict(model.reader.counted.done),
        classes=classes,
    )


def columns_of(classes: tuple[str, ...], wanted: Wanted) -> list[str]:
    """Return the names of the columns: input, class, probability, class_2, ..., p(CLASS), ..."""
    columns = ["input"]
    for place in range(1, min(wanted.top, len(classes)) + 1):
        number = "" if place == 1 else f"_{place}"
        columns += [f"class{number}", f"probability{number}"]
    return columns + ([f"p({name})" for name in classes] if wanted.probabilities else [])


def rows_of(
    names: list[str], found: Probabilities, classes: tuple[str, ...], wanted: Wanted
) -> list[dict[str, Any]]:
    """Return the rows to write.

    Args:
        names: of the N inputs.
        found: probabilities [N, C].
        classes: names of the C classes.
        wanted: what is written.
    """
    columns = columns_of(classes, wanted)
    rows = []
    for name, row in zip(names, found, strict=True):
        best = np.argsort(-row, kind="stable")[: wanted.top]
        values: list[Any] = [name]
        for k in best:
            values += [classes[k], float(row[k])]
        values += [float(p) for p in row] if wanted.probabilities else []
        rows.append(dict(zip(columns, values, strict=True)))
    return rows


@contextmanager
def writer(
    output: Path | None, columns: list[str], out: TextIO, quiet: bool = False
) -> Iterator[Write]:
    """Open what predictions are written to. A file gets its name when it is complete.

    Args:
        output: a file that ends in one of FORMATS; None for CSV on `out`.
        columns: the columns.
        out: standard output.
        quiet: write nothing to `out`.

    Raises:
        ConfigError: the file cannot be written.
    """
    if output is None:
        yield (lambda rows: None) if quiet else _csv(out, columns)
        return
    part = output.with_name(f"{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix.lower() == ".parquet":
            with _parquet(part, columns) as write:
                yield write
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                yield _csv(file, columns) if output.suffix.lower() == ".csv" else _jsonl(file)
        part.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}.") from error


def _csv(file: TextIO, columns: list[str]) -> Write:
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()

    def write(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    return write


def _jsonl(file: TextIO) -> Write:
    def write(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


@contextmanager
def _parquet(path: Path, columns: list[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(column: str) -> pa.DataType:
        is_text = column == "input" or column.startswith("class")
        return pa.string() if is_text else pa.float32()

    schema = pa.schema([(column, kind(column)) for column in columns])
    with pq.ParquetWriter(path, schema) as file:
        yield lambda rows: file.write_table(pa.Table.from_pylist(rows, schema=schema))
