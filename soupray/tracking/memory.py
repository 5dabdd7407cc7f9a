"""A tracker in memory: what `tracking: off` uses, and what tests look into."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from soupray.core.ports import Champion, TrackedRun


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
