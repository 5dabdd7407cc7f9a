"""Predict many inputs, and write the predictions as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from soupray.core.arrays import Logits
from soupray.core.errors import ConfigError
from soupray.core.progress import Progress, Show
from soupray.core.records import Record, decode, encode
from soupray.distributed.spread import spread
from soupray.inference.load import load_found
from soupray.inference.meaning import Meaning, Wanted
from soupray.inference.model import Model
from soupray.inference.sources import Inputs
from soupray.inference.what import Found
from soupray.reporting.recipe_file import spec_of

FORMATS = (".csv", ".jsonl", ".parquet")
Write = Callable[[list[dict[str, Any]]], None]
"""Writes some predictions: a row for each, values by column."""


class Predicted(Record, frozen=True, kw_only=True):
    """How many inputs were predicted, which could not be read, and what was done to the others.

    Attributes:
        predicted: number of inputs with a prediction.
        failed: why an input could not be read, by its name.
        done: what was done to inputs, in words, and how often.
        classes: number of inputs by predicted class; empty where there are no classes.
    """

    predicted: int
    failed: dict[str, str]
    done: dict[str, int]
    classes: dict[str, int]


class Part(Record, frozen=True, kw_only=True):
    """What came of some inputs that follow each other.

    Attributes:
        size: their number.
        rows: positions among them of the M inputs that could be read.
        logits: of the model, float32 [M, C], as bytes.
        problems: (position, why) of each input that cannot be read.
        done: what was done to inputs, in words, and how often.
    """

    size: int
    rows: list[int]
    logits: bytes
    problems: list[tuple[int, str]]
    done: dict[str, int]


def answered(model: Model, given: Any) -> Iterator[Part]:
    """Predict inputs, part by part.

    Args:
        model: the model.
        given: what `model.reader.split` returned.
    """
    counted = model.reader.counted
    for part, read in model.parts(given):
        yield Part(
            size=len(part),
            rows=read.rows,
            logits=model.run(read.samples).tobytes(),
            problems=sorted(read.problems.items()),
            done=counted.taken(),
        )


class Again(NamedTuple):
    """How an actor loads the model that the driver has loaded; fields as in `soupray.load`.

    With `texts` it reads texts, see `Model.texts`.
    """

    found: Found
    home: Path
    batch_size: int | None
    calibrated: bool
    texts: bool = False

    def answer(self) -> Callable[[list[str]], bytes]:
        """Load the model. Return the function that answers a part of the inputs."""
        model = load_found(self.found, self.home, None, self.batch_size)
        model = model.calibrated() if self.calibrated else model
        model = model.texts() if self.texts else model
        return lambda given: encode(list(answered(model, given)))


def parts_of(model: Model, given: list[str], address: str | None, again: Again) -> Iterator[Part]:
    """Predict inputs, part by part, in their order: here, or on a Ray cluster.

    Args:
        model: the model.
        given: paths, URLs or texts. On a cluster, all nodes can read the paths.
        address: of the cluster; `local` for Ray on this machine; None for this process.
        again: how an actor of the cluster loads the model.

    Raises:
        ConfigError: Ray does not answer, or the store is on one machine and the cluster is not.
        EvaluationError: an actor ended.
    """
    if address is None:
        yield from answered(model, given)
        return
    if model.reader.kind == "images":  # actors have another working directory
        given = [one if "://" in one else str(Path(one).absolute()) for one in given]
    spec = spec_of(again.found.recipe)
    for found in spread(spec, address, again.answer, given, model.part):
        yield from decode(found, list[Part])


def predict(
    parts: Iterator[Part],
    inputs: Inputs,
    meaning: Meaning,
    wanted: Wanted,
    write: Write,
    show: Show | None = None,
) -> Predicted:
    """Write predictions, each part at once.

    Args:
        parts: what came of the inputs, in their order.
        inputs: the inputs.
        meaning: of the model's outputs.
        wanted: what is written.
        write: receives the rows.
        show: shows the progress.
    """
    failed: dict[str, str] = {}
    done, counts, predicted, first = Counter[str](), Counter[str](), 0, 0
    with Progress("predicting", len(inputs.given), show) as progress:
        for part in parts:
            names = inputs.names[first : first + part.size]
            failed |= {names[row]: why for row, why in part.problems}
            shape = (len(part.rows), -1 if part.rows else meaning.width)
            found: Logits = np.frombuffer(part.logits, np.float32).reshape(shape)
            counts.update(meaning.counted(found))
            predicted += len(found)
            write(meaning.rows([names[row] for row in part.rows], found, wanted))
            done.update(part.done)
            first += part.size
            progress.note = f" ({len(failed)} cannot be read)" if failed else ""
            progress.advance(part.size)
    by_class = {name: counts[name] for name in meaning.classes if counts[name]}
    return Predicted(predicted=predicted, failed=failed, done=dict(done), classes=by_class)


@contextmanager
def writer(
    output: Path | None, columns: Mapping[str, type], out: TextIO, quiet: bool = False
) -> Iterator[Write]:
    """Open what predictions are written to. A file gets its name when it is complete.

    Args:
        output: a file that ends in one of FORMATS; None for CSV on `out`.
        columns: the type of each column by its name.
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


def _csv(file: TextIO, columns: Mapping[str, type]) -> Write:
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
def _parquet(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float32()}
    schema = pa.schema([(column, kinds[kind]) for column, kind in columns.items()])
    with pq.ParquetWriter(path, schema) as file:
        yield lambda rows: file.write_table(pa.Table.from_pylist(rows, schema=schema))
