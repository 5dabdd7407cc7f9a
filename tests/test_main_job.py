"""The main job on real input: sweep, soup, results, tracker, and running it again."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, mini_text, soupray

import soupray as package
from soupray import stack
from soupray.checkpoints import read_record, sha256_of
from soupray.records import Ingredient, Manifest
from soupray.wiring import find_basis, world


def leaderboard(folder: Path) -> list[dict]:
    return json.loads((folder / "leaderboard.json").read_text())


def manifests(run) -> list[Ingredient]:
    _, _, store = run.world()
    return [read_record(store, p, Manifest) for p in store.list("trials")]


def test_every_trial_is_an_ingredient_in_the_store(run):
    assert "4 trials planned, 0 in the store, 4 to train" in run.sweep.stderr
    _, _, store = run.world()
    found = manifests(run)
    assert len(found) == 4
    for ingredient in found:
        for ref in (ingredient.checkpoint, ingredient.logits):
            assert store.size(ref.path) == ref.size_bytes
        best = max(e.held_out_correct for e in ingredient.history)
        first = next(e.epoch for e in ingredient.history if e.held_out_correct == best)
        assert ingredient.best_epoch == first
        assert ingredient.held_out.correct == best


def test_the_leaderboard_has_what_it_promises(run):
    board = leaderboard(run.output)
    assert {e["recipe"] for e in board} == {"anchor", "best_single", "uniform", "greedy", "wise_ft"}
    counts = [e["held_out"]["correct"] for e in board]
    assert counts == sorted(counts, reverse=True)
    by_name = {e["name"]: e for e in board}
    assert by_name["greedy"]["held_out"]["correct"] >= by_name["best_single"]["held_out"]["correct"]
    for entry in board:
        assert sum(entry["coefficients"]) == pytest.approx(1)
        assert len(entry["ingredients"]) == len(entry["coefficients"])
        assert set(entry["shifts"]) == {"inverted", "noise"}
        accuracies = [s["accuracy"] for s in entry["shifts"].values()]
        assert entry["shift_mean"] == pytest.approx(sum(accuracies) / 2)
        for split in (entry["held_out"], entry["test"]):
            assert split["accuracy"] == split["correct"] / split["n"]
            assert split["low"] < split["accuracy"] < split["high"]
        assert entry["forward_passes_per_sample"] == 1
    assert len(by_name["uniform"]["ingredients"]) == 4
    with (run.output / "leaderboard.csv").open() as file:
        assert [r["name"] for r in csv.DictReader(file)] == [e["name"] for e in board]


def test_the_figures_and_the_soup_are_there_and_the_table_fits_100_columns(run):
    for name in ("robustness.png", "greedy_trace.png"):
        assert (run.output / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(run.output.glob("*.safetensors"))) == 1
    lines = run.soup.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in run.soup.stdout
    assert all(e["name"] in run.soup.stdout for e in leaderboard(run.output))


def test_running_again_trains_nothing_and_evaluates_nothing(run, tmp_path):
    _, _, store = run.world()
    before = store.list("")
    again = soupray("sweep", run.spec, *run.where)
    assert "4 trials planned, 4 in the store, 0 to train" in again.stderr
    printed = soupray("soup", *run.where, "--all", "--json", "--output", tmp_path)
    assert json.loads(printed.stdout) == leaderboard(run.output) == leaderboard(tmp_path)
    assert [p for p in store.list("") if p not in before] == []
    # SPEC was left out: the newest sweep of this home was taken, and named.
    assert "the newest sweep of this home" in printed.stderr


def test_a_recipe_rebuilds_the_soup_byte_for_byte_and_any_entry_loads(run, tmp_path):
    (soup,) = run.output.glob("*.safetensors")
    recipe = soup.with_suffix(".recipe.json")
    said = soupray("rebuild", recipe, *run.where, "--output", tmp_path / "again.safetensors")
    assert "the same bytes as recorded" in said.stdout
    assert sha256_of(tmp_path / "again.safetensors") == sha256_of(soup)
    spec, place, store = run.world()
    data = world(spec, place).data
    images, labels = data.samples(find_basis(store, spec).split("test"))
    for entry in leaderboard(run.output):
        name = entry["name"].replace("(", "_").replace(", ", "_").replace(")", "")
        model = package.load(run.output / f"{name}.recipe.json", home=run.home)
        probabilities = model(np.array(images))
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(labels)), abs=1e-5)
        correct = int((probabilities.argmax(axis=1) == labels).sum())
        # The batch shape differs from the evaluator's, so that a tie in the last bits may flip.
        assert abs(correct - entry["test"]["correct"]) <= 1


def test_pull_fetches_the_same_files(run, tmp_path):
    soupray("pull", run.spec, *run.where, "--output", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in run.output.iterdir()}
    for path in run.output.iterdir():
        assert sha256_of(path) == sha256_of(tmp_path / path.name)


def test_mlflow_shows_the_sweep_its_trials_and_the_entries_side_by_side(run):
    before = {r.info.run_name: r for r in run.tracked_before}
    assert len(before) == 5
    early = {k for r in before.values() for k in r.data.metrics}
    assert "accuracy/held_out" in early
    assert not [k for k in early if "test" in k or "shift" in k]
    runs = {r.info.run_name: r for r in run.tracked()}
    board = leaderboard(run.output)
    assert len(runs) == 1 + 4 + len(board)
    parent = runs["sweep mini"]
    shared = {f"accuracy/{n}" for n in ("held_out", "test", "shift_noise", "shift_mean")}
    for name, tracked in runs.items():
        assert tracked.info.status == "FINISHED"
        if name != "sweep mini":
            assert tracked.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert shared <= tracked.data.metrics.keys()
    for entry in board:
        metrics = runs[entry["name"]].data.metrics
        assert metrics["accuracy/test"] == entry["test"]["accuracy"]
        assert metrics["accuracy/shift_mean"] == pytest.approx(entry["shift_mean"])


def attached(run) -> set[str]:
    """Files beside the sweep in MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.home}/mlflow/mlflow.db")
    (parent,) = [r for r in run.tracked() if r.info.run_name == "sweep mini"]
    return {f.path for f in client.list_artifacts(parent.info.run_id)}


def test_the_index_can_be_deleted_and_published_again(run, tmp_path):
    def shape(runs):
        return sorted((r.info.run_name, sorted(r.data.metrics.items())) for r in runs)

    before = shape(run.tracked())
    soupray("publish", run.spec, *run.where)
    assert shape(run.tracked()) == before
    database = run.home / "mlflow" / "mlflow.db"
    shutil.move(database, tmp_path / "old.db")
    try:
        soupray("publish", run.spec, *run.where)
        assert shape(run.tracked()) == before
        assert attached(run) >= {"leaderboard.json", "robustness.png", "greedy_trace.png"}
    finally:
        shutil.move(tmp_path / "old.db", database)


def test_mlflow_away_is_not_fatal(run, tmp_path):
    spec = tmp_path / "away.yaml"
    text = mini_text(**{"tracking: embedded": "tracking: http://127.0.0.1:9"})
    spec.write_text(text)
    done = soupray("sweep", spec, *run.where)
    assert "4 in the store, 0 to train" in done.stderr
    assert "note: MLflow at http://127.0.0.1:9" in done.stderr
    assert "soupray publish" in done.stderr
    os.utime(run.home / "sweeps" / "mini.yaml")
    (run.home / "sweeps" / "mini.yaml").write_text(run.spec.read_text())


def killed_when(condition, *arguments: object) -> None:
    """Start the command in a process group of its own and kill -9 the group at `condition`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "soupray", *map(str, arguments)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray's workers are in other groups: they end the step that they are in


def test_kill_9_of_the_driver_loses_nothing_that_was_finished(run, tmp_path):
    home, spec = tmp_path / "home", run.spec
    where = ("--home", home)
    try:
        stack.up(home)
        from soupray.settling import settle
        from soupray.spec import load

        store = settle(load(spec), home).place.open_store()

        def stored(prefix: str) -> list[str]:
            return [p for p in store.list(prefix) if p.endswith(".json")]

        killed_when(lambda: len(stored("trials")) >= 2, "sweep", spec, *where)
        survivors = {p: store.get(p) for p in stored("trials")}
        assert 2 <= len(survivors) < 4
        again = soupray("sweep", spec, *where)
        assert f"{len(survivors)} in the store, {4 - len(survivors)} to train" in again.stderr
        assert all(store.get(p) == data for p, data in survivors.items())

        output = tmp_path / "results"
        flags = (spec, *where, "--greedy", "--uniform", "--output", output)
        killed_when(lambda: len(stored("evaluations")) >= 2, "soup", *flags)
        evaluated = {p: store.get(p) for p in stored("evaluations")}
        soupray("soup", *flags)
        assert all(store.get(p) == data for p, data in evaluated.items())
        # The undisturbed run, in another home, ends in the same leaderboard.
        undisturbed = [e for e in leaderboard(run.output) if e["recipe"] != "wise_ft"]
        assert leaderboard(output) == undisturbed
        assert len(undisturbed) == 4
    finally:
        stack.down(home)
