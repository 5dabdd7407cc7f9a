"""Shared fixtures: a small sweep of the demo's task, run once through the command line.

Under `pytest -n 3 --dist loadfile` the tests of a module share a process, and all processes share
the one main job. (`loadgroup` groups nothing with pytest 9.2 and xdist 3.8: its marks are lost.)
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

ROOT = Path(__file__).parent.parent

gc.disable()  # until all modules are imported: a quarter of 15 s, in each of four processes

HANG_S = 600
"""A wait is given up after this time: it is there for hangs only, however busy the machine is."""

for name in ("RAY_USAGE_STATS_ENABLED", "RAY_USAGE_STATS_PROMPT_ENABLED"):
    os.environ[name] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("SOUPRAY_SPEC", None)
os.environ.pop("SOUPRAY_HOME", None)

LONGEST = ("test_killed", "test_ray_job", "test_main_job", "test_autoscaler", "test_own_model")
"""Modules that take longer than all others: they start at once."""

MINI = {
    "name: digits\n": "name: mini\n",
    "train_per_class: 20": "train_per_class: 140",  # leaves 197 to test: each soup scores dozens
    "batch_size: 20": "batch_size: 50",
    "held_out: 500": "held_out: 200",
    "[inverted, rotated, noise, low_contrast, thickened]": "[inverted, noise]",
    "trials: 16": "trials: 4",
    "epochs: {integer: [5, 15]}": "epochs: {integer: [1, 2]}",
    "  wise_ft: {}\n": "  wise_ft: {}\n  learned: {steps: 4}\n  learned_by_layer: {steps: 4}\n"
    "  learned_signed: {steps: 4}\n  cma_es: {evaluations: 20}\n"
    "  soce: {}\n  task_arithmetic: {}\n  ties: {}\n  dare: {}\n",  # which --all leaves out
}

ONE_SLOT = {"{cpu: 1, gpu: 0}": "{cpu: 1, gpu: 0, at_most: 1}"}
"""An edit of `mini_text`: one worker at a time. Each worker imports torch for seconds."""

FEW = {"train_per_class: 20": "train_per_class: 20"}
"""An edit of `mini_text`: 200 training images, for sweeps that make no soup."""


def mini_text(**edits: str) -> str:
    """The demo's spec, made small; `edits` are further replacements, or other ones."""
    text = (ROOT / "sweeps" / "digits.yaml").read_text()
    for old, new in (MINI | edits).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def soupray(*arguments: object, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "soupray", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd=ROOT,
        timeout=HANG_S,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def inside(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: what `soupray` does, without its imports' time."""
    from soupray.cli import cli

    done = CliRunner().invoke(cli, list(map(str, arguments)), prog_name="soupray")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert not check or done.exit_code == 0, done.output
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def leaderboard(folder: Path) -> list[dict]:
    """The entries in a folder of results."""
    return json.loads((folder / "leaderboard.json").read_text())


COPIED = ("bases", "trials", "sweeps", "evaluations", "answers", "soups", "weights", "blobs")
"""What the store of the main job holds that its copies need."""


class Home:
    """A home, a spec, and the results of the main job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.output = folder / "home", folder / "results"
        self.spec = folder / "mini.yaml"

    @property
    def where(self) -> tuple[object, ...]:
        return ("--home", self.home)

    def tracked(self) -> list:
        """All MLflow runs of the sweep."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.home}/mlflow/mlflow.db")
        experiment = client.get_experiment_by_name("mini")
        return list(client.search_runs([experiment.experiment_id]))

    def world(self):
        """(spec, place, store) as the command line sees them."""
        from soupray.services.place import start_services
        from soupray.spec.sweep_spec import load

        spec = load(self.spec)
        place = start_services(spec, self.home).place
        return spec, place, place.open_store()


class Run(Home):
    """The main job, and what it printed; `early` are the runs MLflow had before the soup."""

    def make(self) -> None:
        self.folder.mkdir(parents=True)
        self.spec.write_text(mini_text())
        sweep = soupray("sweep", self.spec, *self.where)
        early = {r.info.run_name: sorted(r.data.metrics) for r in self.tracked()}
        soup = soupray("soup", self.spec, *self.where, "--all", "--output", self.output)
        said = {"swept": sweep.stderr, "souped": soup.stdout, "early": early}
        (self.folder / "said.json").write_text(json.dumps(said))

    def recall(self) -> None:
        said = json.loads((self.folder / "said.json").read_text())
        self.swept, self.souped, self.early = said["swept"], said["souped"], said["early"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which modules start first: the longest, then those that need no main job.

    While one process makes the main job, the others have something else to do.
    """
    waiting = {item.path for item in items if "run" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path in waiting))


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector need not look through it again."""
    gc.freeze()
    gc.enable()


def _shared(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of all tests, whichever process asks."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The main job's store runs until the last process is done."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        from soupray.services import embedded

        embedded.down(_shared(session.config._tmp_path_factory) / "main job" / "home")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The main job, once for all processes: sweep and soup of four small trials, embedded stack.

    To be read, not to be changed: see `fresh`.
    """
    folder = _shared(tmp_path_factory)
    made = Run(folder / "main job")
    with FileLock(folder / "main job.lock"):
        if not (made.folder / "said.json").exists():
            shutil.rmtree(made.folder, ignore_errors=True)
            made.make()
    made.recall()
    return made


@contextmanager
def copied(run: Run, folder: Path) -> Iterator[Home]:
    """A copy of the main job's home and store, to change."""
    from soupray.services import embedded

    copy = Home(folder)
    copy.folder.mkdir()
    shutil.copy(run.spec, copy.spec)
    shutil.copytree(run.output, copy.output)
    for part in ("mlflow", "sweeps"):
        shutil.copytree(run.home / part, copy.home / part)
    try:
        embedded.up(copy.home)
        source, target = run.world()[2], copy.world()[2]
        for prefix in COPIED:
            for path in source.list(prefix):
                target.put(path, source.get(path))
        yield copy
    finally:
        embedded.down(copy.home)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture):
    """What the library logged up to now, as the command line shows it."""
    caplog.set_level(logging.INFO, "soupray")

    def text() -> str:
        found = [r for r in caplog.records if r.name.startswith("soupray")]
        return "".join(
            f"{'note: ' if r.levelno >= logging.WARNING else ''}{r.getMessage()}\n" for r in found
        )

    return text


@pytest.fixture
def fresh(run: Run, tmp_path: Path):
    """A copy of the main job's home and store for one test."""
    with copied(run, tmp_path / "fresh") as copy:
        yield copy


@pytest.fixture
def few_paths(monkeypatch) -> None:
    """A diagnosis of twelve paths of each kind: 400 take a minute of a core."""
    from soupray.diagnostics import frequencies

    monkeypatch.setattr(frequencies, "PAIRS", 12)


@pytest.fixture
def computed(monkeypatch) -> list:
    """The models that are evaluated, by the workers of an actor in this process."""
    return computed_here(monkeypatch)


def computed_here(monkeypatch: pytest.MonkeyPatch) -> list:
    """See `computed`."""
    from soupray.training.worker import worker_context

    models = []

    class Here:
        def __init__(self, spec, place, actors) -> None:
            self._workers = functools.cache(lambda: worker_context(spec, place).workers())

        def evaluate(self, candidates, splits, done):
            models.extend(candidates)
            self._workers().evaluate(candidates, splits, done)

        def decide(self, *asked):
            return self._workers().decide(*asked)

        def measure(self, requests, split):
            return self._workers().measure(requests, split)

        def save(self, candidate):
            return self._workers().save(candidate)

    monkeypatch.setattr("soupray.distributed.actors.RayWorkers", Here)
    return models


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps, soups and diagnoses work in this process: see `without_ray_here`."""
    without_ray_here(monkeypatch)


def without_ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Tune and the actors call runs in this process: a Ray takes 30 s of a core to start.

    The main job, `test_ray_job`, `test_own_model` and others run the same on Ray.
    """
    from contextlib import nullcontext

    from soupray.distributed import cluster, tune
    from soupray.training.worker import check_data, make_basis

    computed_here(monkeypatch)
    monkeypatch.setattr(cluster, "attach", lambda *specs, **options: nullcontext())
    monkeypatch.setattr(cluster, "make_basis_there", make_basis)
    monkeypatch.setattr(cluster, "check_data_there", check_data)
    monkeypatch.setattr(tune, "run_trials", _run_trials_here)


def _run_trials_here(spec, place, planned, events, control) -> None:
    """Stands in for `soupray.distributed.tune.run_trials`: the same trainable, step by step."""
    from soupray.core.records import encode

    shared = {"spec": spec.model_dump_json(), "place": encode(place).decode()}
    shared["driver"] = control.driver
    for trial in planned.trials or iter(planned.search.next, None):
        if control.drained():
            break
        if planned.search is not None:
            events.suggested(trial)
        events.started(trial.key)
        _step_by_step({**shared, "trial": encode(trial).decode()}, trial.key, events, control)
        if control.stop():
            return
        if planned.search is not None:
            planned.search.over(trial.key)
    problem = getattr(planned.search, "problem", None)
    if problem is not None:
        raise problem


def _step_by_step(config: dict[str, str], key: str, events, control) -> None:
    from soupray.core.records import decode
    from soupray.core.trials import EpochRecord
    from soupray.distributed.tune import _Trainable

    steps = object.__new__(_Trainable)
    steps.setup(config)
    said: dict = {"done": False}
    while not (said["done"] or control.stop()):
        said = steps.step()
        assert not {"failed", "unmeasured"} & set(said), said
        if "epoch" in said:
            events.epoch(key, decode(said["epoch"].encode(), EpochRecord))
    if "spared" in said:
        events.spared(key)
    elif "complete" in said:
        events.finished(key, said["complete"])
