"""The live table of a sweep: which trials run, how they score, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from soupray.console import Progress, say, table
from soupray.core.errors import CheckpointError, StoreError
from soupray.core.records import EpochRecord, Ingredient, Manifest, Metric, Tombstone, Trial
from soupray.maths.metrics import as_read, value
from soupray.store.lease import Beat, RunningTrial

SHOWN = 8
"""Finished trials in the table: the last ones. No more are kept."""


class SweepProgress:
    """Counts what Tune reports, and draws the live table of trials."""

    def __init__(
        self, todo: list[Trial], read: Callable[[str], Manifest], tell: Callable[[str], None]
    ) -> None:
        self._trials = {t.key: t for t in todo}
        self._epochs: dict[str, EpochRecord] = {}
        self._running: dict[str, float] = {}
        self._read, self._tell = read, tell
        self._done: dict[str, Manifest | None] = {}
        self.complete = self.diverged = self.given_up = 0
        self.errors: dict[str, str] = {}
        self._left = {t.key: int(t.hparams["epochs"]) for t in todo}
        self._progress = Progress("training", sum(self._left.values()))

    def __enter__(self) -> SweepProgress:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)  # type: ignore[arg-type]

    def suggested(self, trial: Trial) -> None:
        """A trial that was not planned before: an adaptive search asked for it."""
        if trial.key not in self._trials:
            self._trials[trial.key] = trial
            self._left[trial.key] = int(trial.hparams["epochs"])
            self._progress.more(self._left[trial.key])

    def stopped(self, key: str) -> None:
        """See `distributed.tune.TrialEvents`."""
        self._running.pop(key, None)
        self.given_up += 1
        self._progress.advance(self._left[key])
        self._left[key] = 0
        epoch = self._epochs[key].epoch if key in self._epochs else 0
        of = self._trials[key].hparams["epochs"]
        say(f"trial {key} was stopped after {epoch} of {of} epochs: no ingredient.")
        self._show()

    def started(self, key: str) -> None:
        """See `distributed.tune.TrialEvents`."""
        self._running[key] = time.time()
        self._show()

    def epoch(self, key: str, record: EpochRecord) -> None:
        """See `distributed.tune.TrialEvents`."""
        self._epochs[key] = record
        if self._left[key] > 0:  # a repeated trial does its epochs again, but counts once
            self._left[key] -= 1
            self._progress.advance()
        self._show()

    def finished(self, key: str, complete: bool) -> None:
        """See `distributed.tune.TrialEvents`."""
        manifest = self._done[key] = self._found(key)
        if len(self._done) > SHOWN:
            del self._done[next(iter(self._done))]
        self._running.pop(key, None)
        self._progress.advance(self._left.pop(key, 0))
        self._left[key] = 0
        if complete:
            self.complete += 1
        else:
            self.diverged += 1
            reason = f": {manifest.reason}" if isinstance(manifest, Tombstone) else ""
            say(f"trial {key} diverged{reason}. Recorded; the sweep goes on.")
        self._tell(key)
        self._show()

    def _found(self, key: str) -> Manifest | None:
        """What is shown of a finished trial; None while the store is away, which ends no sweep."""
        try:
            return self._read(key)
        except (CheckpointError, StoreError) as error:
            say(f"note: trial {key} is stored, but cannot be read now: {error}")
            return None

    def repeated(self, key: str, reason: str) -> None:
        """See `distributed.tune.TrialEvents`."""
        self._running.pop(key, None)
        say(f"note: trial {key} is trained again: {reason}")

    def failed(self, key: str, reason: str) -> None:
        """See `distributed.tune.TrialEvents`."""
        self._running.pop(key, None)
        self.errors[key] = reason
        said = reason.rstrip(".")
        say(f"trial {key} failed: {said}. Nothing of it is stored; run again to repeat it.")

    def beat(self) -> Beat:
        """What runs now; safe to be asked from another thread."""
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
            seconds_left=self._progress.seconds_left(),
        )

    def _show(self) -> None:
        over = self.complete + self.diverged + self.given_up
        self._progress.note = f" ({over} of {len(self._left)} trials, {len(self._running)} running)"
        metrics = {t.metric for t in self._trials.values() if t.metric}  # of a sweep, one
        right = ("lr", "epoch", "held-out", *metrics)
        shown = table("trial", *right, "state", right=right)
        recent = [*self._done, *sorted(self._running)]
        for key in recent:
            trial, epoch = self._trials[key], self._epochs.get(key)
            manifest = self._done.get(key)
            state = "done" if key in self._done else "running"
            if isinstance(manifest, Tombstone):
                state = "diverged"
            shown.add_row(
                f"{trial.index:02d} {key[:8]}",
                f"{trial.hparams['lr']:.1e}",
                f"{epoch.epoch if epoch else 0}/{trial.hparams['epochs']}",
                *(_score(metric, epoch, manifest) for metric in ("accuracy", *metrics)),
                state,
            )
        self._progress.refresh(shown)


def _score(metric: Metric, epoch: EpochRecord | None, manifest: Manifest | None) -> str:
    """Of what is stored, else of the last epoch."""
    if isinstance(manifest, Ingredient):
        return f"{as_read(value(manifest.held_out, metric), metric):.3f}"
    if epoch is None:
        return ""
    if metric == "accuracy":
        return f"{epoch.held_out_correct / epoch.held_out_n:.3f}"
    return f"{as_read(epoch.rank, metric):.3f}"
