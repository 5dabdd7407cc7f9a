"""Drivers that are killed with -9: what was finished stays, and the end is the same."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import (
    FEW,
    HANG_S,
    ONE_SLOT,
    ROOT,
    inside,
    leaderboard,
    mini_text,
    soupray,
    without_ray_here,
)

from soupray.evaluation.cache import EvaluationCache
from soupray.search.prefixes import Enough
from soupray.search.state import find_basis, find_state
from soupray.services import embedded
from soupray.services.place import start_services
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.lease import find_driver
from soupray.store.objects import open_store


def started(condition, *arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, and return at `condition`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "soupray", *map(str, arguments)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def killed_when(condition, *arguments: object) -> None:
    """Start the command, and kill -9 its group at `condition`."""
    process = started(condition, *arguments)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # Ray's workers are in other groups: they end the step that they are in


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the actors from this process; they answer as ever."""
    from soupray.distributed.actors import RayWorkers

    seen, evaluate = [], RayWorkers.evaluate

    def noted(self, candidates, splits, done):
        seen.extend((candidate, split) for candidate in candidates for split in splits)
        return evaluate(self, candidates, splits, done)

    monkeypatch.setattr(RayWorkers, "evaluate", noted)
    return seen


def test_kill_9_of_the_driver_loses_nothing_that_was_finished(request, asked, tmp_path):
    home, spec = tmp_path / "home", tmp_path / "mini.yaml"
    spec.write_text(mini_text(**ONE_SLOT))
    where = ("--home", home)
    try:
        embedded.up(home)
        loaded = load(spec)
        store = start_services(loaded, home).place.open_store()

        def stored(prefix: str) -> list[str]:
            return [p for p in store.list(prefix) if p.endswith(".json")]

        killed_when(lambda: stored("trials"), "sweep", spec, *where)
        survivors = {p: store.get(p) for p in stored("trials")}
        assert 1 <= len(survivors) < 4

        # What Kubernetes sends: an orderly end, which gives the lease back.
        def drives() -> bool:
            driver = find_driver(store, "mini")
            return driver is not None and driver.heartbeat is not None

        process = started(drives, "sweep", spec, *where)
        process.terminate()
        said = process.communicate(timeout=HANG_S)[1]
        assert process.returncode == 143, said
        assert said.splitlines()[-1].startswith("terminated. What is stored is kept")
        assert "Traceback" not in said
        assert find_driver(store, "mini") is None
        survivors = {p: store.get(p) for p in stored("trials")}

        with pytest.MonkeyPatch.context() as patched:
            without_ray_here(patched)  # the leaderboard is compared with one whose trials Ray ran
            again = inside("sweep", spec, *where)
        assert f"{len(survivors)} in the store, {4 - len(survivors)} to train" in again.stderr
        assert all(store.get(p) == data for p, data in survivors.items())

        output = tmp_path / "results"
        flags = (spec, *where, "--greedy", "--uniform", "--output", output)
        killed_when(lambda: len(stored("evaluations")) >= 2, "soup", *flags)
        evaluated = set(stored("evaluations"))
        inside("soup", *flags)
        train = find_basis(store, loaded).split("train")
        cache = EvaluationCache(Checkpoints(store, tmp_path / "cache"), loaded.setting, train)
        repeated = {cache.path("evaluations", *cache.key(c, s.digest)) for c, s in asked}
        assert repeated <= set(stored("evaluations"))
        assert repeated
        assert not repeated & evaluated
    finally:
        embedded.down(home)
    # The undisturbed run, in another home, ends in the same leaderboard.
    run = request.getfixturevalue("run")
    these = {"anchor", "best_single", "uniform", "greedy"}
    undisturbed = [e for e in leaderboard(run.output) if e["recipe"] in these]
    assert leaderboard(output) == undisturbed
    assert len(undisturbed) == 4


@pytest.mark.slow
def test_kill_9_between_the_decision_that_there_are_enough_and_the_end_changes_nothing(
    tmp_path, monkeypatch
):
    """The third of six trials runs when the rule decides: it has twenty epochs, and is killed."""
    path, url = tmp_path / "mini.yaml", f"file://{tmp_path}/store"
    stop = "  trials: 6\n  stop: {gain: 5.0, probability: 0.5, after: 2}"
    edits = {"storage: embedded": f"storage: {url}", "tracking: embedded": "tracking: off"}
    edits |= {"epochs: {integer: [5, 15]}": "epochs: 20", "seed: 0": "seed: 0\nbudget: {hours: 9}"}
    path.write_text(mini_text(**edits | ONE_SLOT | FEW).replace("  trials: 4", stop))
    where = (path, "--home", tmp_path / "home")
    spec, store = load(path), open_store(url)

    def state():
        return find_state(store, spec)

    def manifests() -> dict[str, bytes]:
        return {p: store.get(p) for p in store.list("trials") if p.endswith("/manifest.json")}

    def status() -> dict:
        return json.loads(inside("status", *where, "--json").stdout)

    folder = layout.enough("mini", "x").rpartition("/")[0]
    killed_when(lambda: bool(store.list(folder)), "sweep", *where)
    (decision,) = [store.get(p) for p in store.list(folder)]
    kept = manifests()
    assert 2 <= len(kept) <= 3, "it was killed after the drain"
    assert state().enough == Enough(size=2, chance=0.25, gain=5.0, probability=0.5)
    assert find_driver(store, "mini") is None

    # One slot: no two trials ran at a time, so that the budget counts the sum of all.
    said = status()
    took = sum(one.finished - one.started for one in state().complete)
    assert said["account"]["spent"]["hours"] * 3600 == pytest.approx(took)
    assert (said["complete"], said["missing"], said["spared"]) == (len(kept), 0, 6 - len(kept))
    assert said["running"] == []

    again = soupray("sweep", *where)
    assert "2 trials are enough: the chance that one more" in again.stderr
    assert f"{6 - len(kept)} others are not trained" in again.stderr
    assert [store.get(p) for p in store.list(folder)] == [decision]
    assert manifests() == kept
    after = status()
    for name in ("account", "complete", "missing", "spared", "enough", "best", "running"):
        assert after[name] == said[name], name

    # Without the rule the others are trained: what the killed driver said holds none of them back.
    path.write_text(path.read_text().replace(stop, "  trials: 6"))
    without_ray_here(monkeypatch)
    whole = inside("sweep", *where)
    assert f"{len(kept)} in the store, {6 - len(kept)} to train" in whole.stderr
    assert len(manifests()) == 6
    assert kept.items() <= manifests().items()
    spec = load(path)
    assert status()["account"]["spent"]["hours"] * 3600 == pytest.approx(
        sum(one.finished - one.started for one in state().complete)
    )
