"""Which tracker a sweep has, and the one in memory: `tracking: off` uses it, and tests read it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from soupray.core.ports import Champion, TrackedRun, Tracker
from soupray.services.place import Services
from soupray.spec.sweep_spec import SweepSpec


class MemoryTracker:
    """A `ports.Tracker` that is a dictionary."""

    def __init__(self) -> None:
        self.runs: dict[str, TrackedRun] = {}
        self.files: dict[str, list[Path]] = {}
        self.champions: list[Champion] = []

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """See `ports.Tracker`."""
        self.runs |= {run.key: run for run in runs}

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """See `ports.Tracker`."""
        self.files.setdefault(key, []).extend(files)

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """See `ports.Tracker`."""
        self.runs = {k: run for k, run in self.runs.items() if run.kind != kind or k in keys}

    def register(self, champion: Champion) -> None:
        """See `ports.Tracker`."""
        if champion not in self.champions:
            self.champions.append(champion)


def open_tracker(spec: SweepSpec, services: Services) -> Tracker:
    """The tracker of `spec`; one in memory if tracking is off. Raises TrackingError."""
    if services.tracking_url is None:
        return MemoryTracker()
    from soupray.reporting.mlflow import MlflowTracker

    return MlflowTracker(services.tracking_url, spec.name, services.artifacts)
