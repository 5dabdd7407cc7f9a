"""A sweep whose lease another driver takes while its trials run."""

import threading
import time

import pytest
from conftest import ONE_SLOT, inside, mini_text

from soupray.core.records import encode
from soupray.store import lease
from soupray.store.lease import LeaseRecord

PATH = "sweeps/mini/lease.json"
PLANNED = 8


def other_driver(expires: float) -> bytes:
    process = "another-boot/pid:[1]/7/1"
    return encode(LeaseRecord(holder="thief", who="host9, pid 7", process=process, expires=expires))


@pytest.fixture
def thief(fresh, monkeypatch):
    """Takes the lease as soon as one more trial is stored than the main job's four."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)  # how soon the first driver looks
    _, _, store = fresh.world()
    over = threading.Event()

    def steal() -> None:
        while len(manifests(store)) < 5 and not over.is_set():
            time.sleep(0.02)
        store.put(PATH, other_driver(time.time() + 60))

    thread = threading.Thread(target=steal)
    thread.start()
    yield store
    over.set()
    thread.join()


def manifests(store) -> dict[str, bytes]:
    return {p: store.get(p) for p in store.list("trials") if p.endswith("manifest.json")}


@pytest.mark.slow
def test_the_first_driver_stops_and_the_sweep_can_be_finished_afterwards(fresh, thief, without_ray):
    store, before = thief, manifests(thief)
    fresh.spec.write_text(mini_text(**ONE_SLOT | {"trials: 16": f"trials: {PLANNED}"}))
    stopped = inside("sweep", fresh.spec, *fresh.where, check=False)
    assert stopped.returncode == 1
    assert f"4 in the store, {PLANNED - 4} to train" in stopped.stderr
    assert (
        "error: Another driver (host9, pid 7) took the sweep mini over; this one stops."
        in stopped.stderr
    )
    kept = manifests(store)
    assert 5 <= len(kept) < PLANNED
    assert before.items() <= kept.items()
    assert b"thief" in store.get(PATH)  # its lease is not released by the driver that lost it

    store.put(PATH, other_driver(expires=0))
    done = inside("sweep", fresh.spec, *fresh.where)
    assert f"{len(kept)} in the store, {PLANNED - len(kept)} to train" in done.stderr
    assert len(manifests(store)) == PLANNED
    assert kept.items() <= manifests(store).items()
