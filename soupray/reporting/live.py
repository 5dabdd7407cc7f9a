"""What a person sees on stderr while something runs: messages, and progress with time left.

In a terminal and in a notebook, progress is refreshed in place; elsewhere it is plain lines, one
every few seconds.
"""

from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from soupray.core.names import indented, plain
from soupray.core.progress import Progress, Rows

WIDTH = 80
"""Columns of what is printed. A terminal may have more, but not fewer."""

PLAIN_EVERY_S, CELL_EVERY_S = 10.0, 0.5
"""Seconds between two lines, and between two updates of a notebook."""

CELL_WIDTH = 100
"""Columns of a progress in a notebook."""


class PlainConsole(Console):
    """Prints text as it is: names in it come from files of others, and command no terminal.

    rich makes every text and every cell of a table with the one method that is replaced here.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """`text` without markup; control characters become escapes, as `plain` shows them."""
        lines = "\n".join(map(plain, text.split("\n")))
        return super().render_str(lines, **options | {"markup": False, "emoji": False})


err = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A line for the person at the terminal."""
    err.print(Text(indented(message)))


def duration(seconds: float) -> str:
    """41 s, 3 min 20 s, 2 h 05 min."""
    s = round(max(0.0, seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def line(progress: Progress) -> str:
    """For example: training:  31 % (5 of 16 trials, 3 running), 41 s left."""
    remaining = progress.seconds_left()
    left = "" if remaining is None else f", {duration(remaining)} left"
    if progress.done >= progress.total:
        left = f", took {duration(progress.seconds)}"
    share = min(100, 100 * progress.done // max(1, progress.total))
    return f"{progress.what}: {share:3d} %{progress.note}{left}"


class Bars:
    """Shows one progress at a time, in place in a terminal and in a notebook, else as lines."""

    def __init__(self) -> None:
        self._shown: Progress | None = None
        self._live = Live(console=err, auto_refresh=False)
        self._cell: Any = None
        self._said = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show `progress`: see `core.progress.Show`."""
        if progress is not self._shown:
            self._shown, self._said, self._cell = progress, time.monotonic(), None
            self._live = Live(console=err, auto_refresh=False)
            if err.is_terminal:
                self._live.start()
        if err.is_terminal:
            self._live.update(_drawn(progress), refresh=True)
            if progress.over is not None:
                self._live.stop()
        elif progress.over or self._is_due(CELL_EVERY_S if err.is_jupyter else PLAIN_EVERY_S):
            self._said = time.monotonic()
            if err.is_jupyter:
                self._show_in_cell(progress)
            else:
                say(line(progress))

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._said > seconds

    def _show_in_cell(self, progress: Progress) -> None:
        """Show a progress in place in a notebook; rich would need ipywidgets for it."""
        from IPython.display import display

        text = io.StringIO()
        plainly = PlainConsole(file=text, width=CELL_WIDTH, force_jupyter=False, color_system=None)
        plainly.print(_drawn(progress))
        bundle = {"text/plain": text.getvalue().rstrip()}
        if self._cell is None:
            self._cell = display(bundle, raw=True, display_id=True)
        else:
            self._cell.update(bundle, raw=True)


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
