"""The library's log as messages to a person, on the command line and in a notebook."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from soupray.core.progress import Show

log = logging.getLogger("soupray")


class _Messages(logging.Handler):
    """The library's log as lines on stderr; a warning is a note."""

    def emit(self, record: logging.LogRecord) -> None:
        from soupray.reporting.live import say  # rich takes time, which `--help` has not

        note = "note: " if record.levelno >= logging.WARNING else ""
        say(note + record.getMessage())


def show_messages() -> None:
    """Show what the library logs, from INFO on. Calling it again changes nothing."""
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Messages) for handler in log.handlers):
        log.addHandler(_Messages())


@contextmanager
def shown(show: bool) -> Iterator[Show | None]:
    """Show messages and progress in a `with` block, and be silent again after it.

    Args:
        show: False: show nothing.

    Yields:
        What shows a progress, or None.
    """
    if not show:
        yield None
        return
    from soupray.reporting.live import Bars

    handlers, level = list(log.handlers), log.level
    show_messages()
    try:
        yield Bars()
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
