"""The tracker's contract, in memory and on a real MLflow database; and MLflow out of reach."""

import json
import socket
import sqlite3
import time

import msgspec
import pytest
from board import BY_NAME, GREEDY, SPEC

from soupray.core.errors import TrackingError
from soupray.core.ports import CURRENT, TrackedRun
from soupray.reporting.runs import entry_run
from soupray.reporting.tracker import MemoryTracker

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own

SWEEP = TrackedRun(
    key="s",
    kind="sweep",
    name="sweep s",
    parent=None,
    params={"trials": "2"},
    tags={"soupray.spec_digest": "d"},
    metrics={},
    curves={},
    started=100.0,
    finished=None,
)


def trial_run(key: str = "s/trial/a", **fields) -> TrackedRun:
    made = {
        "key": key,
        "kind": "trial",
        "name": "trial 00",
        "parent": "s",
        "params": {"lr": "0.001"},
        "tags": {"soupray.status": "complete"},
        "metrics": {"held_out/accuracy": 0.9, "best_epoch": 2.0},
        "curves": {"epoch/train_loss": ((1, 2.0), (2, 1.0))},
        "started": 100.0,
        "finished": 200.0,
    }
    return TrackedRun(**(made | fields))


class InMemory:
    """How the contract looks into a MemoryTracker."""

    def __init__(self) -> None:
        self.tracker = MemoryTracker()

    def runs(self) -> dict[str, TrackedRun]:
        return self.tracker.runs

    def ids(self) -> set[str]:
        return set(self.tracker.runs)

    def rows(self) -> int:
        runs = self.tracker.runs.values()
        return sum(len(r.metrics) + sum(map(len, r.curves.values())) for r in runs)

    def files(self, key: str) -> set[str]:
        return {path.name for path in self.tracker.files[key]}

    def restart(self) -> None:
        """Nothing: a tracker in memory is its own database."""


class InMlflow:
    """How the contract looks into MLflow: through its own client and its database."""

    def __init__(self, folder, experiment: str) -> None:
        from mlflow.tracking import MlflowClient

        from soupray.reporting.mlflow import MlflowTracker

        self._file, self.experiment = folder / "mlflow.db", experiment
        self.url = f"sqlite:///{self._file}"
        self._open = lambda: MlflowTracker(self.url, experiment, (folder / experiment).as_uri())
        self.tracker = self._open()
        self.client = MlflowClient(self.url)
        self.id = self.client.get_experiment_by_name(experiment).experiment_id

    def restart(self) -> None:
        """Another process goes on."""
        self.tracker = self._open()

    def found(self) -> list:
        return list(self.client.search_runs([self.id]))

    def ids(self) -> set[str]:
        return {r.info.run_id for r in self.found()}

    def runs(self) -> dict[str, TrackedRun]:
        found = self.found()
        keys = {r.info.run_id: r.data.tags["soupray.key"] for r in found}
        assert len(set(keys.values())) == len(found)  # no key twice
        return {keys[r.info.run_id]: self._as_tracked(r, keys) for r in found}

    def _as_tracked(self, run, keys: dict[str, str]) -> TrackedRun:
        tags = dict(run.data.tags)
        parent = tags.get("mlflow.parentRunId")
        metrics, curves = {}, {}
        for name in run.data.metrics:
            rows = self.client.get_metric_history(run.info.run_id, name)
            if [m.step for m in rows] == [0]:
                metrics[name] = rows[0].value
            else:
                curves[name] = tuple((m.step, m.value) for m in rows)
        ours = ("soupray.key", "soupray.kind", "soupray.digest")
        return TrackedRun(
            key=tags["soupray.key"],
            kind=tags["soupray.kind"],
            name=run.info.run_name,
            parent=keys[parent] if parent else None,
            params=dict(run.data.params),
            tags={k: v for k, v in tags.items() if k not in ours and not k.startswith("mlflow.")},
            metrics=metrics,
            curves=curves,
            started=run.info.start_time / 1000,
            finished=run.info.end_time / 1000 if run.info.end_time else None,
            failed=run.info.status == "FAILED",
            note=tags.get("mlflow.note.content", ""),
        )

    def rows(self) -> int:
        with sqlite3.connect(self._file) as database:
            query = (
                "SELECT COUNT(*) FROM metrics JOIN runs USING (run_uuid) "
                "WHERE experiment_id = ? AND lifecycle_stage = 'active'"
            )
            (count,) = database.execute(query, (self.id,)).fetchone()
        return count

    def files(self, key: str) -> set[str]:
        (run,) = (r for r in self.found() if r.data.tags["soupray.key"] == key)
        return {f.path for f in self.client.list_artifacts(run.info.run_id)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(params=["memory", "mlflow"])
def looked(request, folder) -> InMemory | InMlflow:
    return InMemory() if request.param == "memory" else InMlflow(folder, request.node.name)


class TestContract:
    def test_what_was_written_is_there(self, looked):
        runs = [SWEEP, trial_run(), trial_run("s/trial/b", failed=True, metrics={})]
        looked.tracker.write(runs)
        assert looked.runs() == {r.key: r for r in runs}

    def test_writing_twice_adds_no_run_and_no_row(self, looked):
        looked.tracker.write([SWEEP, trial_run()])
        before, rows = looked.runs(), looked.rows()
        assert rows == 4
        looked.tracker.write([SWEEP, trial_run()])
        assert (looked.runs(), looked.rows()) == (before, rows)

    def test_runs_written_one_by_one_are_those_written_at_once(self, looked):
        runs = [SWEEP, trial_run(), trial_run("s/trial/b")]
        for run in runs:
            looked.tracker.write([run])
        assert looked.runs() == {r.key: r for r in runs}

    def test_metrics_may_come_later(self, looked):
        looked.tracker.write([SWEEP, trial_run()])
        more = trial_run().metrics | {"test/accuracy": 0.8, "shift/mean/accuracy": 0.5}
        looked.tracker.write([trial_run(metrics=more)])
        assert looked.runs()["s/trial/a"] == trial_run(metrics=more)
        assert looked.rows() == 4 + 2

    def test_a_run_that_was_open_is_finished(self, looked):
        looked.tracker.write([SWEEP])
        assert looked.runs()["s"].finished is None
        finished = msgspec.structs.replace(SWEEP, finished=300.0)
        looked.tracker.write([finished])
        assert looked.runs() == {"s": finished}

    def test_a_trial_that_runs_grows_and_its_points_are_there_once(self, looked):
        """Its driver is killed, another one ends in order before the trial is over, a third ends
        it; each has a tracker of its own.
        """
        points = ((1, 2.0), (2, 1.0), (3, 0.5))

        def live(count: int, **fields) -> TrackedRun:
            made = {"tags": {}, "metrics": {}, "finished": None}
            return trial_run(curves={"epoch/train_loss": points[:count]}, **(made | fields))

        looked.tracker.write([SWEEP, live(1)])
        looked.tracker.write([live(2)])
        assert looked.runs() == {"s": SWEEP, "s/trial/a": live(2)}
        assert looked.rows() == 2
        looked.restart()
        ended = live(2, finished=150.0, failed=True)
        looked.tracker.write([SWEEP, live(2)])
        looked.tracker.write([ended])
        assert looked.runs()["s/trial/a"] == ended
        looked.restart()
        looked.tracker.write([SWEEP, live(3)])
        assert not looked.runs()["s/trial/a"].failed
        over = trial_run(curves={"epoch/train_loss": points})
        looked.tracker.write([over])
        assert looked.runs()["s/trial/a"] == over
        assert looked.rows() == 3 + 2

    def test_a_sweep_that_grew_and_an_entry_that_chose_anew_are_what_they_are_now(self, looked):
        entry = {"key": "s/entry/greedy", "kind": "entry", "name": "greedy"}
        before = trial_run(**entry, params={"ingredients": "3"}, tags={"soupray.candidate": "x"})
        after = trial_run(
            **entry,
            params={"ingredients": "5"},
            tags={"soupray.candidate": "y"},
            curves={"trace": ((0, 0.5),)},
            metrics={"rank": 2.0},
        )
        looked.tracker.write([SWEEP, trial_run(), before])
        grown = msgspec.structs.replace(
            SWEEP, params={"trials": "4"}, tags={"soupray.spec_digest": "e"}
        )
        looked.tracker.write([grown, trial_run(), after])
        runs = looked.runs()
        assert runs.keys() == {"s", "s/trial/a", "s/entry/greedy"}
        assert runs["s"] == grown
        assert runs["s/trial/a"] == trial_run()
        assert runs["s/entry/greedy"].params == after.params
        assert runs["s/entry/greedy"].tags == after.tags
        assert {r.parent for r in runs.values()} == {None, "s"}
        assert looked.rows() == 4 + 2

    def test_an_entry_of_an_earlier_leaderboard_says_so_and_is_the_same_run(self, looked):
        entry = trial_run("s/entry/greedy", kind="entry", tags={CURRENT: "yes"})
        looked.tracker.write([SWEEP, entry])
        ids = looked.ids()
        earlier = msgspec.structs.replace(entry, tags={CURRENT: "no"})
        looked.tracker.write([SWEEP, earlier])
        assert looked.runs()["s/entry/greedy"] == earlier
        assert looked.rows() == 4
        assert looked.ids() == ids

    def test_only_runs_of_the_kind_that_are_not_kept_are_removed(self, looked):
        entries = [trial_run(f"s/entry/{n}", kind="entry", name=n) for n in ("greedy", "uniform")]
        looked.tracker.write([SWEEP, trial_run(), *entries])
        for _ in range(2):
            looked.tracker.keep("entry", {"s/entry/uniform"})
            assert looked.runs().keys() == {"s", "s/trial/a", "s/entry/uniform"}
        looked.tracker.write(entries)  # chosen again, it is there again
        assert looked.runs()["s/entry/greedy"] == entries[0]

    def test_a_note_that_changes_keeps_its_run(self, looked):
        looked.tracker.write([SWEEP])
        for note in ("first", "**then** this\n\n| a | b |"):
            looked.tracker.write([msgspec.structs.replace(SWEEP, note=note, metrics={"x": 1.0})])
            assert looked.runs()["s"].note == note

    def test_a_file_is_attached_to_its_run(self, looked, tmp_path):
        (tmp_path / "board.csv").write_text("rank,name\n")
        looked.tracker.write([SWEEP])
        looked.tracker.attach("s", [tmp_path / "board.csv"])
        assert looked.files("s") == {"board.csv"}


@pytest.fixture
def mlflow(request, folder) -> InMlflow:
    return InMlflow(folder, request.node.name)


def test_a_run_that_was_half_written_is_completed_without_a_row_twice(mlflow):
    from mlflow.entities import Metric

    mlflow.tracker.write([SWEEP])
    (sweep,) = mlflow.found()
    tags = {"soupray.key": "s/trial/a", "soupray.kind": "trial"}
    tags["mlflow.parentRunId"] = sweep.info.run_id
    run = mlflow.client.create_run(mlflow.id, start_time=100_000, tags=tags, run_name="trial 00")
    half = [
        Metric("held_out/accuracy", 0.9, 200_000, 0),
        Metric("epoch/train_loss", 2.0, 100_001, 1),
    ]
    mlflow.client.log_batch(run.info.run_id, metrics=half)
    mlflow.tracker.write([SWEEP, trial_run()])
    assert mlflow.runs() == {"s": SWEEP, "s/trial/a": trial_run()}
    assert mlflow.rows() == 4


def test_a_note_ends_with_links_to_the_pages_of_other_runs(mlflow):
    links = (("0.5 of a", "s/trial/a"), ("of what is gone", "s/trial/x"))
    entry = trial_run("s/entry/e", kind="entry", note="Made of", links=links)
    mlflow.tracker.write([SWEEP, trial_run(), entry])
    (made,) = (r for r in mlflow.found() if r.data.tags["soupray.key"] == "s/entry/e")
    (trial,) = (r for r in mlflow.found() if r.data.tags["soupray.key"] == "s/trial/a")
    assert made.data.tags["mlflow.note.content"] == (
        f"Made of\n\n[0.5 of a](#/experiments/{mlflow.id}/runs/{trial.info.run_id}), "
        "of what is gone"
    )
    ids = {r.info.run_id for r in mlflow.found()}
    mlflow.tracker.write([msgspec.structs.replace(SWEEP, note="new")])
    assert {r.info.run_id for r in mlflow.found()} == ids


def test_the_page_of_an_experiment_shows_the_runs_by_rank(mlflow):
    """As MLflow's own button "Share view" keeps a view: a tag of the experiment, as JSON."""
    from soupray.reporting.mlflow import view_of

    about = "workflowType=machine_learning&viewStateShareKey=soupray"
    page = view_of(mlflow.url, mlflow.experiment)
    assert page == f"/#/experiments/{mlflow.id}/runs?{about}"
    tags = mlflow.client.get_experiment(mlflow.id).tags
    state = json.loads(tags["mlflow.sharedViewState.soupray"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`rank`", True)
    entry = {"kind": "entry", "tags": {CURRENT: "no"}}
    mlflow.tracker.write(
        [SWEEP, trial_run(tags={CURRENT: "yes"}), trial_run("s/entry/old", **entry)]
    )
    seen = mlflow.client.search_runs([mlflow.id], state["searchFilter"])
    assert {r.data.tags["soupray.key"] for r in seen} == {"s/trial/a"}
    shown = {column.split("`")[1] for column in state["selectedColumns"]}
    entry = entry_run(SPEC, "b" * 32, BY_NAME["greedy"], GREEDY, rank=1, when=300.0)
    assert shown <= entry.metrics.keys() | entry.params.keys()
    assert view_of(mlflow.url, "no such experiment") == ""


def test_more_points_than_a_batch_holds_are_all_written(mlflow):
    curve = tuple((i, i / 2000) for i in range(1, 1900))
    long = trial_run(parent=None, curves={"epoch/train_loss": curve}, metrics={})
    mlflow.tracker.write([long])
    assert mlflow.runs()["s/trial/a"] == long
    assert mlflow.rows() == 1899


def test_runs_that_somebody_else_made_are_left_alone(mlflow):
    other = mlflow.client.create_run(mlflow.id, run_name="mine")
    mlflow.tracker.write([SWEEP])
    mlflow.tracker.write([SWEEP])
    names = sorted(r.info.run_name for r in mlflow.found())
    assert names == ["mine", "sweep s"]
    assert mlflow.client.get_run(other.info.run_id).data.tags.keys() <= {"mlflow.runName"}


def test_an_experiment_that_was_deleted_is_named_with_what_brings_it_back(mlflow):
    from soupray.reporting.mlflow import MlflowTracker

    mlflow.client.delete_experiment(mlflow.id)
    said = rf"'{mlflow.experiment}' is deleted.*mlflow experiments restore -x {mlflow.id}\)"
    with pytest.raises(TrackingError, match=said):
        MlflowTracker(mlflow.url, mlflow.experiment)
    mlflow.client.restore_experiment(mlflow.id)
    MlflowTracker(mlflow.url, mlflow.experiment).write([SWEEP])
    assert list(mlflow.runs()) == ["s"]


def test_a_tracker_that_is_away_is_a_tracking_error_within_seconds():
    from soupray.reporting.mlflow import MlflowTracker, ping

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    for reach in (lambda url: MlflowTracker(url, "s"), ping):
        with pytest.raises(TrackingError, match=f"MLflow at http://127.0.0.1:{port}: ") as error:
            reach(f"http://127.0.0.1:{port}")
        assert len(str(error.value)) < 400
    assert time.monotonic() - started < 15


def test_a_tracker_that_never_answers_is_a_tracking_error_in_bounded_time(monkeypatch):
    from soupray.reporting.mlflow import MlflowTracker

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(TrackingError, match="ReadTimeoutError"):
            MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "s")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("password", ["hunter2", "p%40ss%2Fword"])
def test_a_password_is_in_no_message(password):
    from soupray.reporting.mlflow import MlflowTracker, ping

    url = f"http://me:{password}@127.0.0.1:9"
    for reach in (lambda: MlflowTracker(url, "s"), lambda: ping(f"{url}/")):
        with pytest.raises(TrackingError, match=r"me:\*\*\*@127\.0\.0\.1:9") as error:
            reach()
        assert password not in str(error.value)
        assert "p@ss" not in str(error.value)
