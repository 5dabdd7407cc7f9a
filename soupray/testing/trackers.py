"""The contract of a tracker, on a sweep of two trials and two entries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from soupray.core.ports import TrackedRun, Tracker

K = TypeVar("K", str, int)


class Shown(NamedTuple):
    """What somebody sees of a run in the tracker: see `TrackedRun`."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, tuple[tuple[int, float], ...]]


def example_run(key: str, **fields: object) -> TrackedRun:
    """Return a finished trial of the sweep `s` with two epochs.

    Args:
        key: of the run.
        **fields: what else it has, or has instead.
    """
    made: dict[str, object] = {
        "key": key,
        "kind": "trial",
        "name": key.rpartition("/")[2],
        "parent": "s",
        "params": {"lr": "0.001", "epochs": "2"},
        "tags": {"soupray.status": "complete"},
        "metrics": {"accuracy/held_out": 0.75},
        "curves": {
            "epoch/train_loss": ((1, 2.0), (2, 1.0)),
            "epoch/held_out": ((1, 0.5), (2, 0.75)),
        },
        "started": 1000.0,
        "finished": 1060.0,
    }
    return TrackedRun(**{**made, **fields})  # type: ignore[arg-type]


SWEEP = example_run("s", kind="sweep", parent=None, params={"trials": "2"}, metrics={}, curves={})
TRIAL = example_run("s/trial/a1")
ENTRY = example_run(
    "s/entry/b2/wise_ft(greedy, best)",
    kind="entry",
    params={"recipe": "wise_ft"},
    metrics={"rank": 1.0, "accuracy/test": 0.5},
    curves={"trace/held_out": ((0, 0.25), (50, 0.5), (100, 0.375))},
    note="Made of two.",
    links=(("0.5 of a1", "s/trial/a1"),),
)


REPORT = "what to take\n"


def check_tracker(
    open_tracker: Callable[[], Tracker], shown: Callable[[], Mapping[str, Shown]], folder: Path
) -> None:
    """Check that a tracker keeps its contract.

    Runs are created and completed, each once; a second write of equal runs has no effect, nor has
    one by another process; runs that are not kept are gone; files that are attached stay where they
    are. Numbers may be rounded to float32. `register` is not called: it needs a model.

    Args:
        open_tracker: opens the tracker of the sweep `s`, on a place that is empty the first time.
            It is called again where another process would go on.
        shown: reads what the tracker shows, by the key of the run.
        folder: an empty folder for files to attach.

    Raises:
        AssertionError: the contract is broken; the message says how.
    """
    tracker = open_tracker()
    begun = replace(SWEEP, finished=None)
    epoch = {name: points[:1] for name, points in TRIAL.curves.items()}
    first = replace(TRIAL, curves=epoch, metrics={}, finished=None)
    tracker.write([begun])
    tracker.write([first])  # a trial that runs; its parent came before
    tracker.write([first])
    tracker.write([TRIAL])
    tracker.write([SWEEP])
    _expect(shown(), [SWEEP, TRIAL], "a trial that ran is complete")
    tracker.write([SWEEP, TRIAL])
    _expect(shown(), [SWEEP, TRIAL], "a second write of equal runs")

    tracker = open_tracker()  # another process
    tested = replace(TRIAL, metrics=TRIAL.metrics | {"accuracy/test": 0.625})
    everything = [SWEEP, tested, example_run("s/trial/b", params={"lr": "1"}), ENTRY]
    for what in ("what a soup adds", "the same again"):
        tracker.write(everything)
        _expect(shown(), everything, what)
    grown = replace(SWEEP, params={"trials": "3"})
    tracker.write([grown, *everything[1:]])
    _expect(shown(), [grown, *everything[1:]], "a parameter that has changed")

    file = folder / "report.txt"
    file.write_text(REPORT)
    for one in (tracker, open_tracker()):
        one.attach("s", [file])
        there = file.exists() and file.read_text() == REPORT
        assert there, "attach changed or moved a file: copy it, other trackers attach it too"
    tracker.keep("entry", {ENTRY.key, SWEEP.key})
    _expect(shown(), [grown, *everything[1:]], "all entries are kept")
    tracker.keep("entry", {SWEEP.key})
    _expect(shown(), [grown, *everything[1:3]], "an entry that is not kept; trials stay")


def _expect(found: Mapping[str, Shown], wanted: list[TrackedRun], when: str) -> None:
    keys = {run.key for run in wanted}
    assert set(found) == keys, f"{when}: it shows the runs {sorted(found)}, not {sorted(keys)}"
    for run in wanted:
        seen, where = found[run.key], f"{when}: run {run.key!r}"
        assert dict(seen.params) == run.params, f"{where}: its params are {dict(seen.params)}"
        _near(seen.metrics, run.metrics, f"{where}: its metrics")
        assert set(seen.curves) == set(run.curves), f"{where}: its curves are {set(seen.curves)}"
        for name, points in run.curves.items():
            steps = [step for step, _ in seen.curves[name]]
            assert steps == [step for step, _ in points], f"{where}: {name} has the steps {steps}"
            _near(dict(seen.curves[name]), dict(points), f"{where}: {name}")


def _near(found: Mapping[K, float], wanted: Mapping[K, float], where: str) -> None:
    assert set(found) == set(wanted), f"{where} are {sorted(map(str, found))}"
    for name, value in wanted.items():
        assert math.isclose(found[name], value, rel_tol=1e-6), f"{where}: {name} = {found[name]}"
