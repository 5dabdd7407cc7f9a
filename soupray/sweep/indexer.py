"""A thread that keeps the tracker of a sweep up to date while trials finish."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from soupray.core.errors import SouprayError
from soupray.core.records import Manifest
from soupray.reporting.tracker import open_tracker
from soupray.services.place import Services
from soupray.spec.sweep_spec import SweepSpec

log = logging.getLogger(__name__)

PATIENCE_S, HURRY_S = 60.0, 5.0
"""Seconds that the end of a sweep waits for MLflow to accept the remaining trials: its own end, and
one by an error or SIGTERM, after which Kubernetes gives a process 30 seconds."""


class Indexer:
    """Writes finished trials into the tracker in its own thread, without delaying the sweep.

    MLflow takes seconds to import and may not be reachable. After the first error the thread stops;
    `soupray publish` completes the index from the store.
    """

    def __init__(
        self, spec: SweepSpec, services: Services, read: Callable[[str], Manifest]
    ) -> None:
        self._spec, self._services, self._read = spec, services, read
        self._keys: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="indexer")
        self.problem: str | None = None

    def __enter__(self) -> Indexer:
        if self._services.tracking_url:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._services.tracking_url is None:
            return
        self._keys.put(None)
        patience = PATIENCE_S if error == (None, None, None) else HURRY_S
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = f"MLflow is slower than {patience:.0f} s"
        if self.problem:
            log.warning(f"{self.problem}. Nothing is lost: `soupray publish` completes the index.")

    def add(self, key: str) -> None:
        """Put this trial in the queue of the tracker."""
        self._keys.put(key)

    def _work(self) -> None:
        from soupray.reporting.runs import sweep_run, trial_run

        try:
            tracker = open_tracker(self._spec, self._services)
            started = time.time()
            tracker.write([sweep_run(self._spec, started)])
            while (batch := self._next_batch()) is not None:
                tracker.write([trial_run(self._spec, self._read(key)) for key in batch])
            tracker.write([sweep_run(self._spec, started, time.time())])
        except SouprayError as error:
            self.problem = str(error)

    def _next_batch(self) -> list[str] | None:
        """Wait for at least one key, and return all waiting keys; None at the end."""
        keys = [self._keys.get()]
        while not self._keys.empty():
            keys.append(self._keys.get_nowait())
        if None in keys:
            rest = [k for k in keys if k is not None]
            self._keys.put(None)  # the next call must still see the end
            return rest or None
        return [k for k in keys if k is not None]
