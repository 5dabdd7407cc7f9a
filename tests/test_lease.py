"""One driver a sweep: who gets the lease, who keeps it, and who is told that it is lost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import HANG_S
from shared import embedded_store

from soupray.core.errors import StoreError, StoreUnavailable
from soupray.core.records import decode, encode
from soupray.store import layout
from soupray.store.lease import (
    Beat,
    Heartbeat,
    Lease,
    LeaseRecord,
    find_driver,
    is_dead,
    this_process,
    write_heartbeat,
)
from soupray.store.objects import Store, open_store

PATH = "sweeps/digits/lease.json"


@pytest.fixture
def store() -> Store:
    return open_store("memory://")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with embedded_store(tmp_path_factory.mktemp("s3")) as credentials:
        yield open_store("s3://soupray/leases", credentials)


def held(store: Store) -> LeaseRecord:
    return decode(store.get(PATH), LeaseRecord)


def left_behind(expires: float, process: str) -> bytes:
    return encode(LeaseRecord(holder="h", who="host9, pid 7", process=process, expires=expires))


def wait_for(condition) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_driver_is_refused_and_told_who_drives(store):
    with Lease(store, PATH):
        with pytest.raises(StoreError, match=f"pid {os.getpid()}.* holds this sweep") as error:
            Lease(store, PATH).__enter__()
        assert "its lease ends in 60 s" in str(error.value)


def test_a_released_lease_is_free(store):
    before = time.time()
    with Lease(store, PATH) as first:
        assert before + 60 <= held(store).expires <= time.time() + 60
    assert held(store).expires == 0
    with Lease(store, PATH) as second:
        assert not second.lost
    assert not first.lost


def test_a_lease_is_released_when_the_driver_raises(store):
    with pytest.raises(KeyError), Lease(store, PATH):
        raise KeyError
    assert held(store).expires == 0


def test_an_expired_lease_is_taken_over_and_one_that_runs_is_not(store):
    living = this_process()
    store.put(PATH, left_behind(time.time() + 30, living))
    with pytest.raises(StoreError, match=r"host9, pid 7.*ends in (29|30) s"):
        Lease(store, PATH).__enter__()
    store.put(PATH, left_behind(time.time() - 1, living))
    with Lease(store, PATH):
        assert held(store).who.endswith(f"pid {os.getpid()}")


def test_a_process_elsewhere_is_never_taken_for_dead():
    boot, namespace, pid, _ = this_process().split("/")
    assert not is_dead(this_process())
    assert is_dead("/".join([boot, namespace, pid, "1"]))  # the number was given to another one
    assert not is_dead("/".join(["another-boot", namespace, pid, "1"]))
    assert not is_dead("/".join([boot, "pid:[1]", pid, "1"]))


DRIVER = (
    "import sys, time; from soupray.store.lease import Lease;"
    "from soupray.store.objects import open_store;"
    "Lease(open_store(sys.argv[1]), sys.argv[2]).__enter__(); print('driving', flush=True);"
    "time.sleep(60)"
)


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path, reaped):
    store = open_store(f"file://{tmp_path}")
    command = [sys.executable, "-c", DRIVER, store.url, PATH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "driving\n"
            with pytest.raises(StoreError, match=f"pid {driver.pid}"):
                Lease(store, PATH).__enter__()
        finally:
            driver.kill()
        if reaped:
            driver.wait()
        else:  # as in a container whose first process waits for nobody
            stat = Path(f"/proc/{driver.pid}/stat")
            wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        with Lease(store, PATH):
            assert held(store).process == this_process()


def race(store: Store, count: int) -> list[Lease]:
    """The winners of `count` drivers that reach for one expired lease."""
    store.put(PATH, left_behind(time.time() - 1, this_process()))
    barrier, winners = threading.Barrier(count), []

    def drive() -> None:
        lease = Lease(store, PATH)
        barrier.wait()
        try:
            lease.__enter__()
        except StoreError:
            return
        winners.append(lease)

    threads = [threading.Thread(target=drive) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


@pytest.mark.parametrize("attempt", range(5))
def test_of_many_drivers_that_reach_for_an_expired_lease_one_gets_it(store, attempt):
    (winner,) = race(store, 16)
    winner.__exit__(None, None, None)
    assert not winner.lost


def test_of_many_drivers_on_s3_one_gets_it(s3):
    (winner,) = race(s3, 4)
    winner.__exit__(None, None, None)
    assert not winner.lost
    assert held(s3).expires == 0


def test_a_living_driver_keeps_its_lease_beyond_the_term(store):
    with Lease(store, PATH, term_s=1.0) as lease:
        first = held(store).expires
        time.sleep(1.5)
        assert held(store).expires > first
        with pytest.raises(StoreError, match="holds this sweep"):
            Lease(store, PATH).__enter__()
        assert not lease.lost


@pytest.mark.parametrize("gone", [False, True])
def test_a_driver_whose_lease_was_taken_or_deleted_is_told_and_leaves_it(store, gone):
    thief = left_behind(time.time() + 60, "x/y/1/2")
    with Lease(store, PATH, term_s=0.2) as lease:
        if gone:
            store.delete(PATH)
        else:
            store.put(PATH, thief)
        wait_for(lambda: lease.lost)
    assert store.list("") == ([] if gone else [PATH])
    assert gone or store.get(PATH) == thief


class Flaky(Store):
    """A store that can be unplugged."""

    away = False

    def get_tagged(self, path: str) -> tuple[bytes, str | None]:
        if self.away:
            raise StoreUnavailable("unplugged")
        return super().get_tagged(path)


def test_a_driver_gives_up_when_the_store_is_away_for_longer_than_its_term(store):
    flaky = Flaky(store.backend, "memory://")
    with Lease(flaky, PATH, term_s=0.8) as lease:
        flaky.away = True
        time.sleep(0.4)
        assert not lease.lost  # nobody else can have it yet
        wait_for(lambda: lease.lost)


class Clock:
    """The lease's time, which passes when it is told to."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_it_slept()

    def while_it_slept(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("soupray.store.lease.time", clock)
    return clock


def test_a_lease_is_lost_as_soon_as_its_term_is_over(store, clock):
    with Lease(store, PATH, term_s=60.0) as lease:
        clock.now = 1060.0
        assert not lease.lost
        clock.now = 1060.5
        assert lease.lost
        clock.now = 1000.0
        assert lease.lost  # what was said is not taken back
    assert held(store).expires == 1060.0  # it may be another's by now: it is left alone


def test_the_term_begins_when_a_renewal_is_asked_for_and_not_with_its_answer(store, clock):
    class Late(Store):
        """It answers a quarter of a second after it was asked."""

        def get_tagged(self, path: str) -> tuple[bytes, str | None]:
            clock.now += 0.25
            return super().get_tagged(path)

    renewed, may_go_on = threading.Event(), threading.Event()

    def beat() -> None:
        if clock.now > 1000.0:  # not the first, which comes at once
            renewed.set()
            assert may_go_on.wait(60)

    with Lease(Late(store.backend, store.url), PATH, term_s=0.4) as lease:
        lease.attend(beat)
        assert renewed.wait(60)  # asked at 1000, answered at 1000.25
        clock.now = 1000.375
        assert not lease.lost
        clock.now = 1000.5
        assert lease.lost
        may_go_on.set()


def test_a_lease_is_renewed_four_times_a_term(store, monkeypatch):
    waited = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            return super().wait(timeout)

    threads = SimpleNamespace(Event=Watched, Thread=threading.Thread)
    monkeypatch.setattr("soupray.store.lease.threading", threads)
    for term in ({}, {"term_s": 20.0}):
        with Lease(store, PATH, **term):
            wait_for(lambda: waited)
        assert [seconds for seconds in waited if seconds is not None] == [
            term.get("term_s", 60.0) / 4
        ]
        waited.clear()


ELSEWHERE = "another-boot/pid:[1]/7/1"


# By its own clock it ends in half a second, ended a minute ago, or ends in the year 33658.
@pytest.mark.parametrize("expires", [1000.5, 940.0, 1e12])
def test_a_lease_of_another_machine_is_taken_after_a_term_without_renewal(store, clock, expires):
    store.put(PATH, left_behind(expires, ELSEWHERE))
    with Lease(store, PATH) as lease:
        assert held(store).holder == lease.holder
        assert clock.now == 1060.0
        assert held(store).expires == 1120.0


def test_a_driver_on_another_machine_that_renews_its_lease_keeps_it(store, clock):
    """Its clock is two minutes behind: by ours, its lease is always over."""
    store.put(PATH, left_behind(940.0, ELSEWHERE))
    clock.while_it_slept = lambda: store.put(PATH, left_behind(clock.now - 60, ELSEWHERE))
    with pytest.raises(StoreError, match=r"host9, pid 7\) runs this sweep: it has just renewed"):
        Lease(store, PATH).__enter__()
    assert clock.now == 1015.0
    # What is given back meanwhile is free.
    clock.while_it_slept = lambda: store.put(PATH, left_behind(0.0, ELSEWHERE))
    with Lease(store, PATH) as lease:
        assert held(store).holder == lease.holder
    assert clock.now == 1030.0


def test_how_a_lease_was_lost_is_told(store):
    with Lease(store, PATH) as lease:
        lease.refuse_loss("digits")
    flaky = Flaky(store.backend, "memory://")
    with Lease(flaky, PATH, term_s=0.4) as lease:
        flaky.away = True
        wait_for(lambda: lease.lost)
    with pytest.raises(
        StoreError, match=r"not renewed for 0 s: the store was away.*No other drive"
    ):
        lease.refuse_loss("digits")
    # It stood still, and another one came meanwhile.
    store.delete(PATH)
    with Lease(store, PATH, term_s=0.4) as lease:
        store.put(PATH, left_behind(time.time() + 60, ELSEWHERE))
        wait_for(lambda: lease.lost)
    with pytest.raises(
        StoreError, match=r"Another driver \(host9, pid 7\) took the sweep digits ov"
    ):
        lease.refuse_loss("digits")


def test_a_driver_that_loses_the_race_is_told_so(store):
    class Taken(Store):
        def swap(self, path: str, data: bytes, etag: str | None) -> bool:
            return False

    dead = left_behind(time.time() + 1000, f"{this_process().rpartition('/')[0]}/1")
    store.put(PATH, dead)
    with pytest.raises(StoreError, match=r"took the lease that host9, pid 7 left"):
        Lease(Taken(store.backend, store.url), PATH).__enter__()
    assert store.get(PATH) == dead


def test_who_drives_and_what_it_says_counts_as_long_as_its_lease(store, clock):
    where, elsewhere = layout.lease("digits"), "another-boot/pid:[1]/7/1"
    beat = Beat(running=(), failed={"a": "b"}, seconds_left=None)
    assert find_driver(store, "digits") is None
    store.put(where, left_behind(1001.0, elsewhere))
    assert find_driver(store, "digits").heartbeat is None
    write_heartbeat(store, "digits", "h", beat)
    driver = find_driver(store, "digits")
    assert (driver.lease.expires, driver.lease.who) == (1001.0, "host9, pid 7")
    assert driver.heartbeat == Heartbeat(holder="h", written=1000.0, beat=beat)
    write_heartbeat(store, "digits", "another", beat)
    assert find_driver(store, "digits").heartbeat is None
    store.put(where, left_behind(1000.0, elsewhere))
    assert find_driver(store, "digits") is None
    store.put(where, left_behind(1001.0, f"{this_process().rpartition('/')[0]}/1"))
    assert find_driver(store, "digits") is None  # it is dead


def test_a_first_beat_that_does_not_arrive_is_no_error_and_a_lease_that_was_never_lost_stays(store):
    beats = []

    def beat() -> None:
        beats.append(1)
        raise StoreUnavailable("away")

    with Lease(store, PATH, term_s=0.4) as lease:
        lease.attend(beat)
        assert beats == [1]
        wait_for(lambda: len(beats) > 1)
        assert not lease.lost


class Slow(Store):
    """A store that does not answer until it is told to."""

    answers = threading.Event()

    def get_tagged(self, path: str) -> tuple[bytes, str | None]:
        self.answers.wait(60)
        return super().get_tagged(path)


def test_a_driver_does_not_wait_for_a_late_answer_to_know_that_its_term_is_over(store):
    slow = Slow(store.backend, "memory://")
    with Lease(slow, PATH, term_s=0.4) as lease:
        wait_for(lambda: lease.lost)  # the first renewal has no answer yet
        slow.answers.set()
        lease.thread.join()
        assert lease.lost  # what was said is not taken back
    assert held(store).expires > 0  # it may be another's by now: it is left alone


def test_a_store_that_is_away_at_the_end_hides_neither_the_result_nor_the_error(store):
    flaky = Flaky(store.backend, "memory://")
    with Lease(flaky, PATH):
        flaky.away = True
    flaky.away = False
    flaky.delete(PATH)

    def drive() -> None:
        with Lease(flaky, PATH):
            flaky.away = True
            raise KeyError("the driver's own")

    with pytest.raises(KeyError, match="the driver's own"):
        drive()


def test_what_is_no_lease_is_named(store):
    store.put(PATH, b"{}")
    with pytest.raises(StoreError, match=rf"{PATH} in memory:// is not a lease: .*delete it"):
        Lease(store, PATH).__enter__()


class Retrying(Store):
    """A client that tries writes again whose answer was lost: it is told that it came second."""

    def create(self, path: str, data: bytes) -> None:
        super().create(path, data)
        super().create(path, data)

    def swap(self, path: str, data: bytes, etag: str | None) -> bool:
        assert super().swap(path, data, etag)
        return super().swap(path, data, etag)


@pytest.mark.parametrize("expired", [False, True], ids=["new", "taken over"])
def test_a_driver_whose_client_comes_second_to_itself_has_the_lease_and_keeps_it(store, expired):
    if expired:
        store.put(PATH, left_behind(time.time() - 1, this_process()))
    with Lease(Retrying(store.backend, store.url), PATH, term_s=2.0) as lease:
        first = held(store)
        assert first.holder == lease.holder
        wait_for(lambda: held(store).expires > first.expires)
        assert not lease.lost
    assert not lease.lost
    assert held(store).expires == 0
