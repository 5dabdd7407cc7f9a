"""What a person sees: tables that fit 80 columns, and progress with time left.

Results go to stdout, everything else to stderr. Where stderr is no terminal, progress is plain
lines, one every few seconds.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Collection, Sequence
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from soupray.core.names import indented, plain
from soupray.core.progress import Progress, Rows

WIDTH = 80
"""Columns of what is printed. A terminal may have more, but not fewer."""

FOLDED = 24
"""Columns that a text needs at least. A longer one is continued on the next line."""

PLAIN_EVERY_S = 10.0


class _PlainConsole(Console):
    """Prints text as it is: names in it come from files of others, and command no terminal.

    rich makes every text and every cell of a table with the one method that is replaced here.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """`text` without markup; control characters become escapes, as `plain` shows them."""
        lines = "\n".join(map(plain, text.split("\n")))
        return super().render_str(lines, **options | {"markup": False, "emoji": False})


err = _PlainConsole(stderr=True, highlight=False, soft_wrap=True)
out = _PlainConsole(highlight=False, width=WIDTH)


def say(message: str) -> None:
    """A line for the person at the terminal."""
    err.print(Text(indented(message)))


def tell(result: str) -> None:
    """A line of a result on stdout, never wrapped."""
    click.echo(plain(result))


def headline(name: str, rest: str) -> None:
    """A line on stdout that begins with a name in bold."""
    text = Text(wrapped(f"{plain(name)}  {plain(rest)}", "  "))
    text.stylize("bold", 0, len(plain(name)))
    out.print(text)


def duration(seconds: float) -> str:
    """41 s, 3 min 20 s, 2 h 05 min."""
    s = round(max(0.0, seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


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


def line(progress: Progress) -> str:
    """For example: training:  31 % (5 of 16 trials, 3 running), 41 s left."""
    remaining = progress.seconds_left()
    left = "" if remaining is None else f", {duration(remaining)} left"
    if progress.done >= progress.total:
        left = f", took {duration(progress.seconds)}"
    share = min(100, 100 * progress.done // max(1, progress.total))
    return f"{progress.what}: {share:3d} %{progress.note}{left}"


class Bars:
    """Shows one progress at a time: refreshed in place in a terminal, else as lines."""

    def __init__(self) -> None:
        self._shown: Progress | None = None
        self._live = Live(console=err, auto_refresh=False)
        self._said = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show `progress`: see `core.progress.Show`."""
        if progress is not self._shown:
            self._shown, self._said = progress, time.monotonic()
            self._live = Live(console=err, auto_refresh=False)
            if err.is_terminal:
                self._live.start()
        if err.is_terminal:
            self._live.update(_drawn(progress), refresh=True)
            if progress.over is not None:
                self._live.stop()
        elif progress.over or time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            say(line(progress))


def _drawn(progress: Progress) -> Table:
    grid = Table.grid()
    if progress.rows is not None:
        grid.add_row(as_table(progress.rows))
    grid.add_row(line(progress))
    return grid


def as_table(rows: Rows) -> Table:
    """A table in the house style."""
    made = table(*rows.columns, right=rows.numbers)
    for row in rows.rows:
        made.add_row(*row)
    return made


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house style: numbers are never cut, and long texts are continued.

    Args:
        *columns: their titles.
        right: the columns that are numbers.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        if column in right:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold")
    return made


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
