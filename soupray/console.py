"""What a person sees: tables that fit 100 columns, progress with time left.

Results go to stdout, everything else to stderr. Where stderr is no terminal, progress is plain
lines, one every few seconds.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

WIDTH = 100
PLAIN_EVERY_S = 10.0

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, width=WIDTH)


def say(message: str) -> None:
    """A line for the person at the terminal."""
    err.print(message, markup=False)


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


class Progress:
    """Work done of work planned, with time left from the pace of this run.

    In a terminal, `body` may draw a table that is refreshed in place.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._started = self._said = time.monotonic()
        self._live = Live(console=err, auto_refresh=False)
        self.note = ""

    def __enter__(self) -> Progress:
        if err.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if err.is_terminal:
            self._live.stop()
        elif kind is None:
            say(self.line())

    def advance(self, work: int = 1) -> None:
        """`work` more units are done."""
        self._done += work
        self.refresh()

    def more(self, work: int) -> None:
        """`work` more units are planned."""
        self._total += work

    def finish(self) -> None:
        """All is done: what was found, or turned out not to be needed, counts too."""
        self._done = self._total
        self.refresh()

    def seconds_left(self) -> float | None:
        """At the pace of this run; None before anything is done."""
        spent, made = time.monotonic() - self._started, self._done - self._first
        return spent * (self._total - self._done) / made if made else None

    def line(self) -> str:
        """For example: trials 5/16, 3 running, 41 s left."""
        remaining = self.seconds_left()
        left = "" if remaining is None else f", {duration(remaining)} left"
        if self._done >= self._total:
            left = f", took {duration(time.monotonic() - self._started)}"
        share = min(100, 100 * self._done // max(1, self._total))
        return f"{self._what}: {share:3d} %{self.note}{left}"

    def refresh(self, table: Table | None = None) -> None:
        """Show where we are."""
        if err.is_terminal:
            grid = Table.grid()
            if table is not None:
                grid.add_row(table)
            grid.add_row(self.line())
            self._live.update(grid, refresh=True)
        elif time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            say(self.line())


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house style; the columns in `right` are numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return made
