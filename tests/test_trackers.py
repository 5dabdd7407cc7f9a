"""Trackers beside MLflow: the contract that all of them keep, and what is wrong with a spec's."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import HANG_S, ROOT, inside, mini_text
from msgspec import structs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_tracking import InMemory, InMlflow
from wandb.proto.wandb_internal_pb2 import Record

from soupray.core.errors import ConfigError, TrackingError
from soupray.reporting.tensorboard import TensorboardTracker
from soupray.reporting.tracker import MemoryTracker, Several, finish, open_tracker
from soupray.reporting.wandb import WandbTracker
from soupray.services.place import Services
from soupray.spec.sweep_spec import parse
from soupray.testing import Shown, check_tracker
from soupray.testing.trackers import SWEEP, TRIAL


def as_shown(looker) -> dict[str, Shown]:
    return {k: Shown(r.params, r.metrics, r.curves) for k, r in looker.runs().items()}


def in_event_files(folder: Path) -> dict[str, Shown]:
    """What TensorBoard's own reader finds below a folder."""
    found = {}
    for mark in folder.rglob("soupray.json"):
        reader = EventAccumulator(str(mark.parent), size_guidance={"scalars": 0})
        reader.Reload()
        about = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        params = HParamsPluginData.FromString(about).session_start_info.hparams
        curves, metrics = {}, {}
        for name in reader.Tags()["scalars"]:
            points = tuple((e.step, e.value) for e in reader.Scalars(name))
            if "/" in name and name.split("/")[0] in ("epoch", "trace", "soup_so_far"):
                curves[name] = points
            else:
                ((_, metrics[name]),) = points
        key = json.loads(mark.read_text())["key"]
        found[key] = Shown({n: v.string_value for n, v in params.items()}, metrics, curves)
    return found


BLOCK, HEADER = 32768, 7
"""Bytes of LevelDB's log format, which W&B's files have after seven bytes of its own."""


def offline_records(file: Path) -> list[Record]:
    """The records in a file of W&B: wandb 0.31 has no reader for Python."""
    data, at, part, found = file.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too short for a header: padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def ended(file: Path) -> list[Record]:
    """The records of a run, once all are in its file: W&B writes them a moment after the end."""
    deadline = time.monotonic() + HANG_S
    while True:
        found = offline_records(file)
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_offline_runs(folder: Path) -> dict[str, Shown]:
    """What `wandb sync` would send, by the key of the run."""
    found: dict[str, Shown] = {}
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        config, metrics = {}, {}
        curves = defaultdict(list)
        for record in ended(file):
            for update in (record.run.config.update, record.config.update):
                config |= {
                    u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in update
                }
            row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            for name in set(row) - {"_step", "_runtime", "_timestamp"}:
                curves[name].append((int(row["_step"]), json.loads(row[name])))
            for item in record.summary.update:
                metrics["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if "soupray.key" not in config:
            continue
        ours = {n: v for n, v in config.items() if not n.startswith(("soupray.", "_"))}
        metrics = {n: v for n, v in metrics.items() if n not in curves and n[0] != "_"}
        key = config["soupray.key"]
        assert key not in found  # no run twice
        found[key] = Shown(ours, metrics, {n: tuple(points) for n, points in curves.items()})
    return found


def test_memory_and_mlflow_keep_the_contract(tmp_path):
    memory = InMemory()
    check_tracker(lambda: memory.tracker, lambda: as_shown(memory), tmp_path)
    mlflow = InMlflow(tmp_path, "s")
    check_tracker(mlflow._open, lambda: as_shown(mlflow), tmp_path)


def test_tensorboard_keeps_the_contract(tmp_path):
    folder = tmp_path / "events"
    check_tracker(
        lambda: TensorboardTracker("s", folder=str(folder)),
        lambda: in_event_files(folder),
        tmp_path,
    )
    assert (folder / "s" / "files" / "report.txt").read_text() == "what to take\n"


def test_wandb_keeps_the_contract_offline(tmp_path):
    folder = tmp_path / "wb"

    def opened() -> WandbTracker:
        return WandbTracker("s", project="p", entity="", mode="offline", folder=str(folder))

    check_tracker(opened, lambda: in_offline_runs(folder), tmp_path)
    (file,) = folder.glob("wandb/offline-run-*-files/files/report.txt")
    assert file.read_text() == "what to take\n"


class Twice(MemoryTracker):
    """Adds the points of a curve again with every write."""

    def write(self, runs):
        for run in runs:
            old = self.runs[run.key].curves if run.key in self.runs else {}
            curves = {n: (*old.get(n, ()), *points) for n, points in run.curves.items()}
            super().write([structs.replace(run, curves=curves)])


class First(MemoryTracker):
    """Never completes a run."""

    def write(self, runs):
        super().write([run for run in runs if run.key not in self.runs])


class Keeper(MemoryTracker):
    """Removes nothing."""

    def keep(self, kind, keys):
        pass


class Sweeper(MemoryTracker):
    """Removes runs of every kind."""

    def keep(self, kind, keys):
        self.runs = {key: run for key, run in self.runs.items() if key in keys}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Twice, r"complete: run 's/trial/a1': epoch/\w+ has the steps \[1, 1, 1, 2\]"),
        (First, r"a trial that ran is complete: run 's/trial/a1': its metrics are \[\]"),
        (Keeper, "an entry that is not kept; trials stay: it shows the runs"),
        (Sweeper, "all entries are kept: it shows the runs"),
    ],
)
def test_a_tracker_that_breaks_the_contract_is_told_how(tmp_path, kind, says):
    looker = InMemory()
    looker.tracker = kind()
    with pytest.raises(AssertionError, match=says):
        check_tracker(lambda: looker.tracker, lambda: as_shown(looker), tmp_path)


KILLED = """
import os, sys
from msgspec.structs import replace
from soupray.reporting.wandb import WandbTracker
from soupray.testing.trackers import TRIAL
options = {"project": "p", "entity": "", "mode": "offline", "folder": sys.argv[1]}
WandbTracker("s", **options).write([replace(TRIAL, finished=None, params={"lr": "7"})])
os._exit(9)
"""


def test_the_run_of_a_driver_that_was_killed_is_written_anew(tmp_path):
    """Its folder of W&B is there, but no mark. What `wandb sync` has sent stays."""
    folder = tmp_path / "wb"
    command = [sys.executable, "-c", KILLED, str(folder)]
    # Else it would use the service of W&B that this process has started, which lives on.
    own = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    assert subprocess.run(command, timeout=HANG_S, cwd=ROOT, env=own).returncode == 9
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    tracker = WandbTracker("s", project="p", entity="", mode="offline", folder=str(folder))
    tracker.write([SWEEP, TRIAL])
    assert in_offline_runs(folder)[TRIAL.key] == Shown(TRIAL.params, TRIAL.metrics, TRIAL.curves)
    sent = next(folder.glob("wandb/offline-run-*/*.wandb"))
    sent.with_name(f"{sent.name}.synced").touch()  # as `wandb sync` does
    time.sleep(1.01)  # the names of its folders have seconds
    tracker.write([structs.replace(run, params={}) for run in (SWEEP, TRIAL)])
    assert sent.exists()
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 3


def test_one_tracker_that_fails_keeps_nothing_from_the_others(tmp_path):
    class Away(MemoryTracker):
        def write(self, runs):
            raise TrackingError("away")

    memory = MemoryTracker()

    def shut():
        raise TrackingError("shut")

    both = Several([Away, shut, lambda: memory])
    both.write([SWEEP])
    both.write([TRIAL])
    assert memory.runs == {"s": SWEEP, TRIAL.key: TRIAL}
    with pytest.raises(TrackingError, match=r"^shut; away$"):  # each once
        finish(both)
    with pytest.raises(TrackingError, match=r"^away; away$"):
        Several([Away, Away]).write([SWEEP])
    with pytest.raises(TrackingError, match=r"^shut$"):
        Several([shut])
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(TrackingError, match=r"TensorBoard's files in .*file"):
        TensorboardTracker("s", folder=str(blocked)).write([SWEEP])


def spec_with(trackers: str):
    text = mini_text(**{"tracking: embedded": f"tracking: off\ntrackers: {trackers}"})
    return parse(text, "mine.yaml")


@pytest.mark.parametrize(
    ("trackers", "says"),
    [
        ("{wandbb: {}}", r"unknown tracker 'wandbb'. Known trackers: wandb, tensorboard; or "
         r"module:name for your own. Did you mean 'wandb'\?"),
        ("{mlflow: {}}", "unknown tracker 'mlflow'.* MLflow is the key `tracking`"),
        ("{wandb: {key: x}}", r"mine.yaml: line \d+, column 12: trackers: tracker wandb has no "
         "option 'key'. Its options: project, entity, mode, folder"),
        ("{wandb: {mode: away}}", "tracker wandb: mode = 'away': Invalid enum value 'away'"),
        ("{tensorboard: {folder: ''}}", "tracker tensorboard: folder = '': Expected `str` of len"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_trackers_of_a_spec_is_named(trackers, says):
    with pytest.raises(ConfigError, match=says):
        spec_with(trackers)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_an_extra_that_is_not_installed_is_named_before_the_sweep_starts(
    tmp_path, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    path = tmp_path / "mini.yaml"
    edits = {"storage: embedded": f"storage: file://{tmp_path}/store"}
    off = f"tracking: off\ntrackers: {{{name}: {{}}}}"
    path.write_text(mini_text(**edits | {"tracking: embedded": off}))
    for verb in ("sweep", "soup"):
        done = inside(verb, path, "--home", tmp_path / "home", check=False)
        assert done.returncode == 2
        said = " ".join(done.stderr.split())
        assert f"trackers: {name} needs a package that is not installed" in said
        assert f"pip install 'soupray[{name}]'" in said
    assert not (tmp_path / "store").exists()


PLUGIN = """
class Mine:
    def __init__(self, sweep, folder="x"):
        if folder == "bad":
            1 / 0
    def write(self, runs):
        return runs[5]
    def attach(self, key, files):
        files.clear()
    def keep(self, kind, keys):
        keys.clear()
    def register(self, champion, model): ...
class Half:
    def __init__(self, sweep): ...
    def write(self, runs): ...
def half(sweep): return Half(sweep)
class Eraser(Mine):
    def write(self, runs):
        for run in runs:
            run.params.clear()
        runs.clear()
NUMBER = 1
"""


def test_a_tracker_that_raises_is_named(tmp_path, monkeypatch):
    (tmp_path / "shelf.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    services = Services(None, None, None)
    mine = open_tracker(spec_with("{shelf:Mine: {}}"), services)
    with pytest.raises(TrackingError, match=r"tracker 'shelf:Mine' \(.*shelf.py\) raised IndexErr"):
        mine.write([])
    for options, error, says in (
        (
            "{foldr: y}",
            ConfigError,
            r"does not take \(sweep, foldr=...\): .*'foldr'. Its parameters are \(sweep, folder=",
        ),
        ("{folder: bad}", TrackingError, r"raised ZeroDivisionError: division by zero \(.*shelf"),
    ):
        with pytest.raises(error, match=says):
            open_tracker(spec_with(f"{{shelf:Mine: {options}}}"), services)
    lacks = "which has no method 'attach': it needs write, attach, keep, register"
    for name, error, says in (
        ("NUMBER", ConfigError, r"'shelf:NUMBER' .*is int, which cannot be called"),
        ("Half", ConfigError, rf"'shelf:Half' .* is a class, {lacks}"),
        ("half", TrackingError, rf"'shelf:half' .* returned Half, {lacks}"),
    ):
        with pytest.raises(error, match=says):
            open_tracker(spec_with(f"{{shelf:{name}: {{}}}}"), services)


def test_what_a_tracker_changes_is_its_own_copy(tmp_path, monkeypatch):
    (tmp_path / "shelf.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    eraser = open_tracker(spec_with("{shelf:Eraser: {}}"), Services(None, None, None))
    runs, files, keys = [SWEEP, TRIAL], [tmp_path], {"s"}
    eraser.write(runs)
    eraser.attach("s", files)
    eraser.keep("trial", keys)
    assert (runs, files, keys) == ([SWEEP, TRIAL], [tmp_path], {"s"})
    assert TRIAL.params == {"lr": "0.001", "epochs": "2"}


def test_a_spec_without_trackers_has_the_digest_that_it_had():
    assert spec_with("{}").digest == spec_with("{wandb: {project: p}}").digest
