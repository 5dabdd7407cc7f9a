"""`soupray stop`: a request in the store, which the driver reads at its heartbeat."""

import json
import threading
import time

import pytest
from conftest import FEW, HANG_S, ONE_SLOT, inside, mini_text

from soupray.core.records import encode
from soupray.operations.stopping import Stopping, stop
from soupray.spec.sweep_spec import load
from soupray.store import layout, lease
from soupray.store.lease import Lease, ask_to_stop, find_stop_request
from soupray.store.objects import open_store


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
    again = inside("sweep", path, "--home", tmp_path / "home")
    assert f"{len(kept)} in the store, {8 - len(kept)} to train" in again.stderr
    assert kept.items() <= manifests(store).items()
    assert len(manifests(store)) == 8


def test_where_nobody_drives_there_is_nothing_to_stop(swept, tmp_path):
    path, store = swept
    (tmp_path / "store").mkdir(exist_ok=True)
    done = inside("stop", path, "--home", tmp_path / "home")
    assert done.stdout == "nobody drives mini: nothing to stop.\n"
    assert store.list("") == []
    assert not (tmp_path / "home").exists()


def test_a_driver_that_does_not_look_is_named_and_the_status_is_1(swept, tmp_path):
    path, store = swept
    with Lease(store, layout.lease("mini")) as held:
        done = inside("stop", path, "--home", tmp_path, "--wait", 0.1, "--json", check=False)
        assert done.returncode == 1
        said = json.loads(done.stdout)
        assert (said["stopped"], said["sweep"]) == (False, "mini")
        assert (
            "still drives mini"
            in inside("stop", path, "--home", tmp_path, "--wait", 0.1, check=False).stdout
        )
        # The request stays, for when it looks.
        assert find_stop_request(store, "mini", held.holder) is not None
        assert "was asked to stop" in inside("stop", path, "--home", tmp_path, "--wait", 0).stdout


def test_a_request_to_an_earlier_driver_or_one_that_is_damaged_stops_nobody(swept, heard):
    path, store = swept
    assert load(path).name == "mini"
    ask_to_stop(store, "mini", "earlier")
    assert find_stop_request(store, "mini", "later") is None
    assert find_stop_request(store, "mini", "earlier") is not None
    store.put(layout.stop_request("mini"), encode({"holder": "later"}))
    assert find_stop_request(store, "mini", "later") is None
    assert "is this a request to stop?" in heard()
