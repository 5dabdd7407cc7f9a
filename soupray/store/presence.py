"""Say that a soup, a check or a diagnosis of a sweep runs, so that others can see it and stop it.

A sweep has one driver, whose lease excludes others. Soups exclude nobody: each has an object of its
own beside the lease, written again while it runs. Whoever wants it to stop writes a request beside
that object, which is read whenever the object is written.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from soupray.core.errors import CheckpointError, EvaluationError, StoreError
from soupray.core.progress import Progress
from soupray.core.records import Record, encode
from soupray.store import layout, lease
from soupray.store.lease import Process, StopRequest, is_dead, this_driver, this_process
from soupray.store.objects import Store, find_record

log = logging.getLogger(__name__)


class Working(Record, frozen=True, kw_only=True):
    """Work on a sweep that runs. Times are seconds since the epoch, by the clock of its machine.

    Attributes:
        what: the verb of the command line: soup, check or diagnose.
        who: machine and process.
        process: see `lease.this_process`.
        since: when it began.
        expires: it runs no more if it did not write this again until then.
        doing: the step that it is at, in words; empty at the beginning.
        share: the finished part of this step, from 0 to 1.
    """

    what: str
    who: str
    process: Process
    since: float
    expires: float
    doing: str = ""
    share: float = 0.0

    @property
    def name(self) -> str:
        """For example: soup of node-3, pid 4711."""
        return f"{self.what} of {self.who}"


class Present(NamedTuple):
    """Work that runs, and the name of its object."""

    id: str
    working: Working


class Presence:
    """Context manager: while it is open, the store says that this process works on a sweep.

    A store that cannot be reached stops nothing: others then do not see this work.
    """

    def __init__(self, store: Store, sweep: str, what: str) -> None:
        self._store, self._sweep, self._what = store, sweep, what
        self.id = uuid.uuid4().hex
        self._since = time.time()
        self._doing, self._share = "", 0.0
        self._asked: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="presence")

    def __enter__(self) -> Presence:
        with suppress(StoreError):
            for path, ended in _read(self._store, self._sweep):
                if not _runs(ended):  # it was killed
                    self._store.delete(path)
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for path in (layout.stop_of(self._sweep, self.id), layout.working(self._sweep, self.id)):
            with suppress(StoreError):
                self._store.delete(path)

    def follow(self, progress: Progress) -> None:
        """Remember how far the work is, for the next time that it is written."""
        self._doing, self._share = progress.what, min(1.0, progress.done / max(1, progress.total))

    def refuse_stop(self) -> None:
        """Raise EvaluationError if somebody asked this work to stop."""
        if self._asked is not None:
            raise EvaluationError(
                f"{self._asked} asked this {self._what} to stop (`soupray stop`). Run the same "
                "command again: what was evaluated is kept."
            )

    def _keep(self) -> None:
        while not self._over.wait(lease.RENEW_S):
            self._write()
            with suppress(StoreError, CheckpointError):
                path = layout.stop_of(self._sweep, self.id)
                found: StopRequest | None = find_record(self._store, path, StopRequest)
                if found is not None and found.holder == self.id and self._asked is None:
                    log.info(f"{found.who} asked this {self._what} to stop: it ends now.")
                    self._asked = found.who

    def _write(self) -> None:
        made = Working(
            what=self._what,
            who=this_driver(),
            process=this_process(),
            since=self._since,
            expires=time.time() + lease.TERM_S,
            doing=self._doing,
            share=self._share,
        )
        with suppress(StoreError):
            self._store.put(layout.working(self._sweep, self.id), encode(made))


def find_present(store: Store, sweep: str) -> list[Present]:
    """Return the work on `sweep` that runs now, the oldest first.

    A record that cannot be read counts as none. Raises StoreError.
    """
    found = [Present(layout.stem(path), one) for path, one in _read(store, sweep) if _runs(one)]
    return sorted(found, key=lambda one: (one.working.since, one.id))


def _read(store: Store, sweep: str) -> Iterator[tuple[str, Working]]:
    """Yield the paths and records of work that runs, or ran until it was killed."""
    for path in store.list(layout.all_working(sweep)):
        if path != layout.working(sweep, layout.stem(path)):
            continue
        try:
            made: Working | None = find_record(store, path, Working)
        except CheckpointError as error:
            log.warning(f"does this say that something runs? {error}")
            continue
        if made is not None:
            yield path, made


def _runs(one: Working) -> bool:
    return one.expires > time.time() and not is_dead(one.process)


def ask_present_to_stop(store: Store, sweep: str, one: Present) -> None:
    """Ask work that runs to stop the next time that it looks.

    Args:
        store: the store of the sweep.
        sweep: name of the sweep.
        one: the work.

    Raises:
        StoreError: the store cannot be reached.
    """
    made = StopRequest(holder=one.id, who=this_driver(), asked=time.time())
    store.put(layout.stop_of(sweep, one.id), encode(made))
