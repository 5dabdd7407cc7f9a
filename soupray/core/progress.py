"""How far a piece of work is, in numbers; whoever wants to see them passes a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple


class Rows(NamedTuple):
    """A table as plain text: its columns, those of them that hold numbers, and its rows."""

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Progress:
    """Work done of work planned, with the time left at the pace of this run.

    A context manager: the work begins when it is entered and is over when it is left. `show` is
    called with this object at its beginning, after every change and at its end.

    Attributes:
        what: the work, in a word or two.
        total, done: units of work that are planned, and those that are done.
        note: a remark behind the share that is done, or nothing.
        rows: a table to be shown above, or None.
        over: None while the work goes on; then whether it ended without an exception.
        seconds: how long the work took until now.
    """

    def __init__(self, what: str, total: int, show: Show | None = None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.note = ""
        self.rows: Rows | None = None
        self.over: bool | None = None
        self._show = show or (lambda progress: None)
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        self._show(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over = kind is None
        self._show(self)

    def advance(self, work: int = 1) -> None:
        """`work` more units are done."""
        self.done += work
        self._show(self)

    def more(self, work: int) -> None:
        """`work` more units are planned."""
        self.total += work

    def finish(self) -> None:
        """All is done: what was known already, or turned out not to be needed, counts too."""
        self.done = self.total
        self._show(self)

    def refresh(self, rows: Rows) -> None:
        """Show another table."""
        self.rows = rows
        self._show(self)

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def seconds_left(self) -> float | None:
        """At the pace of this run; None before anything is done."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


Show = Callable[[Progress], None]
"""Shows a progress to somebody: the bars of the command line."""
