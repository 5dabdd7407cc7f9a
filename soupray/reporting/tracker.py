"""Open the trackers of a sweep; and a tracker in memory, for a sweep without any and for tests."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from soupray.core.errors import ConfigError, SouprayError, TrackingError
from soupray.core.plugins import load, raised, refuse_signature
from soupray.core.ports import Deployable, Registered, TrackedRun, Tracker
from soupray.recipes.recipe import Option
from soupray.services.place import Services
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.trackers import GROUP, OWN, read_options

METHODS = ("write", "attach", "keep", "register")
"""Of a `ports.Tracker`."""


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


class Several:
    """A `ports.Tracker` that passes everything on to several trackers.

    One that fails keeps nothing from the others: it gets nothing more, and they go on.

    Attributes:
        problems: what those said that failed; see `finish`.
    """

    def __init__(self, openers: Sequence[Callable[[], Tracker]]) -> None:
        """Open each. Raises TrackingError if none can be opened."""
        self.problems: list[str] = []
        self._trackers: list[Tracker] = []
        for opener in openers:
            try:
                self._trackers.append(opener())
            except TrackingError as error:
                self.problems.append(str(error))
        self._refuse_none()

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Create or complete `runs` in each. Raises TrackingError if all have failed."""
        self._each(lambda tracker: tracker.write(runs))

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Attach files in each. Raises TrackingError if all have failed."""
        self._each(lambda tracker: tracker.attach(key, files))

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Remove runs from each. Raises TrackingError if all have failed."""
        self._each(lambda tracker: tracker.keep(kind, keys))

    def register(self, champion: Registered, model: Deployable) -> None:
        """Register the champion with each. Raises TrackingError if all have failed."""
        self._each(lambda tracker: tracker.register(champion, model))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except TrackingError as error:
                self.problems.append(str(error))
                self._trackers.remove(tracker)
        self._refuse_none()

    def _refuse_none(self) -> None:
        if not self._trackers:
            raise TrackingError("; ".join(self.problems))


def finish(tracker: Tracker) -> None:
    """Say at the end what failed on the way. Raises TrackingError if one of several trackers did.

    Args:
        tracker: has got all that there is.
    """
    if isinstance(tracker, Several) and tracker.problems:
        raise TrackingError("; ".join(tracker.problems))


class Guarded:
    """A `ports.Tracker` that names the plug-in whose code raised an error."""

    def __init__(self, tracker: Tracker, where: str) -> None:
        self._tracker, self._where = tracker, where

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """See `Tracker.write`. Raises TrackingError."""
        with _named(self._where):
            self._tracker.write(copy.deepcopy(list(runs)))  # what it changes is its own

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """See `Tracker.attach`. Raises TrackingError."""
        with _named(self._where):
            self._tracker.attach(key, list(files))

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """See `Tracker.keep`. Raises TrackingError."""
        with _named(self._where):
            self._tracker.keep(kind, set(keys))

    def register(self, champion: Registered, model: Deployable) -> None:
        """See `Tracker.register`. Raises TrackingError."""
        with _named(self._where):
            self._tracker.register(champion, model)


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except SouprayError:
        raise
    except Exception as error:
        raise TrackingError(f"{where} raised {raised(error)}") from error


def is_tracked(spec: SweepSpec, services: Services) -> bool:
    """Whether any tracker shows the runs of a sweep."""
    return services.tracking_url is not None or bool(spec.trackers)


def load_trackers(spec: SweepSpec) -> None:
    """Raise ConfigError if a tracker of `spec` cannot be opened here, before anything is trained.

    Such are those whose package is not installed, and plug-ins that are away or have other options.
    """
    for name, options in spec.trackers.items():
        if name not in OWN:
            _bound(name, options, spec.name)
        elif find_spec(name) is None:
            raise ConfigError(
                f"trackers: {name} needs a package that is not installed. Install it: pip install "
                f"'soupray[{name}]', or take {name} out of the spec."
            )


def open_tracker(spec: SweepSpec, services: Services) -> Tracker:
    """Return the tracker of `spec`: all that it names, or one in memory if it names none.

    Raises:
        TrackingError: no tracker can be reached; see `finish` for one of several.
        ConfigError: a plug-in is not there, or its package is not installed.
    """
    load_trackers(spec)
    openers: list[Callable[[], Tracker]] = [
        functools.partial(_open, name, options, spec.name)
        for name, options in spec.trackers.items()
    ]
    if (url := services.tracking_url) is not None:
        from soupray.reporting.mlflow import MlflowTracker

        openers.insert(0, lambda: MlflowTracker(url, spec.name, services.artifacts))
    if not openers:
        return MemoryTracker()
    return openers[0]() if len(openers) == 1 else Several(openers)


def _open(name: str, options: Mapping[str, Option], sweep: str) -> Tracker:
    if name == "wandb":
        from soupray.reporting.wandb import WandbTracker

        return WandbTracker(sweep, **read_options(name, options, "trackers"))
    if name == "tensorboard":
        from soupray.reporting.tensorboard import TensorboardTracker

        return TensorboardTracker(sweep, **read_options(name, options, "trackers"))
    made, where = _bound(name, options, sweep)
    with _named(where):
        tracker = made()
    if lacks := _lacks(tracker):
        raise TrackingError(f"{where} returned {type(tracker).__name__}, {lacks}")
    return Guarded(tracker, where)


def _lacks(tracker: object) -> str:
    """Which method a tracker, or a class of trackers, lacks; empty if none."""
    missing = [name for name in METHODS if not callable(getattr(tracker, name, None))]
    return f"which has no method {missing[0]!r}: it needs {', '.join(METHODS)}" if missing else ""


def _bound(
    name: str, options: Mapping[str, Option], sweep: str
) -> tuple[Callable[[], Tracker], str]:
    """Return a function that opens a plug-in, and how messages name it; nothing is opened."""
    found = load(GROUP, name)
    where = f"tracker {name!r} ({found.origin})"
    refuse_signature(found.value, f"trackers: {where}", ("sweep",), options)
    if isinstance(found.value, type) and (lacks := _lacks(found.value)):
        raise ConfigError(f"trackers: {where} is a class, {lacks}.")
    return lambda: found.value(sweep, **copy.deepcopy(dict(options))), where
