"""`soupray logs`: why trials failed, from the store, and what their workers printed, from files."""

import json
import os
import time

import pytest
from shared import Old, unpacked

from soupray.core.errors import TRIAL_FAILED
from soupray.core.records import encode
from soupray.core.trials import Tombstone
from soupray.search.state import find_basis, find_state
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.lease import Beat, LeaseRecord, this_process, write_heartbeat
from soupray.store.manifests import create_manifest


@pytest.fixture
def old(tmp_path) -> Old:
    """The store of `tests/stores`, whose sweep `one` has a fifth trial to train."""
    old = unpacked(tmp_path)
    path = old.spec("one")
    path.write_text(path.read_text().replace("trials: 4", "trials: 5"))
    return old


def said(old: Old, *options: object) -> dict:
    return json.loads(old.run("logs", "one", *options, "--json").stdout)


def missing(old: Old) -> str:
    (trial,) = find_state(old.store, load(old.spec("one"))).missing
    return trial.key


def ended(old: Old, process: str) -> None:
    """A driver gave its lease back."""
    record = LeaseRecord(holder="h", who="host9, pid 7", process=process, expires=0)
    old.store.put(layout.lease("one"), encode(record))


def test_a_trial_that_failed_has_its_reason_in_the_store_and_its_traceback_here(old):
    """theta_0 is not in the store, so that the trial cannot begin."""
    spec, key = load(old.spec("one")), missing(old)
    old.store.delete(layout.weights(find_basis(old.store, spec).init.sha256))
    done = old.run("sweep", "one", check=False)
    assert "1 of 5 trials failed" in done.stderr
    found = said(old, key)
    assert found["failed"][key].startswith("NotFound: ")
    (file,) = found["files"]
    assert f"_{os.getpid()}/logs/worker-" in file["path"]
    assert file["lines"][-1].startswith("soupray.core.errors.NotFound: ")
    assert len(file["lines"]) == 20
    first = said(old, key, "--tail", 1000)["files"][0]["lines"]
    assert first[:2] == [TRIAL_FAILED.format(key), "Traceback (most recent call last):"]
    shown = old.run("logs", "one").stdout
    assert f"failed      {key}: NotFound:\n" in shown
    assert f"pid {os.getpid()}, ended; last heartbeat 20" in shown


def test_what_the_store_knows_is_shown_wherever_the_driver_ran(old):
    key = missing(old)
    ended(old, "another-boot/pid:[1]/7/1")
    beat = Beat(running=(), failed={key: "OSError: disk full"}, seconds_left=None)
    write_heartbeat(old.store, "one", "h", beat)
    found = said(old)
    assert found["failed"] == {key: "OSError: disk full"}
    assert (found["driver"], found["runs"], found["files"]) == ("host9, pid 7", False, [])
    assert found["elsewhere"].startswith("host9, pid 7 ran it: its workers' logs are in logs/ of")
    # It was run again, and diverged: the failure is over.
    spec = load(old.spec("one"))
    (trial,) = find_state(old.store, spec).missing
    dead = Tombstone(trial=trial, reason="loss is nan", history=(), started=0, finished=1)
    create_manifest(old.store, dead)
    found = said(old)
    assert (found["failed"], found["diverged"]) == ({}, {key: "loss is nan"})
    assert f"diverged    {key}: loss is nan" in old.run("logs", "one", 4).stdout


def test_the_lines_of_a_trial_end_where_the_next_one_begins(old, tmp_path, monkeypatch):
    key, other = missing(old), "0" * 16
    ended(old, this_process())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = tmp_path / "ray" / f"session_2026_{os.getpid()}" / "logs"
    folder.mkdir(parents=True)
    lines = [":job_id:01", TRIAL_FAILED.format(key), "a", "b", TRIAL_FAILED.format(other), "c"]
    (folder / "worker-x-1.err").write_text("\n".join(lines))
    (folder / "worker-x-1.out").write_text(":job_id:01\n")  # nothing but Ray's mark
    (file,) = said(old, key)["files"]
    assert file["lines"] == [TRIAL_FAILED.format(key), "a", "b"]
    (file,) = said(old, "--tail", 1)["files"]
    assert file["lines"] == ["c"]
    assert said(old, "--tail", 0)["files"][0]["lines"] == []
    assert file["written"] == pytest.approx(time.time(), abs=60)
    error = old.folder / "home" / "cache" / "tune" / "one" / key / "error.txt"
    error.parent.mkdir(parents=True)
    error.write_text("its worker died\n")
    assert {f["path"] for f in said(old, key)["files"]} == {str(error), file["path"]}


def test_without_a_driver_it_says_so_and_where_logs_would_be(old):
    key = find_state(old.store, load(old.spec("one"))).complete[0].trial.key
    old.store.delete(layout.lease("one"))
    shown = old.run("logs", "one", key).stdout
    assert "driver      none yet" in shown
    assert f"trial       {key} did not fail: soupray show one {key}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not (old.folder / "home").exists()
