"""The same program behind `ray job submit`, on a head node started by `ray start --head`.

Before the jobs a driver of its own sweeps there, while a trial's worker and then a whole node are
killed with -9, and shows an MLflow server its password. At the end the secrets are looked for in
everything that was written.
"""

import base64
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest
from conftest import HANG_S, ROOT, inside, leaderboard, mini_text
from own_code import files_of
from shared import embedded_store

from soupray.distributed.cluster import make_token
from soupray.services import embedded
from soupray.store.objects import Store, open_store

RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [p.getsockname()[1] for p in probes]
    for probe in probes:
        probe.close()
    return ports


class Head(NamedTuple):
    """Where jobs are submitted, with which environment; where drivers attach; Ray's folder."""

    address: str
    env: dict[str, str]
    cluster: str
    temporary: Path
    pid: int


PASSWORD = token_hex(16)  # of MLflow; written out it would be found in the copy of this file
SHOWN = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()  # as a request carries it


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """In the role of a store that is not ours."""
    with embedded_store(tmp_path_factory.mktemp("elsewhere")) as credentials:
        yield credentials


@pytest.fixture
def mlflow():
    """(URL of an MLflow server that lets nobody in, what it was shown)."""
    shown: list[str | None] = []

    class Doorman(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *parts: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Doorman) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()


@pytest.fixture(scope="module")
def head(s3):
    """A head node of our own: its ports are free ones, and only it is stopped.

    It has the secrets in its environment. A job that brought them would have them in Ray's logs.
    """
    make_token()  # as another head may start on this new machine at the same time
    gcs, dashboard, agent = free_ports(3)
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "MLFLOW_TRACKING_USERNAME": "somebody",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    command = [RAY, "start", "--head", "--block", "--num-cpus=1", "--disable-usage-stats"]
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
        yield Head(address, env, f"{node_address()}:{gcs}", temporary, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=HANG_S)
        shutil.rmtree(temporary, ignore_errors=True)


def node_address() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + HANG_S
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


@pytest.fixture
def node(head):
    """A second node, with room for one trial."""
    command = [RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    command += [f"--address={head.cluster}"]
    process = subprocess.Popen(
        command, env=head.env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield process
    kill(descendants(process.pid))
    process.wait(timeout=HANG_S)


def descendants(pid: int) -> list[int]:
    """The process, its children, their children, and so on."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    with suppress(OSError):  # it ended meanwhile
        found = [int(child) for path in children for child in path.read_text().split()]
        return [pid, *(process for child in found for process in descendants(child))]
    return [pid]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_trial(pid: int) -> bool:
    with suppress(OSError):
        return b"Trainable" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def swept_while_killing(head, node, brought, spec) -> subprocess.CompletedProcess[str]:
    """A sweep: all of `node` is killed, then the worker that trains on the head."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "soupray", "sweep", spec, "--address", head.cluster],
        cwd=ROOT, env={**head.env, **brought}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def trials_on(pid: int) -> list[int]:
        """The processes there that train, as soon as there is one."""
        deadline = time.monotonic() + HANG_S
        while not (found := [p for p in descendants(pid) if is_trial(p)]):
            assert driver.poll() is None, driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    try:
        trials_on(node.pid)
        kill(descendants(node.pid))
        kill(trials_on(head.pid))
        said = driver.communicate(timeout=HANG_S)
    finally:
        driver.kill()
    return subprocess.CompletedProcess("sweep", driver.returncode, *said)


def submit(
    head, brought: dict[str, str], *entrypoint: object, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a job that brings these variables along, and `folder` as its working folder."""
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": brought}), "--"]
    return subprocess.run(
        [*command, sys.executable, "-m", *map(str, entrypoint)],
        cwd=folder, env=head.env, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip


def places_of(secret: bytes, folders: list[Path], store: Store) -> list[str]:
    """The files and objects that hold these bytes."""
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    found = [str(file) for file in files if secret in file.read_bytes()]
    return found + [path for path in store.list("") if secret in store.get(path)]


@pytest.mark.slow
def test_sweep_and_soup_run_as_ray_jobs_on_an_s3_store_and_the_results_can_be_pulled(
    s3, head, node, mlflow, tmp_path, monkeypatch
):
    home, spec = tmp_path / "home", tmp_path / "mini.yaml"
    store = open_store("s3://soupray/team/digits", s3)
    # So long that both nodes train: the first worker runs already, the other one has to start.
    edits = {
        "trials: 16": "trials: 4",
        "epochs: {integer: [5, 15]}": "epochs: 3",
        "storage: embedded": "storage: s3://soupray/team/digits",
    }
    url, shown = mlflow
    spec.write_text(mini_text(**edits | {"tracking: embedded": f"tracking: {url}"}))
    # A region too: Ray refuses a driver that would set again what the job brings.
    brought = {
        "SOUPRAY_HOME": str(home),
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    disturbed = swept_while_killing(head, node, brought, spec)
    assert disturbed.returncode == 0, disturbed.stderr
    assert "4 trained, 0 found in the store" in disturbed.stderr
    assert disturbed.stderr.count("is trained again: ") == 2
    assert "Traceback" not in disturbed.stderr
    assert f"note: MLflow at {url}: " in disturbed.stderr
    assert set(shown) == {f"Basic {SHOWN}"}

    spec.write_text(mini_text(**edits | {"trials: 16": "trials: 5"}))
    swept = submit(head, brought, "soupray.sweep", spec)
    assert swept.returncode == 0, swept.stdout
    assert "1 trained, 4 found in the store" in swept.stdout
    # SPEC is left out: the newest sweep of this home.
    souped = submit(head, brought, "soupray.soup", "--greedy")
    assert souped.returncode == 0, souped.stdout
    assert "best_single" in souped.stdout
    assert len([p for p in store.list("trials") if p.endswith("manifest.json")]) == 5
    assert embedded.find(home) is None  # nothing embedded was started
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    said = "".join(job.stdout + job.stderr for job in (disturbed, swept, souped)).encode()
    # In Ray's logs, the bucket, MLflow's database and files, the home, nor in what was said.
    for text in (s3.secret_key, s3.access_key, PASSWORD, SHOWN, token):
        secret = text.encode()
        assert secret not in said
        assert places_of(secret, [head.temporary, home], store) == []
    for name, value in {**head.env, **brought}.items():
        monkeypatch.setenv(name, value)
    inside("pull", spec, "--output", tmp_path / "out")
    assert {e["name"] for e in leaderboard(tmp_path / "out")} == {
        "zero_shot",
        "best_single",
        "greedy",
    }


def test_a_job_brings_its_own_model_data_metric_loss_and_recipe_in_its_working_folder(
    s3, head, tmp_path
):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files_of("index", "task", "data", "metric", "loss", "recipe").items():
        (folder / name).write_text(text)
    own = "metric: calibrated:brier\nloss: robust:gce\n"
    text = (folder / "letters.yaml").read_text().replace("vrf: {}", "trimmed:TRIMMED: {}")
    spec = folder / "letters.yaml"
    spec.write_text(f'{text}{own}storage: s3://soupray/team/own\ntracking: "off"\n')
    brought = {
        "SOUPRAY_HOME": str(tmp_path / "home"),
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": str(ROOT),
    }
    for verb in ("sweep", "soup"):
        done = submit(head, brought, f"soupray.{verb}", "letters.yaml", folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "trimmed" in done.stdout
    assert "brier: calibrated:brier, on test." in " ".join(done.stdout.split())
