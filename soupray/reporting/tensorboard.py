"""The TensorBoard tracker: a folder of event files for each run. It runs in the driver only."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard.summary import hparams, scalar, text
from torch.utils.tensorboard.writer import FileWriter

from soupray.core.errors import TrackingError
from soupray.core.ports import Deployable, Registered, TrackedRun
from soupray.core.records import digest
from soupray.reporting.marks import Mark, Marks

FILES = "files"
"""Folder of attached files, in the folder of their run."""


class TensorboardTracker:
    """A `ports.Tracker` that writes event files below FOLDER/SWEEP.

    A run that has changed is written anew, into its emptied folder: event files can only grow. A
    mark in the folder, which comes last, has the digest of the run.
    """

    def __init__(self, sweep: str, *, folder: str) -> None:
        self._marks = Marks(Path(folder).expanduser().resolve(), sweep)

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Write the runs that are not there as they are. Raises TrackingError."""
        with _mapped(self._marks.folder):
            for run in runs:
                found = self._marks.find(run.key)
                if found is None or found.digest != digest(run):
                    self._rewrite(run)

    def _rewrite(self, run: TrackedRun) -> None:
        folder = self._marks.begin(run.key)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = FileWriter(str(folder))
        try:
            # Params and metrics together are what the page HPARAMS compares.
            for summary in hparams(dict(run.params), dict(run.metrics)):
                writer.add_summary(summary)
            when = run.finished or run.started
            for name, value in run.metrics.items():
                writer.add_summary(scalar(name, value), 0, when)
            for name, points in run.curves.items():
                for step, value in points:
                    writer.add_summary(scalar(name, value), step, run.started + step)
            for title, words in {"note": run.note, "tags": _listed(run.tags)}.items():
                if words:
                    writer.add_summary(text(title, words), 0, when)
        finally:
            writer.close()
        self._marks.end(Mark(key=run.key, kind=run.kind, digest=digest(run)))

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Copy files beside the events of a run: TensorBoard has no page for them."""
        with _mapped(self._marks.folder):
            target = self._marks.folder_of(key) / FILES
            target.mkdir(parents=True, exist_ok=True)
            for path in files:
                shutil.copyfile(path, target / path.name)

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Delete the folders of the runs of this kind whose key is not in `keys`."""
        with _mapped(self._marks.folder):
            for mark in self._marks.all():
                if mark.kind == kind and mark.key not in keys:
                    shutil.rmtree(self._marks.folder_of(mark.key))

    def register(self, champion: Registered, model: Deployable) -> None:
        """Do nothing: TensorBoard has no registry of models."""


def _listed(tags: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in tags.items())


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrackingError(f"TensorBoard's files in {folder}: {error}") from error
