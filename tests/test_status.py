"""How a sweep stands, read from the store alone; and the driver's heartbeat that it reads."""

import json
import re
import time

import msgspec
import pytest
from conftest import HANG_S, inside, mini_text
from shared import ingredient, scores, sha, split

from soupray.core.errors import NotFound, StoreUnavailable
from soupray.core.records import Basis, CheckpointRef, decode, encode
from soupray.core.trials import EpochRecord, Tombstone
from soupray.operations.status import find_status
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.lease import (
    Beat,
    Lease,
    LeaseRecord,
    RunningTrial,
    find_driver,
    this_process,
    write_heartbeat,
)
from soupray.store.objects import create_record, open_store
from soupray.sweep.progress import SweepProgress

NOTHING = Beat(running=(), failed={}, seconds_left=None)


@pytest.fixture
def swept(tmp_path):
    """(spec's file, spec, store, its four trials): planned, one complete, one diverged."""
    path = tmp_path / "mini.yaml"
    url = f"file://{tmp_path}/store"
    edits = {"storage: embedded": f"storage: {url}", "tracking: embedded": "tracking: off"}
    path.write_text(mini_text(**edits))
    spec, store = load(path), open_store(url)
    init = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
    splits = (split("train", 9, "train"), split("held_out", 10, "held_out"))
    key = basis_key(spec)
    basis = Basis(key=key, splits=splits, init=init, anchor=init)
    create_record(store, f"bases/{key}.json", basis)
    trials = trials_of(spec, basis)
    made = msgspec.structs.replace(ingredient("a", scores(9, 10)), trial=trials[0])
    create_record(store, layout.manifest(trials[0].key), made)
    dead = Tombstone(trial=trials[1], reason="loss is nan", history=(), started=0, finished=1)
    create_record(store, layout.manifest(trials[1].key), dead)
    return path, spec, store, trials


def test_without_a_driver_what_is_not_over_is_missing(swept, tmp_path):
    _, spec, _, trials = swept
    found = find_status(spec, tmp_path)
    assert (found.trials, found.complete, found.diverged, found.missing) == (4, 1, 1, 2)
    assert (found.running, found.driver, found.seconds_left) == ((), None, None)
    assert found.best is not None
    assert (found.best.key, found.best.accuracy) == (trials[0].key, 0.9)


def test_the_end_of_a_sweep_names_the_trials_that_went_astray(swept, tmp_path):
    """Nothing is left to train: this takes no Ray."""
    path, _, store, trials = swept
    store.delete(layout.manifest(trials[1].key))
    for number, (one, far) in enumerate(zip(trials, (2, 50, 3, 0), strict=True)):
        made = ingredient("a", scores(9 - number, 10))
        made = msgspec.structs.replace(made, trial=one, distance=far)
        store.put(layout.manifest(one.key), encode(made))
    said = " ".join(inside("sweep", path, "--home", tmp_path).stderr.split())
    # The median of the others that moved, 2 and 3, is 2.5.
    assert f"warning: trial {trials[1].key} is 20 times as far from theta_0 as the median" in said
    assert f"note: trial {trials[3].key} is theta_0: training changed nothing" in said
    assert f"Next: soupray check {path}, which reads the weights;" in said


def test_the_best_is_by_the_metric_of_the_spec(swept, tmp_path):
    path, _, store, trials = swept
    path.write_text(path.read_text().replace("seed: 0\n", "seed: 0\nmetric: nll\n", 1))
    spec = load(path)
    (sure, right, *_) = trials_of(spec, decode(store.get(store.list("bases")[0]), Basis))
    assert not {sure.key, right.key} & {t.key for t in trials}
    # 6 of 10 right with an NLL of .25 is better than 9 of 10 with one of .5.
    for one, correct, nll in ((sure, 6, 0.25), (right, 9, 0.5)):
        held_out = msgspec.structs.replace(scores(correct, 10), nll=nll)
        made = msgspec.structs.replace(ingredient("a", held_out), trial=one)
        create_record(store, layout.manifest(one.key), made)
    best = find_status(spec, tmp_path).best
    assert best is not None
    assert (best.key, best.metric, best.score, best.accuracy) == (sure.key, "nll", 0.25, 0.6)
    said = inside("status", path, "--home", tmp_path).stdout
    assert f"best so far: {sure.key}, nll 0.250, 60.0 % on 10 held-out samples." in said


def test_a_living_driver_says_what_runs_at_which_epoch_and_how_long_it_will_take(swept, tmp_path):
    path, spec, store, trials = swept
    running = RunningTrial(key=trials[2].key, epoch=1, epochs=2, since=time.time() - 50)
    over = RunningTrial(key=trials[0].key, epoch=2, epochs=2, since=0)  # ended since the beat
    beat = Beat(running=(over, running), failed={trials[3].key: "OSError: x"}, seconds_left=90)
    with Lease(store, layout.lease(spec.name)) as lease:
        write_heartbeat(store, spec.name, lease.holder, beat)
        found = find_status(spec, tmp_path)
        assert (found.running, found.missing) == ((running,), 1)
        assert found.failed == {trials[3].key: "OSError: x"}
        # minus what this machine took until now
        assert 30 < found.seconds_left <= 90
        assert 0 < found.lease_expires - time.time() <= 60
        said = inside("status", path, "--home", tmp_path).stdout
        assert "1 of 4 trials done, 1 diverged, 1 running, 1 failed, 1 missing." in said
        assert f"best so far: {trials[0].key}, 90.0 % on 10 held-out samples." in said
        assert re.search(r"; (1 min )?\d+ s left", " ".join(said.split()))
        assert f"{trials[2].key} " in said
        assert f"failed: {trials[3].key}: OSError: x" in said
        shown = json.loads(inside("status", path, "--home", tmp_path, "--json").stdout)
        assert shown["running"][0]["epoch"] == 1
    # Released: the same record now says nothing.
    assert find_status(spec, tmp_path).running == ()
    assert "nobody drives it." in inside("status", path, "--home", tmp_path).stdout


def test_the_heartbeat_of_a_driver_before_this_one_says_nothing(swept):
    _, spec, store, _ = swept
    write_heartbeat(store, spec.name, "another", NOTHING)
    with Lease(store, layout.lease(spec.name)):
        driver = find_driver(store, spec.name)
        assert driver is not None
        assert driver.heartbeat is None


@pytest.mark.parametrize(
    ("expires", "process"),
    [(-1.0, this_process()), (30.0, f"{this_process()}0")],
    ids=["ended", "another process"],  # names that are the same in every process of xdist
)
def test_a_lease_that_ended_or_whose_process_did_drives_nothing(swept, expires, process):
    _, spec, store, _ = swept
    left = LeaseRecord(holder="h", who="x", process=process, expires=time.time() + expires)
    store.put(layout.lease(spec.name), encode(left))
    assert find_driver(store, spec.name) is None


def test_a_sweep_that_never_ran_says_so(swept, tmp_path):
    path, spec, store, _ = swept
    store.delete(f"bases/{basis_key(spec)}.json")
    with pytest.raises(NotFound, match=r"no trial of mini was planned.*nobody drives it.*sweep"):
        find_status(spec, tmp_path)
    assert inside("status", path, "--home", tmp_path, check=False).returncode == 1


def test_the_watch_beats_with_what_it_was_told(swept):
    trials = swept[3]
    watch = SweepProgress(trials, lambda key: None, lambda key: None)
    assert watch.beat() == NOTHING
    for one in trials[1:]:
        watch.started(one.key)
    record = EpochRecord(epoch=1, train_loss=1, held_out_correct=1, held_out_n=2, seconds=1)
    watch.epoch(trials[1].key, record)
    watch.failed(trials[3].key, "its worker died")
    beat = watch.beat()
    assert {r.key: r.epoch for r in beat.running} == {trials[1].key: 1, trials[2].key: 0}
    assert all(time.time() - r.since < 5 for r in beat.running)
    assert beat.failed == {trials[3].key: "its worker died"}
    assert beat.seconds_left is not None


def test_a_lease_beats_at_once_and_with_every_renewal_and_survives_a_store_that_is_away():
    store, beats = open_store("memory://"), []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 2:
            raise StoreUnavailable("unplugged")

    with Lease(store, "sweeps/x/lease.json", term_s=0.4) as lease:
        lease.attend(beat)
        assert len(beats) == 1
        deadline = time.monotonic() + HANG_S
        while len(beats) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not lease.lost


def test_a_beat_that_cannot_be_written_at_the_start_is_no_reason_to_stop():
    def beat() -> None:
        raise StoreUnavailable("unplugged")

    with Lease(open_store("memory://"), "x.json") as lease:
        lease.attend(beat)
        assert not lease.lost
