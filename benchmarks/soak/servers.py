"""What the soak runs on, all of it real: SeaweedFS behind the proxy, MLflow, Ray's head and a node.

Every process is started and ended here; nothing else on the machine is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.soak.proxy import Proxy
from soupray.services import embedded
from soupray.store.s3 import Credentials

RAY = Path(sys.executable).with_name("ray")
MLFLOW_PASSWORD = secrets.token_hex(16)
PATIENCE_S = 120.0
OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [p.getsockname()[1] for p in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(condition, what: str, seconds: float = PATIENCE_S) -> None:
    """Wait for `condition`, or give up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether somebody answers there, whatever it is."""
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


def listens(port: int) -> bool:
    """Whether a port of this machine is open."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True
    return False


class Process:
    """A server in a session of its own, which can be killed and started again."""

    def __init__(self, command: list[object], env: dict[str, str], log: Path) -> None:
        self._command, self._env, self._log = list(map(str, command)), env, log
        self.start()

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, env=self._env, start_new_session=True, stdout=out, stderr=out
            )

    def members(self) -> list[int]:
        """It and all that descends from it."""
        return [self._process.pid, *descendants(self._process.pid)]

    def kill(self) -> None:
        """With -9, and all that descends from it: a machine that is gone."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """Ask it to end, else kill it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on, as /proc knows them now."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def called(pids: list[int], part: str) -> list[int]:
    """Those of the processes whose title contains `part`."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if part in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append(pid)
    return found


class Servers:
    """All of them, up; a context manager that stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home = folder / "store"
        self._open = ExitStack()

    def __enter__(self) -> Servers:
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _start(self) -> None:
        self._store = embedded.up(self._home)
        self._open.callback(embedded.down, self._home)
        self.proxy = Proxy(self._find_store)
        self._open.callback(self.proxy.stop)
        (self._mlflow_port,) = free_ports(1)
        self.mlflow = Process(*self._mlflow())
        self._open.callback(self.mlflow.end)
        self.tracker = Proxy(lambda: ("127.0.0.1", self._mlflow_port))
        self._open.callback(self.tracker.stop)
        self._gcs, agent = free_ports(2)
        self.temporary = Path(f"/tmp/soak_{self._gcs}")  # short: sockets lie in it
        self._open.callback(shutil.rmtree, self.temporary, ignore_errors=True)
        head = [RAY, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"]
        head += [f"--port={self._gcs}", f"--dashboard-agent-listen-port={agent}"]
        self._head = self._ray(*head, f"--temp-dir={self.temporary}")
        wait_until(lambda: listens(self._gcs), "Ray's head")
        self._node = self._ray(RAY, "start", "--block", "--num-cpus=1", "--address", self.address)
        wait_until(self.mlflow_answers, "MLflow")

    def _ray(self, *command: object) -> Process:
        log = self.folder / "ray.log"
        memory = "--object-store-memory=100000000"
        process = Process([*command, memory, "--disable-usage-stats"], self.environment, log)
        self._open.callback(process.end)
        return process

    def _mlflow(self) -> tuple[list[object], dict[str, str], Path]:
        command: list[object] = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", self._mlflow_port]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", self.folder / "artifacts"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= OFF | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return command, env, self.folder / "mlflow.log"

    def _find_store(self) -> tuple[str, int]:
        return "127.0.0.1", urlsplit(self._store.endpoint).port or 0

    @property
    def address(self) -> str:
        """Of Ray's head."""
        from ray.util import get_node_ip_address

        return f"{get_node_ip_address()}:{self._gcs}"

    @property
    def direct(self) -> Credentials:
        """The store without the proxy."""
        s = self._store
        return Credentials(s.endpoint, s.access_key, s.secret_key)

    @property
    def environment(self) -> dict[str, str]:
        """Of drivers and nodes."""
        return {
            **os.environ,
            **OFF,
            "RAY_AUTH_MODE": "token",
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ACCESS_KEY_ID": self._store.access_key,
            "AWS_SECRET_ACCESS_KEY": self._store.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_USERNAME": "soak",
            "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD,
        }

    def kill_store(self, away: float) -> None:
        """Kill -9, and start it again when that time is over."""
        os.kill(self._store.pid, signal.SIGKILL)
        time.sleep(away)
        self._store = embedded.up(self._home)

    def freeze_store(self, seconds: float) -> None:
        """It answers nothing and then goes on."""
        os.kill(self._store.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._store.pid, signal.SIGCONT)

    def kill_node(self) -> None:
        """The node with everything on it; another one comes in its place."""
        self._node.kill()
        self._node.start()

    def kill_worker(self, title: str) -> bool:
        """One process of Ray's whose title contains this; False if there is none."""
        pids = called([*self._head.members(), *self._node.members()], title)
        with suppress(ProcessLookupError):
            if pids:
                os.kill(max(pids), signal.SIGKILL)
                return True
        return False

    def kill_mlflow(self) -> None:
        """Start it again with `mlflow.start`."""
        self.mlflow.kill()

    def mlflow_answers(self) -> bool:
        """Whether the MLflow server is up."""
        return answers(f"http://127.0.0.1:{self._mlflow_port}/health")

    def restart_mlflow(self) -> None:
        """Once it was killed."""
        if not self.mlflow_answers():
            self.mlflow.start()
            wait_until(self.mlflow_answers, "MLflow")


def in_background(work, *arguments: object) -> threading.Thread:
    """Run it in a thread."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread
