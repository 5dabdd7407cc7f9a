"""Shared fixtures: a small sweep of the demo's task, run once through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

for name in ("RAY_USAGE_STATS_ENABLED", "RAY_USAGE_STATS_PROMPT_ENABLED"):
    os.environ[name] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("SOUPRAY_SPEC", None)
os.environ.pop("SOUPRAY_HOME", None)

MINI = {
    "name: digits\n": "name: mini\n",
    "train_per_class: 20": "train_per_class: 100",
    "held_out: 500": "held_out: 200",
    "[inverted, rotated, noise, low_contrast, thickened]": "[inverted, noise]",
    "trials: 16": "trials: 4",
    "epochs: {integer: [5, 15]}": "epochs: {integer: [1, 2]}",
}


def mini_text(**edits: str) -> str:
    """The demo's spec, made small; `edits` are further replacements."""
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
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Run:
    """A home, a spec, and what the main job printed and wrote there."""

    def __init__(self, folder: Path) -> None:
        self.home, self.output = folder / "home", folder / "results"
        self.spec = folder / "mini.yaml"
        self.spec.write_text(mini_text())
        self.sweep = soupray("sweep", self.spec, "--home", self.home)
        self.tracked_before = self.tracked()
        self.soup = soupray("soup", self.spec, *self.where, "--all", "--output", self.output)

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
        from soupray.settling import settle
        from soupray.spec import load

        spec = load(self.spec)
        place = settle(spec, self.home).place
        return spec, place, place.open_store()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a process, under `-n 2`: those of the main job, and those of a module."""
    for item in items:
        name = "main job" if "run" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(name))
    # The longest chain starts first.
    items.sort(key=lambda item: "run" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory):
    """The main job, once: sweep and soup of four small trials on the embedded stack."""
    from soupray import stack

    made = None
    folder = tmp_path_factory.mktemp("main")
    try:
        made = Run(folder)
        yield made
    finally:
        stack.down(folder / "home")
