"""Attaching to Ray: what is refused, what is carried, and how failures of trials are told."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import HANG_S, ONE_SLOT, inside, mini_text

from soupray.core.errors import ConfigError, RayLost
from soupray.distributed import cluster
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store import layout


def spec(**edits: str) -> SweepSpec:
    return parse(mini_text(**edits), "x.yaml")


def nodes(monkeypatch, *resources: dict) -> None:
    """Ray's own list of nodes, as this test wants it."""
    listed = [{"Alive": True, "Resources": r} for r in resources]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [*listed, {"Alive": False, "Resources": {}}])


@pytest.mark.parametrize("storage", ["embedded", "file:///tmp/x"])
def test_a_store_on_one_machine_is_refused_on_several_nodes(monkeypatch, storage):
    nodes(monkeypatch, {"CPU": 2}, {"CPU": 2})
    here = spec(**{"storage: embedded": f"storage: {storage}"})
    with pytest.raises(ConfigError, match=r"cluster has 2 nodes.*s3://bucket/prefix"):
        cluster.refuse_what_cannot_work(here, 1, started_here=False)
    away = spec(**{"storage: embedded": "storage: s3://bucket/x"})
    cluster.refuse_what_cannot_work(away, 1, started_here=False)


def test_a_request_that_no_node_can_hold_is_told_at_once(monkeypatch, heard):
    nodes(monkeypatch, {"CPU": 2})
    greedy = spec(**{"{cpu: 1, gpu: 0}": "{cpu: 1, gpu: 1}"})
    with pytest.raises(
        ConfigError, match=r"no room for a trial that asks for 1 CPU and 1 GPU.*Nodes: 2 CPU 0 GPU"
    ):
        cluster.refuse_what_cannot_work(greedy, 1, started_here=True)
    # A cluster may grow: there it is a note.
    cluster.refuse_what_cannot_work(greedy, 1, started_here=False)
    assert "Waiting for the cluster to grow" in heard()
    nodes(monkeypatch, {"CPU": 2}, {"CPU": 1, "GPU": 1})
    fits = spec(
        **{"{cpu: 1, gpu: 0}": "{cpu: 1, gpu: 0.5}", "storage: embedded": "storage: s3://b/x"}
    )
    cluster.refuse_what_cannot_work(fits, 1, started_here=True)


@pytest.mark.parametrize(
    ("held", "request_", "most"),
    [
        ([{"CPU": 2}], "{cpu: 1, gpu: 0}", 2),
        ([{"CPU": 3}, {"CPU": 3}], "{cpu: 2, gpu: 0}", 2),  # six CPUs, but no two on one node
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 1}], "{cpu: 1, gpu: 1}", 3),
        ([{"CPU": 3}], "{cpu: 0.3, gpu: 0}", 10),
    ],
)
def test_workers_of_one_trial_for_which_there_is_no_room_are_told_at_once(
    monkeypatch, heard, held, request_, most
):
    nodes(monkeypatch, *held)
    away = spec(**{"storage: embedded": "storage: s3://b/x", "{cpu: 1, gpu: 0}": request_})
    cluster.refuse_what_cannot_work(away, most, started_here=True)
    asked = f"no room for a trial of {most + 1} workers that ask for "
    with pytest.raises(ConfigError, match=asked):
        cluster.refuse_what_cannot_work(away, most + 1, started_here=True)
    cluster.refuse_what_cannot_work(away, most + 1, started_here=False)
    assert asked in heard()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_told_within_seconds(scheme):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"{scheme}127.0.0.1:{port}"
    started = time.monotonic()
    with (
        pytest.raises(ConfigError, match=f"Ray at {address} does not answer: .*refused"),
        cluster.attach(address, spec()),
    ):
        pass
    assert time.monotonic() - started < 5


def test_a_wait_says_what_it_waits_for_and_has_an_end(monkeypatch, heard):
    here = {"NodeID": "here", "Alive": True, "Resources": {}}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [here, here | {"NodeID": "other"}])
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    clock = [1000.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock[0])
    vigil = cluster.Vigil("a trial of 3 GPUs")

    def look(later: float, running: int) -> str:
        before = heard()
        clock[0] += later
        vigil.look(running)
        return heard().removeprefix(before)

    assert look(59, 0) == ""
    said = "note: nothing has run for 70 s: waiting for room for a trial of 3 GPUs. 2 node(s) are "
    assert look(11, 0).startswith(said)
    assert look(100, 0) == ""  # once
    assert look(5, 1) == look(50, 0) == ""  # it ran again
    assert "nothing has run for 65 s" in look(15, 0)
    with pytest.raises(ConfigError, match="nothing has run for 12 hours: no room for a trial of 3"):
        look(12 * 3600, 0)
    monkeypatch.setattr(cluster, "session_is_here", False)
    here["Alive"] = False
    with pytest.raises(RayLost, match=r"does not come back: start it again \(`ray start --address"):
        look(5, 1)
    monkeypatch.setattr(cluster, "session_is_here", True)
    with pytest.raises(RayLost, match="does not come back: run the same command again"):
        look(5, 1)


def test_what_the_ray_job_brings_is_not_carried_again(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert cluster.variables_of_the_job() == set()
    config = {"runtime_env": {"env_vars": {"AWS_ENDPOINT_URL": "x", "AWS_SECRET_ACCESS_KEY": "y"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert cluster.variables_of_the_job() == {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"}


def resources(monkeypatch, **held: float) -> None:
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: held)


def test_what_runs_at_a_time_is_what_there_is_room_for_what_the_spec_says_or_all(monkeypatch):
    resources(monkeypatch, CPU=7)
    two = spec(**{"{cpu: 1, gpu: 0}": "{cpu: 2, gpu: 0}"})
    said = spec(**{"{cpu: 1, gpu: 0}": "{cpu: 2, gpu: 0, at_most: 16}"})
    together = spec(**{"\nresources": "\ntraining: {workers: 3}\nresources"})
    assert cluster.slots(two.resources) == 3
    monkeypatch.setattr(cluster, "session_is_here", True)
    assert (cluster.at_a_time(two), cluster.at_a_time(said)) == (3, 16)
    # On a cluster a trial that waits is what the autoscaler sees; with no worker yet, as well.
    monkeypatch.setattr(cluster, "session_is_here", False)
    assert (cluster.at_a_time(two), cluster.at_a_time(said)) == (None, 16)
    assert cluster.at_a_time(together) == 2  # 7 workers of one CPU, three for each trial
    resources(monkeypatch)
    assert (cluster.at_a_time(two), cluster.slots(two.resources)) == (None, 1)
    assert cluster.largest([two.resources, said.resources]) == said.resources


def test_each_machine_has_a_cache_and_the_drivers_is_the_homes(monkeypatch, tmp_path):
    from soupray.services.place import Place

    def place(host: str | None) -> Place:
        return Place(storage="memory://", credentials=None, cache="/driver/cache", host=host)

    assert place(None).folder == place(socket.gethostname()).folder == Path("/driver/cache")
    monkeypatch.setenv("SOUPRAY_HOME", str(tmp_path / "node"))
    assert place("another").folder == tmp_path / "node" / "cache"
    monkeypatch.delenv("SOUPRAY_HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert place("another").folder == tmp_path / f"soupray-{os.getuid()}" / "cache"
    assert (tmp_path / f"soupray-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    (tmp_path / "soupray-4242").mkdir()  # ours, but not of that user
    with pytest.raises(ConfigError, match=r"4242 belongs to another user. Set SOUPRAY_HOME"):
        _ = place("another").folder


def test_the_token_is_made_once_by_whoever_comes_first_and_is_the_owners_only(tmp_path):
    token = tmp_path / "new" / "auth_token"
    said = "import sys; from pathlib import Path; from soupray.distributed.cluster import *;"
    said += "make_token(Path(sys.argv[1])); print(Path(sys.argv[1]).read_text())"
    started = [
        subprocess.Popen([sys.executable, "-c", said, token], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = {process.communicate(timeout=HANG_S)[0].strip() for process in started}
    assert found == {token.read_text()}
    assert len(token.read_text()) == 64
    assert [file.name for file in token.parent.iterdir()] == ["auth_token"]
    token.chmod(0o644)
    cluster.make_token(token)  # what is there stays, and becomes the owner's only
    assert found == {token.read_text()}
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_is_made_on_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")  # as FAT and some NFS do

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    cluster.make_token(tmp_path / "auth_token")
    assert len((tmp_path / "auth_token").read_text()) == 64
    assert (tmp_path / "auth_token").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["auth_token"]


@pytest.mark.slow
def test_a_sweep_whose_trials_fail_says_so_keeps_what_there_is_and_exits_1(fresh):
    """theta_0 vanishes from the store: every new trial fails; the old ones stay ingredients."""
    from soupray.search.state import find_basis

    loaded, _, store = fresh.world()
    store.delete(layout.weights(find_basis(store, loaded).init.sha256))
    fresh.spec.write_text(mini_text(**ONE_SLOT | {"trials: 16": "trials: 5"}))
    done = inside("sweep", fresh.spec, *fresh.where, check=False)
    assert done.returncode == 1, done.stderr
    assert "5 trials planned, 4 in the store, 1 to train" in done.stderr
    assert "NotFound" in done.stderr
    assert "1 of 5 trials failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(store.list("trials")) == 4
