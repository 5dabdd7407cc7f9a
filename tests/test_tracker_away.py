"""A tracker that fails at some call and is back later: nothing ends, nothing is lost.

The runs are those of the main job; only the tracker is a fake.
"""

from collections.abc import Iterator

import pytest

from soupray.core.errors import TrackingError
from soupray.core.records import Manifest
from soupray.reporting import results
from soupray.reporting.tracker import MemoryTracker
from soupray.services.place import start_services
from soupray.store import layout
from soupray.store.objects import read_record
from soupray.sweep import indexer
from soupray.sweep.indexer import Indexer


class Failing:
    """A tracker whose n-th call, from 0, and all that follow do not arrive, or whose answer is
    lost; until `back`.
    """

    def __init__(self, calls: int, arrives: bool) -> None:
        self.memory, self._left, self._arrives = MemoryTracker(), calls, arrives

    def back(self) -> None:
        self._left = 10**9

    def __getattr__(self, name: str):
        def call(*arguments: object) -> None:
            self._left -= 1
            if self._left >= 0 or self._arrives:
                getattr(self.memory, name)(*arguments)
            if self._left < 0:
                raise TrackingError("MLflow at http://mlflow: 503")

        return call


def state(tracker: MemoryTracker) -> tuple:
    """Everything but how often a file was attached, and when the sweep was seen to start."""
    files = {key: {path.name for path in paths} for key, paths in tracker.files.items()}
    runs = {k: r for k, r in tracker.runs.items() if r.kind != "sweep"}
    return runs, tracker.runs["mini"].finished is None, files, tracker.champions


@pytest.fixture
def use(monkeypatch):
    """Make this tracker the one of all sweeps."""

    def be(tracker: object) -> None:
        for module in (indexer, results):
            monkeypatch.setattr(module, "open_tracker", lambda spec, services: tracker)

    return be


@pytest.fixture
def swept(run, use):
    """A function: the index of the main job's trials as a sweep writes it, one by one."""
    spec, _, store = run.world()
    services = start_services(spec, run.home)
    keys = [path.split("/")[1] for path in store.list("trials")]

    def read(key: str) -> Manifest:
        return read_record(store, layout.manifest(key), Manifest)

    def sweep(tracker: object) -> str | None:
        use(tracker)
        with Indexer(spec, services, read) as index:
            for key in keys:
                index.add(key)
        return index.problem

    return sweep


CALLS = 3
"""Of a sweep whose trials are all there when its indexer begins: itself, trials, its end."""


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "answer lost"])
@pytest.mark.parametrize("calls", range(CALLS))
def test_a_sweep_goes_on_and_its_next_run_completes_the_index(swept, calls, arrives, capsys):
    undisturbed = MemoryTracker()
    assert swept(undisturbed) is None
    failing = Failing(calls, arrives)
    assert swept(failing) == "MLflow at http://mlflow: 503"
    said = capsys.readouterr().err
    assert "note: MLflow at http://mlflow: 503. Nothing is lost: `soupray publish`" in said
    failing.back()
    assert swept(failing) is None
    assert state(failing.memory) == state(undisturbed)
    assert len(undisturbed.runs) == 5


def failures(publish, tracker: Failing) -> Iterator[int]:
    """Publish to a tracker that lives one call longer each time, until it lives long enough."""
    for calls in range(100):
        tracker._left = calls
        try:
            publish()
        except TrackingError:
            yield calls
        else:
            return


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "answer lost"])
def test_publishing_can_break_off_anywhere_and_is_completed_by_the_next(run, use, arrives):
    spec, _, store = run.world()
    before = store.entries("")
    undisturbed = MemoryTracker()
    use(undisturbed)
    count = results.publish(spec, run.home)
    failing = Failing(0, arrives)
    use(failing)
    broken = list(failures(lambda: results.publish(spec, run.home), failing))
    assert broken == [0, 1, 2, 3]  # runs, stale entries, champion, files
    assert state(failing.memory) == state(undisturbed)
    assert len(failing.memory.runs) == count
    assert store.entries("") == before
