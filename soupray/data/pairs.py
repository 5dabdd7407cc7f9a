"""Pairs of texts in CSV, TSV or JSON lines: a query, and the document that is right for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Labels, Uint8
from soupray.core.errors import ConfigError
from soupray.core.records import Objective
from soupray.core.texts import BETWEEN, pack_pairs
from soupray.data.splits import Samples, draw, held_out_shares, listing, set_aside
from soupray.data.text import ids_of, rows_of, short
from soupray.spec.data import TextSpec
from soupray.spec.files import path_of


def split_pairs(spec: TextSpec, seed: int) -> dict[str, Samples]:
    """The splits train, held_out, rank (if the spec has it) and test, by name, drawn at random.

    Args:
        spec: the files and the sizes of the splits.
        seed: of the draw.

    Returns:
        Samples as `read_pairs` returns them.

    Raises:
        ConfigError: a file cannot be read as pairs, or has too few of them.
    """
    every = read_pairs(spec.train, spec)
    count = len(every.ids)
    # One class for all: the draw is not by class.
    rows = listing(every.ids, np.zeros(count), lambda row: every.images[row])
    left, listed = set_aside(rows, spec.held_out)
    wanted = held_out_shares(spec.held_out, 1)
    if isinstance(spec.test, int):
        wanted["test"] = [spec.test]
    asked = sum(n for counts in wanted.values() for n in counts)
    if asked >= len(left.ids):
        raise ConfigError(
            f"data.{' and data.'.join(wanted)} need {asked} pairs and leave none to train on: "
            f"{spec.train} has {len(left.ids)}. Lower them."
        )
    drawn = {**draw(left, wanted, rest="train", seed=seed), **listed}
    parts = {name: every.take(part.rows) for name, part in drawn.items()}
    if isinstance(spec.test, str):
        parts["test"] = read_pairs(spec.test, spec)
    return {name: parts[name] for name in ("train", "held_out", "rank", "test") if name in parts}


def read_pairs(named: str, spec: TextSpec) -> Samples:
    """All pairs of a file, with ids like train/123.

    Args:
        named: path of the file.
        spec: the columns of queries and documents, and the largest length of a text.

    Returns:
        Samples with pairs as bytes [N, L], see `core.texts`, and for labels the numbers of query
        and document, int64 [N, 2]: the first row of the file with an equal text.

    Raises:
        ConfigError: the file is missing, broken or empty, a column is not there, or a text is empty
            or too long.
    """
    path = path_of(named, "data")
    rows = list(rows_of(path, spec, {}))
    if not rows:
        raise ConfigError(f"{path}: there is no pair in it.")
    for row in rows:
        if not row.label.strip():
            raise ConfigError(
                f"{row.where}: the document, in column {spec.label_column!r}, is empty. Remove "
                "that line."
            )
    queries = short([(row.text, row.where) for row in rows], path, spec)
    documents = short([(row.label.strip(), row.where) for row in rows], path, spec)
    numbers = np.array([_numbers(queries), _numbers(documents)], np.int64).T
    pairs = pack_pairs(list(zip(queries, documents, strict=True)))
    return Samples(ids_of(path, len(rows)), pairs, np.ascontiguousarray(numbers))


def _numbers(texts: Sequence[str]) -> list[int]:
    """For each text, the position of the first equal one."""
    first: dict[str, int] = {}
    return [first.setdefault(text, place) for place, text in enumerate(texts)]


def queries_of(rows: Uint8) -> Iterator[Any]:
    """The bytes of the query of each pair in `rows` [N, L]."""
    for row in rows:
        yield row[: int(np.argmax(row == BETWEEN))]


def check_gallery(name: str, numbers: Labels, objective: Objective | UnsetType) -> None:
    """Refuse a split in which every model would find each document, or has nothing to learn from.

    Args:
        name: of the split.
        numbers: of the query and the document of each pair, [N, 2].
        objective: what the targets are; other ones than pairs have no gallery.

    Raises:
        ConfigError: the split has too few different documents.
    """
    if objective is UNSET or objective.kind != "retrieval":
        return
    documents = len(np.unique(numbers[:, 1]))
    least = 1 if name == "train" else (objective.first or 1)
    if documents > least:
        return
    said = f"data: the {name} split has {documents} different document{'s' * (documents != 1)}"
    if name == "train":
        raise ConfigError(f"{said}, so that no document is wrong for a query. Add pairs.")
    raise ConfigError(
        f"{said}, so that each query's is among the first {least}, whatever the model is. Add "
        "pairs, or write a metric with a smaller k."
    )
