"""The store's contract over memory, a folder and a real S3 server, and what it says in trouble."""

import http.server
import os
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import pytest
from shared import embedded_store, small_disk

from benchmarks.soak.proxy import Proxy, fits
from soupray.core.errors import AlreadyExists, ConfigError, NotFound, StoreUnavailable
from soupray.store import objects
from soupray.store.objects import Store, check_bucket, open_store
from soupray.store.s3 import Credentials, resolve

SECRET = "0123456789abcdefsecret"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with embedded_store(tmp_path_factory.mktemp("s3")) as credentials:
        yield credentials


@pytest.fixture(params=["memory", "file", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "s3":
        url = f"s3://soupray/{uuid.uuid4().hex}"
        return open_store(url, request.getfixturevalue("s3"))
    return open_store("memory://" if request.param == "memory" else f"file://{tmp_path}/store")


def at_once(store, work):
    """The results of `work(i)` in threads that start together.

    SeaweedFS gets fewer of them: it makes those that wait for one name sleep a second each.
    """
    count = 4 if store.url.startswith("s3:") else 16
    barrier = Barrier(count)

    def run(i: int):
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


class TestContract:
    def test_what_was_put_is_read_whole_and_in_part(self, store):
        data = os.urandom(300_000)
        store.put("a/b", data)
        assert store.get("a/b") == data
        assert store.get_range("a/b", 1000, 50) == data[1000:1050]
        assert store.size("a/b") == 300_000
        store.put("a/b", b"other")
        assert store.get("a/b") == b"other"

    def test_a_file_is_uploaded_in_parts(self, store, tmp_path):
        data = os.urandom(12_000_000)
        (tmp_path / "big").write_bytes(data)
        store.put("big", tmp_path / "big")
        assert store.get("big") == data
        assert store.size("big") == 12_000_000

    def test_create_is_refused_the_second_time_and_the_first_content_stays(self, store):
        store.create("manifest", b"first")
        with pytest.raises(AlreadyExists, match="manifest is already in"):
            store.create("manifest", b"second")
        assert store.get("manifest") == b"first"

    def test_of_many_threads_that_create_at_once_exactly_one_wins(self, store):
        def create(i: int) -> bool:
            try:
                store.create("raced", f"thread {i}".encode())
            except AlreadyExists:
                return False
            return True

        won = at_once(store, create)
        assert sum(won) == 1
        assert store.get("raced") == f"thread {won.index(True)}".encode()

    def test_swap_needs_the_etag_of_what_is_there(self, store):
        store.put("lease", b"1")
        data, etag = store.get_tagged("lease")
        assert data == b"1"
        assert store.swap("lease", b"2", etag)
        last_writer_wins = store.url.startswith("file:")
        assert store.swap("lease", b"3", etag) is last_writer_wins
        assert store.get("lease") == (b"3" if last_writer_wins else b"2")

    def test_of_many_threads_that_swap_at_once_exactly_one_wins(self, store):
        store.put("lease", b"old")
        _, etag = store.get_tagged("lease")
        won = at_once(store, lambda i: store.swap("lease", f"thread {i}".encode(), etag))
        if store.url.startswith("file:"):
            assert all(won)
        else:
            assert sum(won) == 1
            assert store.get("lease") == f"thread {won.index(True)}".encode()

    def test_list_is_sorted_and_ends_at_whole_names(self, store):
        for path in ("trials/b/manifest", "trials/a/manifest", "trials2/c", "weights/d"):
            store.put(path, b"")
        assert store.list("trials") == ["trials/a/manifest", "trials/b/manifest"]
        assert store.list("nothing") == []

    def test_delete_removes_and_does_not_mind_what_is_gone(self, store):
        store.put("a", b"1")
        assert store.list("") == ["a"]
        store.delete("a")
        assert store.list("") == []
        store.delete("a")

    @pytest.mark.parametrize(
        "read",
        [
            lambda s: s.get("gone"),
            lambda s: s.get_tagged("gone"),
            lambda s: s.get_range("gone", 0, 1),
            lambda s: s.size("gone"),
        ],
    )
    def test_what_is_not_there_is_named_with_the_store(self, store, read):
        with pytest.raises(NotFound, match=f"gone is not in {store.url}"):
            read(store)


@pytest.fixture
def behind(s3):
    """A store behind a server that does what is in the list to the next request that it fits."""
    faults: list[str] = []

    def judge(asked) -> str | None:
        return faults.pop(0) if faults and fits(faults[0], asked) else None

    proxy = Proxy(lambda: ("127.0.0.1", int(s3.endpoint.rpartition(":")[2])), judge)
    url = f"s3://soupray/{uuid.uuid4().hex}"
    yield open_store(url, s3._replace(endpoint=proxy.url)), faults
    proxy.stop()


@pytest.mark.parametrize("fault", ["cut short", "truncated"])
def test_a_list_whose_end_is_missing_is_asked_for_once_more(behind, fault):
    store, faults = behind
    store.put("a", b"1")
    faults.append(fault)
    assert store.list("") == ["a"]
    assert faults == []


def test_a_list_that_stays_cut_short_is_said(behind):
    store, faults = behind
    store.put("a", b"1")
    faults += ["cut short", "cut short"]
    with pytest.raises(StoreUnavailable, match="invalid list response"):
        store.list("")
    assert faults == []


@pytest.mark.parametrize("fault", ["500", "503 SlowDown", "reset before", "reset after"])
def test_what_breaks_once_is_done_all_the_same(behind, fault):
    store, faults = behind

    def despite(ask):
        faults.append(fault)
        answer = ask()
        assert faults == []
        return answer

    despite(lambda: store.put("a", b"1"))
    assert despite(lambda: store.get("a")) == b"1"
    assert despite(lambda: store.get_range("a", 0, 1)) == b"1"
    assert despite(lambda: store.size("a")) == 1
    assert despite(lambda: store.list("")) == ["a"]
    _, etag = despite(lambda: store.get_tagged("a"))
    arrived = fault == "reset after"  # the repetition of a write comes second to itself
    assert despite(lambda: store.swap("a", b"2", etag)) is not arrived
    with pytest.raises(AlreadyExists) if arrived else nullcontext():
        despite(lambda: store.create("b", b"3"))
    assert (store.get("a"), store.get("b")) == (b"2", b"3")


def test_an_answer_that_breaks_off_is_asked_for_again(behind):
    store, faults = behind
    store.put("a", bytes(range(200)))
    for ask in (lambda: store.get("a"), lambda: store.get_range("a", 0, 200)):
        faults.append("truncated")
        assert ask() == bytes(range(200))
    faults.append("truncated")
    assert store.list("") == ["a"]
    faults.append("truncated")
    with pytest.raises(NotFound):
        store.get("b")
    assert faults == []


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3):
    open_store("s3://soupray/one", s3).put("a", b"1")
    assert open_store("s3://soupray/on", s3).list("") == []
    assert open_store("s3://soupray", s3).get("one/a") == b"1"


def test_a_missing_bucket_is_named(s3):
    for ask in (lambda: check_bucket("s3://no-such/x", s3),
                lambda: open_store("s3://no-such/x", s3).get("a")):  # fmt: skip
        with pytest.raises(NotFound, match=r"bucket of s3://no-such/x does not exist\. Create it"):
            ask()


def test_check_bucket_is_silent_where_all_is_well(s3, tmp_path):
    check_bucket("s3://soupray/any/prefix", s3)
    check_bucket(f"file://{tmp_path}")


@pytest.mark.parametrize("field", ["access_key", "secret_key"])
def test_a_wrong_key_is_called_that_and_the_secret_is_not_shown(s3, field):
    wrong = s3._replace(secret_key=SECRET, **({field: "nobody"} if field == "access_key" else {}))
    store = open_store("s3://soupray", wrong)
    asks = [
        lambda: check_bucket("s3://soupray", wrong),
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: store.list(""),
        lambda: store.size("a"),
        lambda: store.delete("a"),
    ]
    for ask in asks:
        with pytest.raises(StoreUnavailable, match="refuses these credentials") as error:
            ask()
        assert "AWS_SECRET_ACCESS_KEY" in str(error.value)
        assert SECRET not in str(error.value)


class Busy(http.server.BaseHTTPRequestHandler):
    """A store that has no time."""

    def do_GET(self) -> None:
        self.send_response(503, "Slow Down")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *parts: object) -> None:
        pass


def test_a_store_that_has_no_time_is_not_said_to_refuse_the_credentials(bare):
    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            bare.setenv("AWS_ACCESS_KEY_ID", "key")
            bare.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            bare.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(StoreUnavailable, match=r"s3://soupray: the store answers 503"):
                check_bucket("s3://soupray")
        finally:
            server.shutdown()


def test_a_secret_is_not_in_the_text_of_its_credentials():
    credentials = Credentials("http://127.0.0.1:1", "key", SECRET)
    texts = [repr(credentials), str(credentials), f"{credentials}", "%s" % (credentials,)]  # noqa: UP031
    assert set(texts) == {"Credentials(http://127.0.0.1:1, key, ***)"}
    assert SECRET not in repr([credentials])
    assert SECRET not in repr(open_store("s3://b", credentials).backend)


def test_a_store_that_does_not_answer_is_given_up_in_bounded_time(monkeypatch):
    monkeypatch.setattr(objects, "RETRY_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    credentials = Credentials(f"http://127.0.0.1:{port}", "key", SECRET)
    with pytest.raises(StoreUnavailable, match=r"failed at .*Run `soupray doctor`") as first:
        check_bucket("s3://soupray", credentials)
    with pytest.raises(StoreUnavailable, match=r"failed at a: .*Run `soupray doctor`") as second:
        open_store("s3://soupray", credentials).get("a")
    for error in (first, second):
        assert str(port) in str(error.value)
        assert SECRET not in str(error.value)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment in which boto3 finds nothing."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


ENTRANCES = [open_store, check_bucket]


@pytest.mark.parametrize("enter", ENTRANCES)
def test_without_credentials_the_message_says_which_to_set(bare, enter):
    with pytest.raises(ConfigError, match=r"s3://b: no AWS credentials.*AWS_SECRET_ACCESS_KEY"):
        enter("s3://b")


@pytest.mark.parametrize("enter", ENTRANCES)
def test_a_profile_that_is_not_there_is_named(bare, enter):
    bare.setenv("AWS_PROFILE", "work")
    with pytest.raises(ConfigError, match=r"profile \(work\) could not be found"):
        enter("s3://b")


@pytest.mark.parametrize("enter", ENTRANCES)
def test_an_endpoint_without_its_scheme_is_refused(bare, enter):
    bare.setenv("AWS_ACCESS_KEY_ID", "key")
    bare.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    bare.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match=r"Invalid endpoint: localhost:9000. Write http://"):
        enter("s3://b")


def test_credentials_and_endpoint_are_taken_from_the_environment(bare, s3):
    bare.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    bare.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    bare.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    check_bucket("s3://soupray")
    store = open_store("s3://soupray/environment")
    store.create("a", b"1")
    assert open_store("s3://soupray", s3).get("environment/a") == b"1"


def test_a_profile_may_say_where_the_store_is_and_both_clients_go_there(bare, s3, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[profile lab]\nservices = lab\nregion = eu-west-3\n"
        f"[services lab]\ns3 =\n  endpoint_url = {s3.endpoint}\n  addressing_style = path\n"
    )
    (tmp_path / ".aws" / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    bare.setenv("AWS_PROFILE", "lab")
    access = resolve("s3://soupray")
    assert (access.endpoint, access.region, access.virtual, access.credentials) == (
        s3.endpoint, "eu-west-3", False, "shared-credentials-file",
    )  # fmt: skip
    check_bucket("s3://soupray")
    open_store("s3://soupray/profile").create("a", b"2")
    assert open_store("s3://soupray", s3).get("profile/a") == b"2"


def test_the_bucket_may_be_in_the_name_of_the_host(bare, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    bare.setenv("AWS_ACCESS_KEY_ID", "key")
    bare.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    bare.setenv("AWS_ENDPOINT_URL_S3", "https://store.example:9000")
    assert resolve("s3://soups").virtual
    config = open_store("s3://soups/x").backend.config
    assert config["endpoint"] == "https://soups.store.example:9000"
    assert config["virtual_hosted_style_request"]


# What a user may have for other stores; none of it is about the embedded one.
FOREIGN = [
    {"AWS_SESSION_TOKEN": "of another account"},
    {"AWS_ACCESS_KEY_ID": "another", "AWS_SECRET_ACCESS_KEY": "key"},
    {"AWS_PROFILE": "not there"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
    {"AWS_SKIP_SIGNATURE": "true"},
    {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
    {"AWS_S3_EXPRESS": "true"},
    {"AWS_REGION": "nowhere", "AWS_DEFAULT_REGION": "nowhere"},
    {"AWS_REQUEST_PAYER": "true"},
    {"AWS_CONDITIONAL_PUT": "disabled"},
    {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"},
    {"ALL_PROXY": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("variables", FOREIGN, ids=lambda v: next(iter(v)))
def test_the_embedded_store_reads_nothing_of_the_users_environment(bare, s3, variables, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("this is not a configuration")
    for name in ("NO_PROXY", "no_proxy"):
        bare.setenv(name, "")
    for name, value in variables.items():
        bare.setenv(name, value)
    check_bucket("s3://soupray", s3)
    store = open_store(f"s3://soupray/{uuid.uuid4().hex}", s3)
    store.create("a", b"1")
    with pytest.raises(AlreadyExists):
        store.create("a", b"2")
    assert store.list("") == ["a"]
    assert store.get("a") == b"1"


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"'gs://b': write s3://bucket/prefix or file:///folder"):
        open_store("gs://b")


def test_a_full_disk_is_called_that_and_leaves_no_half_object(tmp_path):
    with small_disk(tmp_path / "small", "1m") as disk:
        store = open_store(f"file://{disk}/store")
        store.put("fits", b"x" * 900_000)
        for write in (store.put, store.create):
            with pytest.raises(StoreUnavailable, match="out of space while writing more"):
                write("more", b"x" * 300_000)
        assert store.list("") == ["fits"]
        store.delete("fits")
        store.create("more", b"x" * 300_000)


def fill(store: Store, stored: dict[str, bytes]) -> None:
    """Put 4 MB after 4 MB, and note what was taken."""
    for path in (f"o{number}" for number in range(20)):
        data = os.urandom(4_000_000)
        store.put(path, data)
        stored[path] = data


def test_the_embedded_store_on_a_full_disk_says_so_keeps_what_it_has_and_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(objects, "RETRY_S", 1)
    with small_disk(tmp_path / "small", "48m") as disk:
        (disk / "others").write_bytes(b"x" * 30_000_000)
        stored = {}
        with embedded_store(disk / "home") as credentials:
            store = open_store("s3://soupray/full", credentials)
            with pytest.raises(StoreUnavailable, match=r"at o\d+ .* whose disk is full") as error:
                fill(store, stored)
            assert credentials.secret_key not in str(error.value)
            assert 2 <= len(stored) < 5
            assert store.list("") == sorted(stored)
            assert all(store.get(path) == data for path, data in stored.items())
            (disk / "others").unlink()
        # A store that stays up notices within a minute that there is room; a new one, at once.
        with embedded_store(disk / "home") as credentials:
            store = open_store("s3://soupray/full", credentials)
            store.create("more", stored["o0"])
            stored["more"] = stored["o0"]
            assert all(store.get(path) == data for path, data in stored.items())
