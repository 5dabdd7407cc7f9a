"""Results as a person sees them: tables that fit 80 columns, and sizes, on stdout.

What is said while something runs is in `reporting/live.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

import click
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from soupray.core.names import plain
from soupray.reporting.live import WIDTH, PlainConsole, table

FOLDED = 24
"""Columns that a text needs at least. A longer one is continued on the next line."""

out = PlainConsole(highlight=False, width=WIDTH)


def tell(result: str) -> None:
    """A line of a result on stdout, never wrapped."""
    click.echo(plain(result))


def headline(name: str, rest: str) -> None:
    """A line on stdout that begins with a name in bold."""
    text = Text(wrapped(f"{plain(name)}  {plain(rest)}", "  "))
    text.stylize("bold", 0, len(plain(name)))
    out.print(text)


def size(count: float) -> str:
    """3.3 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: float | int | str | None) -> str:
    """A hyperparameter: 0.000312 for a float, everything else as it is; empty for None."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def fitted(
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    right: Collection[str],
    least: Sequence[str],
) -> tuple[Table, list[str]]:
    """A table in the house style without the columns that do not fit.

    Args:
        columns: their titles, which differ.
        rows: the cells of each row.
        right: the columns that are numbers.
        least: the columns that may be left out, the least important first.

    Returns:
        The table, and the columns that were left out, in the order of the table.
    """

    def needed(column: str) -> int:
        k = columns.index(column)
        width = max(cell_len(text) for text in (column, *(row[k] for row in rows)))
        return width if column in right else max(cell_len(column), min(width, FOLDED))

    kept = list(columns)
    for column in least:
        if sum(needed(one) + 1 for one in kept) - 1 <= WIDTH:
            break
        kept.remove(column)
    made = table(*kept, right=tuple(c for c in kept if c in right))
    for row in rows:
        made.add_row(*(cell for column, cell in zip(columns, row, strict=True) if column in kept))
    return made, [column for column in columns if column not in kept]


def wrapped(text: str, indent: str = "") -> str:
    """A text in lines of WIDTH; those after the first begin with `indent`."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
