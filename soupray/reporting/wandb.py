"""The tracker of Weights & Biases. It runs in the driver only.

A key comes from the environment (WANDB_API_KEY) or from `wandb login`, never from a spec.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read at import. No reports of errors to Sentry, and nothing printed: stdout is for results.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("WANDB_SILENT", "true")

import wandb

from soupray.core.errors import TrackingError
from soupray.core.ports import Deployable, Registered, TrackedRun
from soupray.core.records import digest
from soupray.reporting.marks import Mark, Marks

ID_LENGTH = 32


class _Open:
    """A run that W&B has open, and the last step that it was told."""

    def __init__(self, run: Any) -> None:
        self.run = run
        # A run that is resumed has steps already, and W&B takes no step twice.
        self.last: int = run.step - 1 if run.resumed else -1

    def log(self, run: TrackedRun) -> None:
        """Send the points of all curves whose step is new."""
        by_step: dict[int, dict[str, float]] = {}
        for name, points in run.curves.items():
            for step, value in points:
                by_step.setdefault(step, {})[name] = value
        for step in sorted(s for s in by_step if s > self.last):
            self.run.log(by_step[step], step=step)
            self.last = step


_OPEN: dict[Path, dict[str, _Open]] = {}
"""Runs that are open, by folder and key: W&B lets a process open a run only once."""


class WandbTracker:
    """A `ports.Tracker` that writes into one project, in a group of the sweep's name.

    Runs that go on stay open. A run that is written again is resumed, online; offline, what the
    folder has of it is deleted and written anew, unless `wandb sync` has sent it.
    """

    def __init__(self, sweep: str, *, project: str, entity: str, mode: str, folder: str) -> None:
        self._sweep, self._project, self._entity, self._mode = sweep, project, entity, mode
        self._folder = Path(folder).expanduser().resolve()
        self._marks = Marks(self._folder / "marks", sweep)
        self._open = _OPEN.setdefault(self._folder, {})

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Create or complete the runs that are not there as they are. Raises TrackingError."""
        with _mapped():
            for run in runs:
                found = self._marks.find(run.key)
                if found is None or found.digest != digest(run):
                    self._write(run)

    def _write(self, run: TrackedRun) -> None:
        self._marks.begin(run.key)
        about = {"name": run.name, "job_type": run.kind, "notes": run.note or None}
        config = {"soupray.key": run.key, "soupray.parent": run.parent, **run.params, **run.tags}
        there = self._open.get(run.key) or self._begin(_id(run.key), about)
        self._open[run.key] = there
        there.run.config.update(config, allow_val_change=True)
        there.log(run)
        there.run.summary.update(run.metrics)
        if run.finished is not None:
            del self._open[run.key]
            there.run.finish(exit_code=1 if run.failed else 0)
            self._marks.end(Mark(key=run.key, kind=run.kind, digest=digest(run)))

    def _begin(self, name: str, about: dict[str, Any]) -> _Open:
        if self._mode == "offline":
            self._forget(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            id=name,
            project=self._project,
            entity=self._entity or None,
            group=self._sweep,
            mode=self._mode,  # type: ignore[arg-type]
            dir=self._folder,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                disable_job_creation=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
            **about,
        )
        return _Open(run)

    def _forget(self, name: str) -> None:
        """Delete what was written offline of a run, but for what `wandb sync` has sent."""
        for old in self._folder.glob(f"wandb/offline-run-*-{name}"):
            if not list(old.glob("*.synced")):
                shutil.rmtree(old)

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Save local files in a run of their own, in the group of the sweep. Raises TrackingError.

        The run of the sweep itself has ended, and offline a run cannot be resumed.
        """
        if not files:
            return
        name, own = f"{_id(key)[: ID_LENGTH - 6]}-files", f"{key}/files"
        content = digest({path.name: digest(list(path.read_bytes())) for path in files})
        with _mapped():
            found = self._marks.find(own)
            if found is not None and found.digest == content:
                return
            folder = self._marks.begin(own)
            copies = [Path(shutil.copyfile(path, folder / path.name)) for path in files]
            run = self._begin(name, {"name": f"files of {key}", "job_type": "files"}).run
            for path in copies:  # W&B reads them later: those of the caller may be gone
                run.save(str(path), base_path=str(folder), policy="now")
            run.finish()
            self._marks.end(Mark(key=own, kind="files", digest=content))

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Delete the runs of this kind whose key is not in `keys`. Raises TrackingError."""
        with _mapped():
            for mark in self._marks.all():
                if mark.kind != kind or mark.key in keys:
                    continue
                if self._mode == "offline":
                    self._forget(_id(mark.key))
                else:
                    path = "/".join(filter(None, [self._entity, self._project, _id(mark.key)]))
                    wandb.Api().run(path).delete()
                shutil.rmtree(self._marks.folder_of(mark.key))

    def register(self, champion: Registered, model: Deployable) -> None:
        """Do nothing: the notes of the sweep's run name the champion, whose files the store has."""


def _id(key: str) -> str:
    return digest(key)[:ID_LENGTH]


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn the exceptions of W&B and of the disk into TrackingError."""
    try:
        yield
    except Exception as error:  # W&B raises its own errors, and those of its libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
        raise TrackingError(f"W&B: {first}") from error
