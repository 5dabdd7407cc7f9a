"""The progress of a sweep: running trials, their scores, and the time left."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from soupray.core import errors
from soupray.core.errors import CheckpointError, StoreError
from soupray.core.progress import Progress, Rows, Show
from soupray.core.records import Metric
from soupray.core.trials import EpochRecord, Ingredient, Manifest, Tombstone, Trial
from soupray.maths.metrics import as_read, value
from soupray.search.prefixes import Enough
from soupray.store.lease import Beat, RunningTrial

log = logging.getLogger(__name__)

SHOWN = 8
"""Number of finished trials in the table; only the newest are kept in memory."""


def may_pass(reason: str) -> bool:
    """Whether another run may succeed where a trial failed.

    A trial is repeated from the same weights with the same random numbers, so that it raises the
    same error again. Errors of the store, the disk, the memory, the device or Ray have their cause
    outside it.

    Args:
        reason: `Type: message` of an error that the trial raised, or what Ray says of a worker that
            died.
    """
    name = reason.partition(": ")[0]
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return True  # of Ray, or of the driver of a device
    return issubclass(kind, OSError | MemoryError | errors.StoreError | errors.ChecksumMismatch)


class Live(NamedTuple):
    """A trial that runs.

    Attributes:
        trial: the trial.
        since: when its training began, in seconds since the epoch; before its first epoch is over,
            when its worker began to start.
        history: the epochs that the driver has heard of.
    """

    trial: Trial
    since: float
    history: tuple[EpochRecord, ...]


class SweepProgress:
    """Receives the events of a sweep (`distributed.tune.TrialEvents`) and shows its progress.

    `stopped_by` is who asked the sweep to stop (`soupray stop`); None if nobody did. `enough` is
    the decision of the stop rule. `extra` gives what follows the counts in the line of the
    progress.
    """

    def __init__(
        self,
        todo: list[Trial],
        read: Callable[[str], Manifest],
        tell: Callable[[str], None],
        show: Show | None = None,
    ) -> None:
        """Start without any finished trial.

        Args:
            todo: the missing trials that are known now.
            read: returns the manifest of a trial from its key.
            tell: called with the key of each trial that is over.
            show: shows the live table.
        """
        self._trials = {t.key: t for t in todo}
        self._epochs: dict[str, EpochRecord] = {}
        self._history: dict[str, dict[int, EpochRecord]] = {}
        self._running: dict[str, float] = {}
        self._starting = set[str]()  # of these no epoch was heard yet
        self._read, self._tell = read, tell
        self._done: dict[str, Manifest | None] = {}
        self.complete = self.diverged = self.given_up = 0
        self.errors: dict[str, str] = {}
        self.stopped_by: str | None = None
        self.extra: Callable[[], str] = lambda: ""
        self.enough: Enough | None = None
        self._over: set[str] = set()
        self._left = {t.key: int(t.hparams["epochs"]) for t in todo}
        self.progress = Progress("training", sum(self._left.values()), show)

    def __enter__(self) -> SweepProgress:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(*error)  # type: ignore[arg-type]

    def suggested(self, trial: Trial) -> None:
        """Add a trial that an adaptive search suggested; do nothing if it is known."""
        if trial.key not in self._trials:
            self._trials[trial.key] = trial
            self._left[trial.key] = int(trial.hparams["epochs"])
            self.progress.more(self._left[trial.key])

    def stopped(self, key: str) -> None:
        """Count a trial that the scheduler stopped."""
        self._running.pop(key, None)
        self._over.add(key)
        self.given_up += 1
        self.progress.advance(self._left[key])
        self._left[key] = 0
        epoch = self._epochs[key].epoch if key in self._epochs else 0
        of = self._trials[key].hparams["epochs"]
        log.info(f"trial {key} was stopped after {epoch} of {of} epochs: no ingredient.")
        self._show()

    def spared(self, key: str) -> None:
        """Record that a trial did not start: trials are enough, or the budget is spent."""
        self._running.pop(key, None)
        self.progress.advance(self._left[key])
        self._left[key] = 0
        self._show()

    def started(self, key: str) -> None:
        """Record that a trial runs, and since when."""
        self._running[key] = time.time()
        self._starting.add(key)
        self._show()

    def epoch(self, key: str, record: EpochRecord) -> None:
        """Record the scores of a finished epoch of a trial."""
        if key in self._starting and key in self._running:
            self._running[key] = max(self._running[key], time.time() - record.seconds)
        self._starting.discard(key)
        self._epochs[key] = record
        self._history.setdefault(key, {})[record.epoch] = record  # a repeated epoch is the same
        if self._left[key] > 0:  # a repeated trial trains its epochs again; each counts once
            self._left[key] -= 1
            self.progress.advance()
        self._show()

    def finished(self, key: str, complete: bool) -> None:
        """Count a trial whose manifest is in the store.

        Args:
            key: key of the trial.
            complete: True for an ingredient, False for a trial that diverged.
        """
        manifest = self._done[key] = self._found(key)
        if len(self._done) > SHOWN:
            del self._done[next(iter(self._done))]
        self._running.pop(key, None)
        self._history.pop(key, None)
        self._over.add(key)
        self.progress.advance(self._left.pop(key, 0))
        self._left[key] = 0
        if complete:
            self.complete += 1
        else:
            self.diverged += 1
            reason = f": {manifest.reason}" if isinstance(manifest, Tombstone) else ""
            log.info(f"trial {key} diverged{reason}. Recorded; the sweep goes on.")
        self._tell(key)
        self._show()

    def _found(self, key: str) -> Manifest | None:
        """Return the manifest of a finished trial, or None if it cannot be read now.

        The sweep continues without it, because the manifest is only shown here.
        """
        try:
            return self._read(key)
        except (CheckpointError, StoreError) as error:
            log.warning(f"trial {key} is stored, but cannot be read now: {error}")
            return None

    def repeated(self, key: str, reason: str) -> None:
        """Record that the worker of a trial died, so that the trial is trained again."""
        self._running.pop(key, None)
        log.warning(f"trial {key} is trained again: {reason}")

    def lost(self) -> None:
        """Record that all workers died together; the trials that ran are trained again."""
        self._running.clear()
        self._show()

    def is_over(self, key: str) -> bool:
        """Whether the driver has heard the end of this trial."""
        return key in self._over

    def failed(self, key: str, reason: str) -> None:
        """Record that a trial failed and left nothing in the store.

        Args:
            key: key of the trial.
            reason: the error message.
        """
        self._running.pop(key, None)
        self._over.add(key)
        self.errors[key] = reason
        said = reason.rstrip(".")
        what = "run again to repeat it" if may_pass(reason) else "it would fail again"
        log.info(f"trial {key} failed: {said}. Nothing of it is stored; {what}.")

    def beat(self) -> Beat:
        """Return what runs now; another thread may call it."""
        return Beat(
            running=tuple(
                RunningTrial(
                    key=key,
                    epoch=self._epochs[key].epoch if key in self._epochs else 0,
                    epochs=int(self._trials[key].hparams["epochs"]),
                    since=since,
                )
                for key, since in sorted(self._running.copy().items())
            ),
            failed=self.errors.copy(),
            seconds_left=self.progress.seconds_left(),
        )

    def live(self) -> list[Live]:
        """Return the trials that run and have finished an epoch; another thread may call it."""
        return [
            Live(self._trials[key], since, tuple(record for _, record in sorted(heard.items())))
            for key, since in sorted(self._running.copy().items())
            if (heard := self._history.get(key, {}).copy())
        ]

    def _show(self) -> None:
        over = self.complete + self.diverged + self.given_up
        counts = f"{over} of {len(self._left)} trials, {len(self._running)} running"
        self.progress.note = f" ({counts}{self.extra()})"
        # all trials of a sweep have the same one
        metrics = {t.metric for t in self._trials.values() if t.metric}
        right = ("lr", "epoch", "held-out", *metrics)
        rows = []
        for key in (*self._done, *sorted(self._running)):
            trial, epoch = self._trials[key], self._epochs.get(key)
            manifest = self._done.get(key)
            state = "done" if key in self._done else "running"
            if isinstance(manifest, Tombstone):
                state = "diverged"
            rows.append(
                (
                    f"{trial.index:02d} {key[:8]}",
                    f"{trial.hparams['lr']:.1e}",
                    f"{epoch.epoch if epoch else 0}/{trial.hparams['epochs']}",
                    *(_score(metric, epoch, manifest) for metric in ("accuracy", *metrics)),
                    state,
                )
            )
        self.progress.refresh(Rows(("trial", *right, "state"), right, rows))


def _score(metric: Metric, epoch: EpochRecord | None, manifest: Manifest | None) -> str:
    """Return the score in the stored manifest, else the score of the last epoch, as text."""
    if isinstance(manifest, Ingredient):
        if metric == "accuracy":  # of a graded metric its mean
            return f"{manifest.held_out.accuracy:.3f}"
        return f"{as_read(value(manifest.held_out, metric), metric):.3f}"
    if epoch is None:
        return ""
    if metric == "accuracy":
        return f"{epoch.held_out_correct / epoch.held_out_n:.3f}"
    return f"{as_read(epoch.rank, metric):.3f}"
