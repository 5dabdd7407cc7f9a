"""Counts what a running sweep costs, and says when its budget is spent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from soupray.core.errors import CheckpointError, StoreError
from soupray.core.trials import EpochRecord, Manifest, Trial
from soupray.search.budget import UNSUGGESTED, Account, Book, Stretch, account, in_words, stretch_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.sweep.progress import SweepProgress

log = logging.getLogger(__name__)


class Meter:
    """Receives the events of a sweep (`distributed.tune.TrialEvents`), counts, and passes them on.

    A trial that is over is counted by its manifest. An attempt that ended without one is counted by
    the clock until then, in this run; a later run counts what is recorded of it.
    """

    def __init__(
        self,
        spec: SweepSpec,
        book: Book,
        progress: SweepProgress,
        read: Callable[[str], Manifest],
        tell: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start with what is in the store.

        Args:
            spec: the sweep.
            book: the records of the sweep.
            progress: receives the events, too.
            read: returns the manifest of a trial from its key.
            tell: called once, when the budget is spent: no further trial may start.
            clock: Unix time in seconds.
        """
        self._spec, self._book, self._next, self._read = spec, book, progress, read
        self._tell, self._clock = tell, clock
        self._since: dict[str, float] = {}
        self._starting = set[str]()  # of these no epoch was heard yet
        self.over: tuple[str, ...] = ()
        progress.extra = lambda: f", {in_words(self.account(), spec)}"

    def account(self) -> Account:
        """Return what was spent until now."""
        now = self._clock()
        running = {key: Stretch(since, now) for key, since in self._since.copy().items()}
        return account(self._book, self._spec, running)

    def is_spent(self) -> bool:
        """Whether the budget is spent. Once it is, it stays so in this run."""
        if not self.over and (over := self.account().over):
            with suppress(StoreError):  # it is away: this is asked again soon
                self._tell()
                self.over = over
                log.info(
                    f"the budget is spent ({'; '.join(over)}): no further trial starts; "
                    f"{len(self._since)} that run end."
                )
        return bool(self.over)

    def suggested(self, trial: Trial) -> None:
        """See `TrialEvents`."""
        if trial.key not in self._book.left:
            epochs = float(trial.hparams["epochs"])
            rest = max(0.0, self._book.left[UNSUGGESTED] - epochs)
            self._plan({trial.key: epochs, UNSUGGESTED: rest})
        self._next.suggested(trial)

    def started(self, key: str) -> None:
        """See `TrialEvents`."""
        self._since[key] = self._clock()
        self._starting.add(key)
        self._next.started(key)

    def epoch(self, key: str, record: EpochRecord) -> None:
        """See `TrialEvents`."""
        if key in self._starting and key in self._since:  # its worker's start is in no record
            self._since[key] = max(self._since[key], self._clock() - record.seconds)
        self._starting.discard(key)
        book = self._book
        self._book = book._replace(seconds=book.seconds + record.seconds, epochs=book.epochs + 1)
        self._plan({key: max(0.0, book.left.get(key, 0.0) - 1)})
        self._next.epoch(key, record)

    def finished(self, key: str, complete: bool) -> None:
        """See `TrialEvents`."""
        self._ended(key)
        self._plan({key: 0.0})
        try:
            made = self._read(key)
        except (CheckpointError, StoreError):
            pass  # counted by the clock
        else:
            new = {} if made.trial.sweep != self._spec.name else {key: (stretch_of(made),)}
            kept = {k: s for k, s in self._book.stretches.items() if k != key}
            self._book = self._book._replace(stretches=kept | new)
        self._next.finished(key, complete)

    def repeated(self, key: str, reason: str) -> None:
        """See `TrialEvents`."""
        self._ended(key)
        self._next.repeated(key, reason)

    def stopped(self, key: str) -> None:
        """See `TrialEvents`."""
        self._ended(key)
        self._plan({key: 0.0})
        self._next.stopped(key)

    def failed(self, key: str, reason: str) -> None:
        """See `TrialEvents`."""
        self._ended(key)
        self._next.failed(key, reason)

    def spared(self, key: str) -> None:
        """See `TrialEvents`."""
        self._since.pop(key, None)
        self._next.spared(key)

    def lost(self) -> None:
        """Record that all workers died together."""
        for key in [*self._since]:
            self._ended(key)
        self._next.lost()

    def _plan(self, left: dict[str, float]) -> None:
        """Record how many epochs of trials are left."""
        self._book = self._book._replace(left=self._book.left | left)

    def _ended(self, key: str) -> None:
        since = self._since.pop(key, None)
        if since is not None:
            known = self._book.stretches.get(key, ())
            more = {key: (*known, Stretch(since, self._clock()))}
            self._book = self._book._replace(stretches=self._book.stretches | more)
