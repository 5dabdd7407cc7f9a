"""The progress of a piece of work, in numbers. The caller passes a function that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple


class Rows(NamedTuple):
    """A table as plain text.

    Attributes:
        columns: their names.
        numbers: the names of the columns that contain numbers.
        rows: the cells of each row, in the order of the columns.
    """

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Progress:
    """How much of the planned work is done, and an estimate of the time left.

    A context manager: the work begins when the context is entered and ends when it is left. `show`
    is called with this object at the beginning, after every change and at the end.

    Attributes:
        what: the work, in one or two words.
        total, done: the planned units of work, and the finished ones.
        note: a remark to show after the finished share, or an empty text.
        rows: a table to show above, or None.
        over: None while the work goes on. After the end: True if there was no exception.
        seconds: time since the beginning.
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
        """Count `work` more units as done, and show the progress."""
        self.done += work
        self._show(self)

    def more(self, work: int) -> None:
        """Plan `work` more units."""
        self.total += work

    def finish(self) -> None:
        """Count all units as done, also those that were known before or were not needed."""
        self.done = self.total
        self._show(self)

    def refresh(self, rows: Rows) -> None:
        """Replace the table, and show the progress."""
        self.rows = rows
        self._show(self)

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    def seconds_left(self) -> float | None:
        """Estimated seconds until the end, at the pace so far. None before a unit is done."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


Show = Callable[[Progress], None]
"""A function that shows a progress to the user, for example as a bar on the command line."""
