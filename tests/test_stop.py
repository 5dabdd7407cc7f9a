"""`soupray stop`: a request in the store, for the driver of a sweep and for its soups."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from conftest import (
    FEW,
    HANG_S,
    ONE_SLOT,
    ROOT,
    copied,
    inside,
    leaderboard,
    mini_text,
    without_ray_here,
)

from soupray.core.errors import EvaluationError, StoreError
from soupray.core.progress import Progress
from soupray.core.records import encode
from soupray.operations.deleting import refuse_driver
from soupray.operations.stopping import Stopping, stop
from soupray.spec.sweep_spec import load
from soupray.store import layout, lease
from soupray.store.lease import (
    Lease,
    ask_to_stop,
    find_stop_request,
    this_process,
)
from soupray.store.objects import open_store
from soupray.store.presence import (
    Presence,
    Present,
    Working,
    ask_present_to_stop,
    find_present,
)


@pytest.fixture
def swept(tmp_path):
    """(file of a spec, store): eight short trials, one at a time."""
    path, url = tmp_path / "mini.yaml", f"file://{tmp_path}/store"
    edits = {"storage: embedded": f"storage: {url}", "tracking: embedded": "tracking: off"}
    text = mini_text(**edits | ONE_SLOT | FEW | {"trials: 16": "trials: 8"})
    path.write_text(text)
    return path, open_store(url)


def manifests(store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.list("trials")}


@pytest.mark.slow
def test_a_sweep_stops_when_it_is_asked_and_goes_on_later(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.2)  # how soon the driver looks
    path, store = swept
    said: list[Stopping] = []

    def ask() -> None:
        while not manifests(store):
            time.sleep(0.02)
        said.append(stop(store, "mini", HANG_S))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    stopped = inside("sweep", path, "--home", tmp_path / "home", check=False)
    thread.join(HANG_S)
    (done,) = said
    assert done.stopped
    assert stopped.returncode == 1
    assert f"{done.driver} asked this sweep to stop: it ends now." in stopped.stderr
    kept = manifests(store)
    assert 1 <= len(kept) < 8
    left = f"error: {done.driver} asked this sweep to stop (`soupray stop`): {8 - len(kept)} of 8"
    assert left in stopped.stderr
    assert layout.stop_request("mini") not in store.list("sweeps")
    without_ray_here(monkeypatch)
    again = inside("sweep", path, "--home", tmp_path / "home")
    assert f"{len(kept)} in the store, {8 - len(kept)} to train" in again.stderr
    assert kept.items() <= manifests(store).items()
    assert len(manifests(store)) == 8


def test_where_nobody_works_there_is_nothing_to_stop(swept, tmp_path):
    path, store = swept
    (tmp_path / "store").mkdir(exist_ok=True)
    done = inside("stop", path, "--home", tmp_path / "home")
    assert done.stdout == "nothing works on mini: nothing to stop.\n"
    assert store.list("") == []
    assert not (tmp_path / "home").exists()


def test_a_driver_that_does_not_look_is_named_and_the_status_is_1(swept, tmp_path):
    path, store = swept
    with Lease(store, layout.lease("mini")) as held:
        done = inside("stop", path, "--home", tmp_path, "--wait", 0.1, "--json", check=False)
        assert done.returncode == 1
        said = json.loads(done.stdout)
        assert (said["stopped"], said["sweep"]) == (False, "mini")
        assert said["left"] == [said["driver"]]
        left = inside("stop", path, "--home", tmp_path, "--wait", 0.1, check=False).stdout
        assert "still works on mini" in left
        # The request stays, for when it looks.
        assert find_stop_request(store, "mini", held.holder) is not None
        assert (
            "asked to stop mini: " in inside("stop", path, "--home", tmp_path, "--wait", 0).stdout
        )


def test_work_that_runs_is_seen_until_it_ends_and_what_was_killed_goes(swept, tmp_path):
    _, store = swept
    process, later = f"{this_process()}0", time.time() + 60
    killed = Working(what="soup", who="x", process=process, since=0, expires=later)
    store.put(layout.working("mini", "0" * 32), encode(killed))
    store.put(layout.working("mini", "1" * 32), b"{")
    assert find_present(store, "mini") == []
    with Presence(store, "mini", "check") as first, Presence(store, "mini", "soup") as second:
        found = find_present(store, "mini")
        assert [(one.id, one.working.what) for one in found] == [
            (first.id, "check"),
            (second.id, "soup"),
        ]
        assert all(map(layout.is_ours, store.list("sweeps")))
        assert layout.is_ours(layout.stop_of("mini", first.id))
        first.refuse_stop()
        with pytest.raises(StoreError, match=r"a check of .*; a soup of .* works on mini now"):
            refuse_driver(store, "mini")
    assert store.list("sweeps") == [layout.working("mini", "1" * 32)]
    refuse_driver(store, "mini")


def test_each_that_works_on_a_sweep_is_asked_and_the_request_is_for_it_alone(
    swept, tmp_path, monkeypatch
):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)  # how soon it looks
    path, store = swept
    with Presence(store, "mini", "soup") as one:
        ask_present_to_stop(
            store, "mini", Present("f" * 32, find_present(store, "mini")[0].working)
        )
        progress = Progress("choosing", 4)
        progress.done = 3
        one.follow(progress)
        until(lambda: find_present(store, "mini")[0].working.share == 0.75)
        one.refuse_stop()  # the request was to another
        done = inside("stop", path, "--home", tmp_path, "--wait", 0.5, "--json", check=False)
        said = json.loads(done.stdout)
        assert (said["driver"], said["stopped"], len(said["left"])) == (None, False, 1)
        assert said["others"] == said["left"] == [find_present(store, "mini")[0].working.name]
        with pytest.raises(EvaluationError, match=r"asked this soup to stop .*same command again"):
            one.refuse_stop()


def until(true: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_soup_stops_when_it_is_asked_and_goes_on_to_the_same_result(run, tmp_path, monkeypatch):
    """A process of its own, which looks every 15 s; its store has nothing but the trials."""
    with copied(run, tmp_path / "copy") as copy:
        store = copy.world()[2]
        for prefix in ("evaluations", "answers", "soups", "sweeps/mini/choices"):
            for path in store.list(prefix):
                store.delete(path)
        command = ["soup", copy.spec, *copy.where, "--all", "--output", tmp_path / "results"]
        souping = subprocess.Popen(
            [sys.executable, "-m", "soupray", *map(str, command)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        until(lambda: bool(find_present(store, "mini")))
        assert "soup of " in inside("status", copy.spec, *copy.where).stdout
        done = inside("stop", copy.spec, *copy.where, "--json", "--wait", HANG_S)
        said = souping.communicate(timeout=HANG_S)[1]
        (name,) = json.loads(done.stdout)["others"]
        assert name.endswith(f"pid {souping.pid}")
        assert souping.returncode == 1, said
        assert "asked this soup to stop: it ends now." in said
        assert "(`soupray stop`). Run the same command again" in " ".join(said.split())
        assert store.list("sweeps/mini/choices") == []
        assert store.list("sweeps/mini/working") == []
        without_ray_here(monkeypatch)
        inside(*command)
        assert leaderboard(tmp_path / "results") == leaderboard(run.output)


def test_a_request_to_an_earlier_driver_or_one_that_is_damaged_stops_nobody(swept, heard):
    path, store = swept
    assert load(path).name == "mini"
    ask_to_stop(store, "mini", "earlier")
    assert find_stop_request(store, "mini", "later") is None
    assert find_stop_request(store, "mini", "earlier") is not None
    store.put(layout.stop_request("mini"), encode({"holder": "later"}))
    assert find_stop_request(store, "mini", "later") is None
    assert "is this a request to stop?" in heard()
