"""Open the tracker of a sweep, and a tracker in memory for `tracking: off` and for tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from soupray.core.ports import Deployable, Registered, TrackedRun, Tracker
from soupray.services.place import Services
from soupray.spec.sweep_spec import SweepSpec


class MemoryTracker:
    """A `ports.Tracker` that keeps everything in memory."""

    def __init__(self) -> None:
        self.runs: dict[str, TrackedRun] = {}
        self.files: dict[str, list[Path]] = {}
        self.champions: list[Registered] = []

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Keep `runs` by key; a run replaces an earlier one with the same key."""
        self.runs |= {run.key: run for run in runs}

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Add files to the run with this key."""
        self.files.setdefault(key, []).extend(files)

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Remove the runs of this kind whose key is not in `keys`."""
        self.runs = {k: run for k, run in self.runs.items() if run.kind != kind or k in keys}

    def register(self, champion: Registered, model: Deployable) -> None:
        """Add `champion` to the list of champions, unless it is there."""
        if champion not in self.champions:
            self.champions.append(champion)


def open_tracker(spec: SweepSpec, services: Services) -> Tracker:
    """Return the tracker of `spec`, in memory if tracking is off. Raises TrackingError."""
    if services.tracking_url is None:
        return MemoryTracker()
    from soupray.reporting.mlflow import MlflowTracker

    return MlflowTracker(services.tracking_url, spec.name, services.artifacts)
