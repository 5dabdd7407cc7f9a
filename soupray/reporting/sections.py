"""Sections that other packages add to a report: sentences, tables and figures, as records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from soupray.core.records import Record
from soupray.spec.files import atomic_write
from soupray.store import layout
from soupray.store.objects import Store, find_record

SECTIONS = "diagnostics.json"
"""File beside a leaderboard: the sections of its report that `soupray diagnose` wrote."""

PNG_SCALE = 2.0
"""Pixels of a PNG for each pixel of the chart, for screens with twice the usual density."""

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_]*\Z")]
"""Of a section or a figure: it names an element of a page, and a file."""


class Table(Record, frozen=True, kw_only=True):
    """A table as text.

    Attributes:
        columns: titles, which differ.
        numbers: the columns that are numbers.
        rows: the cells of each row, in the order of `columns`.
        least: columns that a narrow terminal may leave out, the least important first.
        meaning: what the columns are, in words.
    """

    columns: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...]
    least: tuple[str, ...] = ()
    meaning: str


class Figure(Record, frozen=True, kw_only=True):
    """A figure.

    Attributes:
        name: unique among all figures of a report.
        spec: in Vega-Lite; see `vega.figure`.
    """

    name: Name
    spec: dict[str, Any]


class Card(Record, frozen=True, kw_only=True):
    """A sample in a gallery.

    Attributes:
        image: a `data:` URL; empty for a text.
        text: the text; empty for an image.
        lines: what stands under it.
    """

    image: str
    text: str
    lines: tuple[str, ...]


class Gallery(Record, frozen=True, kw_only=True):
    """Samples side by side."""

    title: str
    cards: tuple[Card, ...]


class Section(Record, frozen=True, kw_only=True):
    """A section of a report, and what a terminal prints.

    Attributes:
        name: unique among the sections of a report.
        title: its heading.
        about: what is measured, with its source, for one who does not know it.
        tables: the numbers.
        sentences: what the numbers say.
        figures: the numbers again, as pictures.
        galleries: samples, which only the report shows.
    """

    name: Name
    title: str
    about: str
    tables: tuple[Table, ...] = ()
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()


def stored_sections(store: Store, sweep: str, key: str) -> tuple[Section, ...]:
    """Return the sections that are stored for a leaderboard.

    Args:
        store: the store.
        sweep: name of the sweep.
        key: of the run of `soup`.
    """
    path = layout.leaderboard_file(sweep, key, SECTIONS)
    return find_record(store, path, tuple[Section, ...]) or ()


def draw_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw figures as PNG and SVG files, and return their paths.

    Args:
        figures: the figures.
        folder: where the files are written.
    """
    import vl_convert

    paths = []
    for figure in figures:
        drawn = {
            "png": vl_convert.vegalite_to_png(figure.spec, scale=PNG_SCALE),
            "svg": vl_convert.vegalite_to_svg(figure.spec).encode(),
        }
        for ending, data in drawn.items():
            paths.append(folder / f"{figure.name}.{ending}")
            atomic_write(paths[-1], data)
    return paths
