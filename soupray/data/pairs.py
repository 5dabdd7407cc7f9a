"""Pairs of a query and the document that is right for it: their splits, and pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Labels, Uint8
from soupray.core.errors import ConfigError
from soupray.core.records import Objective
from soupray.core.texts import BETWEEN, pack_pairs
from soupray.data.captions import read_captions
from soupray.data.splits import Part, Samples, draw, held_out_shares, listing, set_aside
from soupray.data.text import first_equal, ids_of, pairs_of, short
from soupray.spec.tables import CaptionsSpec, PairsSpec, TextSpec


def split_pairs(spec: PairsSpec, seed: int) -> dict[str, Part]:
    """The splits train, held_out, rank (if the spec has it) and test, by name, drawn at random.

    What is drawn are queries: all pairs of a query, such as the captions of an image, go with it.

    Args:
        spec: the files and the sizes of the splits.
        seed: of the draw.

    Returns:
        Samples as `read_pairs` returns them, or images as `read_captions` does.

    Raises:
        ConfigError: a file cannot be read as pairs, or has too few of them.
    """
    every = pairs_in(spec.train, spec)
    # One class for all: the draw is not by class.
    rows = listing(every.ids, np.zeros(len(every.ids)), lambda row: b"")
    left, listed = set_aside(rows, spec.held_out)
    queries = left.take(np.unique(every.labels[left.rows, 0], return_index=True)[1])
    wanted = held_out_shares(spec.held_out, 1)
    if isinstance(spec.test, int):
        wanted["test"] = [spec.test]
    asked = sum(n for counts in wanted.values() for n in counts)
    if asked >= len(queries.ids):
        several = len(queries.ids) < len(left.ids)
        raise ConfigError(
            f"data.{' and data.'.join(wanted)} need {asked} pairs and leave none to train on: "
            f"{spec.train} has {len(queries.ids)}{' of different queries' * several}. "
            "Lower them."
        )
    drawn = draw(queries, wanted, rest="train", seed=seed)
    numbers = every.labels[left.rows, 0]
    chosen = {
        name: left.rows[np.isin(numbers, every.labels[part.rows, 0])]
        for name, part in drawn.items()
    }
    chosen |= {name: part.rows for name, part in listed.items()}
    parts: dict[str, Part] = {name: every.take(rows) for name, rows in chosen.items()}
    if isinstance(spec.test, str):
        parts["test"] = pairs_in(spec.test, spec)
    return {name: parts[name] for name in ("train", "held_out", "rank", "test") if name in parts}


def pairs_in(named: str, spec: PairsSpec) -> Part:
    """All pairs of a file, of texts or of images and captions.

    Args:
        named: path of the file.
        spec: says which they are.

    Raises:
        ConfigError: the file cannot be read as pairs.
    """
    return read_captions(named, spec) if isinstance(spec, CaptionsSpec) else read_pairs(named, spec)


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
    path, rows, notes = pairs_of(named, spec)
    queries = short([(row.text, row.where) for row in rows], path, spec)
    documents = short([(row.label.strip(), row.where) for row in rows], path, spec)
    numbers = np.array([first_equal(queries), first_equal(documents)], np.int64).T
    pairs = pack_pairs(list(zip(queries, documents, strict=True)))
    return Samples(ids_of(path, len(rows)), pairs, np.ascontiguousarray(numbers), notes)


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
