"""A tracker that fails at some call and is back later: nothing ends, nothing is lost.

The runs are those of the main job; only the tracker is a fake.
"""

import time
from collections.abc import Iterator

import pytest
from conftest import HANG_S

from soupray.core.errors import TrackingError
from soupray.core.trials import Manifest
from soupray.reporting import results
from soupray.reporting.runs import trial_run
from soupray.reporting.tracker import MemoryTracker
from soupray.services.place import start_services
from soupray.store import layout
from soupray.store.objects import read_record
from soupray.sweep import indexer
from soupray.sweep.indexer import Indexer
from soupray.sweep.progress import Live


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
def test_a_sweep_goes_on_and_its_next_run_completes_the_index(swept, calls, arrives, heard):
    undisturbed = MemoryTracker()
    assert swept(undisturbed) is None
    failing = Failing(calls, arrives)
    assert swept(failing) == "MLflow at http://mlflow: 503"
    said = heard()
    assert "note: MLflow at http://mlflow: 503. Nothing is lost: `soupray publish`" in said
    failing.back()
    assert swept(failing) is None
    assert state(failing.memory) == state(undisturbed)
    assert len(undisturbed.runs) == 5


def test_a_trial_that_runs_is_tracked_with_its_epochs_up_to_now(run, use, monkeypatch):
    """One of two trials finishes; the other runs when the sweep ends."""
    spec, _, store = run.world()
    first, second = (read_record(store, path, Manifest) for path in list(store.list("trials"))[:2])
    seen: list[dict] = []

    class Watched(MemoryTracker):
        def write(self, runs) -> None:
            super().write(runs)
            seen.append(dict(self.runs))

    now = [Live(first.trial, 5.0, first.history[:1]), Live(second.trial, 6.0, second.history[:1])]
    use(Watched())
    monkeypatch.setattr(indexer, "LIVE_S", 0.01)
    services = start_services(spec, run.home)
    with Indexer(spec, services, lambda key: first, lambda: now) as index:
        deadline = time.monotonic() + HANG_S
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        now = now[1:]
        index.add(first.trial.key)
    assert index.problem is None
    keys = [f"mini/trial/{one.trial.key}" for one in (first, second)]
    live = [seen[1][key] for key in keys]
    assert [one.finished for one in live] == [None, None]
    for one, manifest in zip(live, (first, second), strict=True):
        epoch = manifest.history[0]
        assert one.curves["epoch/train_loss"] == ((1, epoch.train_loss),)
        assert one.params == trial_run(spec, manifest).params
        assert not one.failed
    assert seen[-1][keys[0]] == trial_run(spec, first)
    assert seen[-1][keys[1]].failed
    assert len(seen) == 4  # the sweep, both live, the end of the first, the end of the sweep


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
