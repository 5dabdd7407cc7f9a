"""The same program behind `ray job submit`, on a head node started by `ray start --head`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, inside, leaderboard, mini_text
from shared import embedded

from soupray import stack
from soupray.storage import open_store

RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [p.getsockname()[1] for p in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head():
    """A head node of our own: its ports are free ones, and only it is stopped."""
    gcs, dashboard, agent = free_ports(3)
    env = {**os.environ, "RAY_AUTH_MODE": "token"}
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}"]
    # Two Rays on one machine would both take the default port of the agent that starts jobs.
    command += [f"--dashboard-agent-listen-port={agent}"]
    # A job finds its cluster by a file in the temporary folder, which the last head there wrote.
    temporary = Path(f"/tmp/ray_{gcs}")  # short: sockets lie in it
    command += [f"--temp-dir={temporary}"]
    process = subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(f"{address}/api/version", process)
        wait_for(f"http://{node_address()}:{agent}/api/local_raylet_healthz", process)
        yield address, env
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)


def node_address() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except urllib.error.HTTPError:
            return  # it answers, and asks for the token
        except OSError:
            assert process.poll() is None, "the head node died"
            assert time.monotonic() < deadline, url
            time.sleep(0.3)


def submit(head, brought: dict[str, str], *entrypoint: object) -> subprocess.CompletedProcess[str]:
    """Run a job that brings these variables along, as one with credentials of its own does."""
    address, env = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": brought}), "--"]
    return subprocess.run(
        [*command, sys.executable, "-m", *map(str, entrypoint)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_sweep_and_soup_run_as_ray_jobs_on_an_s3_store_and_the_results_can_be_pulled(
    head, tmp_path, monkeypatch
):
    home, spec = tmp_path / "home", tmp_path / "mini.yaml"
    edits = {"trials: 16": "trials: 2", "storage: embedded": "storage: s3://soupray/team/digits"}
    spec.write_text(mini_text(**edits))
    with embedded(tmp_path / "elsewhere") as s3:  # in the role of a store that is not ours
        # A region too: Ray refuses a driver that would set again what the job brings.
        brought = {
            "SOUPRAY_HOME": str(home),
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        swept = submit(head, brought, "soupray.sweep", spec)
        assert swept.returncode == 0, swept.stdout
        assert "2 trained, 0 found in the store" in swept.stdout
        # SPEC is left out: the newest sweep of this home.
        souped = submit(head, brought, "soupray.soup", "--greedy")
        assert souped.returncode == 0, souped.stdout
        assert "best_single" in souped.stdout
        store = open_store("s3://soupray/team/digits", s3)
        assert len([p for p in store.list("trials") if p.endswith("manifest.json")]) == 2
        assert stack.find(home) is None  # nothing embedded was started
        for job in (swept, souped):
            assert s3.secret_key not in job.stdout + job.stderr
            assert s3.access_key not in job.stdout + job.stderr
        leaks = [p for p in store.list("") if s3.secret_key.encode() in store.get(p)]
        assert leaks == []
        for name, value in brought.items():
            monkeypatch.setenv(name, value)
        inside("pull", spec, "--output", tmp_path / "out")
    assert {e["name"] for e in leaderboard(tmp_path / "out")} == {
        "zero_shot",
        "best_single",
        "greedy",
    }
