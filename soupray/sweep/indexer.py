"""A thread that keeps the tracker of a sweep up to date while trials finish."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from soupray.core.errors import SouprayError
from soupray.core.ports import TrackedRun
from soupray.core.trials import Manifest
from soupray.reporting.tracker import finish, is_tracked, open_tracker
from soupray.search.prefixes import Prefix
from soupray.services.place import Services
from soupray.spec.sweep_spec import SweepSpec
from soupray.sweep.progress import Live

log = logging.getLogger(__name__)

PATIENCE_S, HURRY_S = 60.0, 5.0
"""Seconds that the end of a sweep waits for MLflow to accept the remaining trials: its own end, and
one by an error or SIGTERM, after which Kubernetes gives a process 30 seconds."""

LIVE_S = 5.0
"""Seconds between two looks at the trials that run: one request for each that has a new epoch."""


class Indexer:
    """Writes trials into the tracker in its own thread, without delaying the sweep.

    Trials that run have their curves up to now. MLflow takes seconds to import and may not be
    reachable. After the first error the thread stops; `soupray publish` completes the index from
    the store.
    """

    def __init__(
        self,
        spec: SweepSpec,
        services: Services,
        read: Callable[[str], Manifest],
        live: Callable[[], list[Live]] = list,
        prefixes: Callable[[], list[Prefix]] = list,
    ) -> None:
        """Start nothing yet.

        Args:
            spec: the sweep.
            services: has the address of the tracker.
            read: returns the manifest of a trial from its key.
            live: returns the trials that run.
            prefixes: returns what the first trials were worth.
        """
        self._spec, self._services, self._read, self._live = spec, services, read, live
        self._prefixes = prefixes
        self._followed: dict[str, Live] = {}
        self._keys: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="indexer")
        self._tracked = is_tracked(spec, services)
        self.problem: str | None = None

    def __enter__(self) -> Indexer:
        if self._tracked:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._tracked:
            return
        self._keys.put(None)
        patience = PATIENCE_S if error == (None, None, None) else HURRY_S
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = f"the tracker is slower than {patience:.0f} s"
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
                for key in batch:
                    self._followed.pop(key, None)
                over = [trial_run(self._spec, self._read(key)) for key in batch]
                if over:
                    over = [sweep_run(self._spec, started, prefixes=self._prefixes()), *over]
                if runs := over + self._news():
                    tracker.write(runs)
            finished = time.time()
            whole = sweep_run(self._spec, started, finished, prefixes=self._prefixes())
            tracker.write([whole, *self._left_open(finished)])
            finish(tracker)
        except SouprayError as error:
            self.problem = str(error)

    def _news(self) -> list[TrackedRun]:
        """Return the trials that have a new epoch, as runs that are not finished."""
        from soupray.reporting.runs import live_run

        runs = []
        for now in self._live():
            known = self._followed.get(now.trial.key)
            if known is None or known.history != now.history:
                # The first time is kept: a trial whose worker died goes on under it.
                now = now._replace(since=known.since) if known else now
                self._followed[now.trial.key] = now
                runs.append(live_run(self._spec, now.trial, now.history, now.since))
        return runs

    def _left_open(self, when: float) -> list[TrackedRun]:
        """Return the trials that will not finish in this run of the sweep, as ended."""
        from soupray.reporting.runs import live_run

        return [
            live_run(self._spec, one.trial, one.history, one.since, ended=when)
            for one in self._followed.values()
        ]

    def _next_batch(self) -> list[str] | None:
        """Return the keys of the trials that are over; None at the end of the sweep.

        Without any, it is empty after LIVE_S seconds.
        """
        try:
            keys = [self._keys.get(timeout=LIVE_S)]
        except queue.Empty:
            return []
        while not self._keys.empty():
            keys.append(self._keys.get_nowait())
        if None in keys:
            rest = [k for k in keys if k is not None]
            self._keys.put(None)  # the next call must still see the end
            return rest or None
        return [k for k in keys if k is not None]
