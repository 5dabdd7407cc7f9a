"""Sweep and soup on a cluster that starts with no worker: Ray's autoscaler, a fake provider.

The provider starts real Ray nodes as processes of this machine, on request of the real autoscaler.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import HANG_S, ROOT, mini_text
from shared import embedded_store
from test_ray_job import free_ports, node_address, wait_for

from soupray.distributed.cluster import make_token
from soupray.store.objects import open_store

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).with_name("ray")
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip


def config(gcs: str) -> dict:
    """At most two workers of one CPU, gone after six idle seconds."""
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in LISTS},
    }


@pytest.fixture
def cluster(tmp_path):
    """(address, environment of drivers): a head without CPUs, and an S3 store for all nodes."""
    make_token()  # as another head may start on this new machine at the same time
    gcs, dashboard, agent = free_ports(3)
    address = f"{node_address()}:{gcs}"
    file = tmp_path / "autoscaling.json"
    file.write_text(json.dumps(config(address)))
    with embedded_store(tmp_path / "elsewhere") as s3:
        env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "SOUPRAY_HOME": str(tmp_path / "nodes"),
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        command = [RAY, "start", "--head", "--block", "--num-cpus=0", "--disable-usage-stats"]
        command += [f"--port={gcs}", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--autoscaling-config={file}"]
        process = subprocess.Popen(
            command, env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{dashboard}/api/version", process)
            yield address, env, open_store("s3://soupray/grown", s3)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=HANG_S)


class Workers:
    """How many worker nodes live, asked once a second by a process of its own."""

    ASK = (
        "import ray, sys, time\n"
        "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)\n"
        "while True:\n"
        "    print(sum(n['Alive'] and n['Resources'].get('CPU', 0) > 0 for n in ray.nodes()),"
        " flush=True)\n"
        "    time.sleep(0.5)\n"
    )

    def __init__(self, address: str, env: dict[str, str]) -> None:
        self.seen: list[int] = []
        command = [sys.executable, "-c", self.ASK, address]
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.seen.extend(int(line) for line in self._process.stdout)

    def wait_until(self, count: int) -> None:
        deadline = time.monotonic() + HANG_S
        while not self.seen or self.seen[-1] != count:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=HANG_S)


def test_sweep_and_soup_start_with_no_worker_grow_end_and_the_workers_go(cluster, tmp_path):
    address, env, store = cluster
    spec = tmp_path / "mini.yaml"
    edits = {
        "storage: embedded": "storage: s3://soupray/grown",
        "tracking: embedded": "tracking: off",
        "epochs: {integer: [5, 15]}": "epochs: 1",
        "trials: 16": "trials: 3",
        "{cpu: 1, gpu: 0}": "{cpu: 1, gpu: 0, at_most: 2}",
    }
    spec.write_text(mini_text(**edits))

    def driver(verb: str, *flags: object) -> subprocess.CompletedProcess[str]:
        """A driver that ends well, on a cluster without workers that has two at times."""
        workers.wait_until(0)
        first = len(workers.seen)
        command = [sys.executable, "-m", "soupray", verb, spec, "--home", tmp_path / "driver"]
        done = subprocess.run(
            [*command, "--address", address, *flags],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert max(workers.seen[first:]) == 2  # both that may be: all that waits is seen
        return done

    workers = Workers(address, env)
    try:
        swept = driver("sweep")
        assert "3 trained, 0 found in the store" in swept.stderr
        assert store.get("sweeps/mini/progress.json")  # the driver's heartbeat
        # Four models on four splits: the first actor works while the second one is waited for.
        souped = driver("soup", "--greedy", "--output", tmp_path / "results")
        assert "best_single" in souped.stdout
        workers.wait_until(0)
    finally:
        workers.stop()
    assert len([p for p in store.list("trials") if p.endswith("manifest.json")]) == 3
