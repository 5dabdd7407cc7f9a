"""The object store: bytes in, bytes out, create-only when it matters.

obstore moves the data; boto3 finds the credentials (environment, profile, instance role, ...) and
the bucket. Every foreign exception is mapped to one of ours in `mapped`. Records are JSON objects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from soupray.core.errors import (
    AlreadyExists,
    CheckpointError,
    ConfigError,
    NotFound,
    StoreUnavailable,
)
from soupray.core.records import decode, encode

T = TypeVar("T")
R = TypeVar("R")

RETRY_S = 30
"""How long a request is tried again, once it has failed, before the store counts as away."""


class Credentials(NamedTuple):
    """A key pair that is not in the environment: the embedded store's."""

    endpoint: str
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Credentials({self.endpoint}, {self.access_key}, ***)"


class Store:
    """A prefix of a bucket, a folder, or a dictionary in memory."""

    def __init__(self, backend: ObjectStore, url: str) -> None:
        self.backend = backend
        self.url = url

    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFound, StoreUnavailable."""
        return self._ask(path, lambda: bytes(obstore.get(self.backend, path).bytes()))

    def get_tagged(self, path: str) -> tuple[bytes, str | None]:
        """The object and its ETag, for `swap`."""

        def get() -> tuple[bytes, str | None]:
            answer = obstore.get(self.backend, path)
            return bytes(answer.bytes()), answer.meta["e_tag"]

        return self._ask(path, get)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`."""
        return self._ask(
            path,
            lambda: bytes(obstore.get_range(self.backend, path, start=start, length=length)),
        )

    def create(self, path: str, data: bytes) -> None:
        """Write only if absent. Raises AlreadyExists, even after a client's own first try."""
        self._ask(path, lambda: obstore.put(self.backend, path, data, mode="create"))

    def put(self, path: str, data: bytes | Path) -> None:
        """Write, or write again: for content-addressed bytes, where that is harmless, and views.

        A `Path` is uploaded in parts. No reader ever sees half an object.
        """
        self._ask(path, lambda: obstore.put(self.backend, path, data))

    def swap(self, path: str, data: bytes, etag: str | None) -> bool:
        """Overwrite only if the ETag still holds; False if somebody else was faster.

        A folder has no such operation: there the last writer wins.
        """
        kept: Any = "overwrite" if isinstance(self.backend, LocalStore) else {"e_tag": etag}

        def put() -> bool:
            with suppress(PreconditionError):
                obstore.put(self.backend, path, data, mode=kept)
                return True
            return False

        return self._ask(path, put)

    def size(self, path: str) -> int:
        """Bytes of the object. Raises NotFound."""
        return self._ask(path, lambda: int(obstore.head(self.backend, path)["size"]))

    def list(self, prefix: str) -> list[str]:
        """Paths below `prefix`, sorted."""
        return [path for path, _, _ in self.entries(prefix)]

    def entries(self, prefix: str) -> tuple[tuple[str, int, float], ...]:
        """Of objects below `prefix`: path, bytes, seconds since the epoch when written; sorted."""

        def pages() -> list[Any]:
            return [e for page in obstore.list(self.backend, prefix=prefix) for e in page]

        found = self._ask(prefix, pages)
        return tuple(sorted((e["path"], e["size"], e["last_modified"].timestamp()) for e in found))

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""
        with suppress(NotFound):
            self._ask(path, lambda: obstore.delete(self.backend, path))

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        """What comes of `request`, its errors as ours; again while the connection breaks."""

        def once() -> T:
            with mapped(self.url, path):
                return request()

        return retry(once)


def open_store(url: str, credentials: Credentials | None = None) -> Store:
    """The store at s3://bucket/prefix, file:///folder or memory://.

    Without `credentials`, boto3's chain finds them, and AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and
    the region are read as boto3 does.

    Raises:
        ConfigError: no credentials anywhere, or an unknown scheme.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return Store(MemoryStore(), url)
    if parts.scheme == "file":
        return Store(LocalStore(parts.path, mkdir=True), url)
    if parts.scheme != "s3":
        raise ConfigError(f"storage {url!r}: write s3://bucket/prefix or file:///folder.")
    options = _from_boto3(url) if credentials is None else _given(credentials)
    allow_http = str(options.get("endpoint", "")).startswith("http://")
    return Store(
        S3Store(
            bucket=parts.netloc,
            prefix=parts.path.strip("/") or None,
            retry_config=_retries(),
            client_options={"allow_http": allow_http, "connect_timeout": "10s"},
            **options,
        ),
        url,
    )


def _retries() -> Any:
    first, longest = timedelta(milliseconds=200), timedelta(seconds=10)
    return {
        "max_retries": 50,  # the time rules
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }


def _given(credentials: Credentials) -> dict[str, Any]:
    return {
        "endpoint": credentials.endpoint,
        "access_key_id": credentials.access_key,
        "secret_access_key": credentials.secret_key,
        "region": "us-east-1",
    }


def _from_boto3(url: str) -> dict[str, Any]:
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = _session(url)
    found: dict[str, Any] = {
        "credential_provider": Boto3CredentialProvider(session),
        "region": session.region_name or "us-east-1",
    }
    if endpoint := _endpoint():
        found["endpoint"] = endpoint
    return found


def _endpoint() -> str:
    """The store's address if it is not AWS: checked here, because obstore panics over a bad one."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"AWS_ENDPOINT_URL = {endpoint!r}: write http://HOST:PORT or https://...")
    return endpoint


def _session(url: str) -> Any:
    """boto3's session with credentials. Raises ConfigError where there are none to be found."""
    import boto3
    from botocore.exceptions import BotoCoreError

    _endpoint()
    try:
        session = boto3.Session()
        found = session.get_credentials()
    except BotoCoreError as error:  # a profile that is not there, a broken file
        raise ConfigError(f"storage {url}: {error}. Check AWS_PROFILE and ~/.aws.") from error
    if found is None:
        raise ConfigError(
            f"storage {url}: no AWS credentials in the environment, a profile or an instance role. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a store "
            "that is not AWS)."
        )
    return session


def check_bucket(url: str, credentials: Credentials | None = None) -> None:
    """One request, before a sweep starts: is the bucket there, and are we let in?

    boto3 rather than obstore, because its answer tells a wrong key from a missing bucket.

    Raises:
        ConfigError: no credentials anywhere.
        NotFound: no such bucket.
        StoreUnavailable: unreachable, or the credentials are refused.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _client(url, credentials).list_objects_v2(Bucket=parts.netloc, MaxKeys=1)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchBucket", "404"):
            raise NotFound(
                f"The bucket {parts.netloc!r} of storage {url} does not exist. Create it, or "
                "correct `storage` in the spec."
            ) from error
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise StoreUnavailable(
                f"storage {url}: the store answers {code}. Run again in a minute: what is stored "
                "is kept."
            ) from error
        raise StoreUnavailable(
            f"storage {url}: the store refuses these credentials ({code}). Check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy."
        ) from error
    except BotoCoreError as error:
        raise StoreUnavailable(
            f"storage {url}: {error}. Check AWS_ENDPOINT_URL, the network and the credentials."
        ) from error


def _client(url: str, credentials: Credentials | None) -> Any:
    """boto3's client for S3, which gives up within seconds."""
    import boto3
    from botocore.config import Config

    settings = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    if credentials is None:
        return _session(url).client("s3", config=settings)
    return boto3.Session().client(
        "s3",
        config=settings,
        endpoint_url=credentials.endpoint,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        region_name="us-east-1",
    )


@contextmanager
def mapped(url: str, path: str) -> Iterator[None]:
    """Foreign exceptions as ours. The order matters: the specific ones first."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise NotFound(_NO_BUCKET.format(url)) from error
        raise NotFound(f"{path} is not in {url}.") from error
    except AlreadyExistsError as error:
        raise AlreadyExists(f"{path} is already in {url}.") from error
    except (BaseError, OSError) as error:
        text = str(error).strip() or "no reason given"
        if "NoSuchBucket" in text:
            raise NotFound(_NO_BUCKET.format(url)) from error
        said = next(message for sign, message in _TROUBLE.items() if sign in text)
        line = text.splitlines()[0][:300]
        raise StoreUnavailable(said.format(url=url, path=path, line=line)) from error


def retry(ask: Callable[[], T]) -> T:
    """`ask()`, again while the connection breaks.

    obstore itself repeats neither a conditional write, nor the page of a list, nor an answer of
    "not found" that breaks off. Of a write that had arrived, the repetition is told that it came
    second.
    """
    failed: float | None = None
    pause = 0.2
    while True:
        try:
            return ask()
        except StoreUnavailable as error:
            broken, now = "HTTP error" in str(error.__cause__), time.monotonic()
            failed = now if failed is None else failed  # the first attempt may have lasted as long
            if not broken or now - failed + pause > RETRY_S:
                raise
        time.sleep(pause)
        pause *= 2


def retry_once(read: Callable[[], T], doubted: type[Exception]) -> T:
    """`read()`, once more if that raises `doubted`: what came does not look whole.

    An answer may be cut short on its way although its length header was whole: only its content
    tells. What is cut short twice, or stored so, raises `doubted`.
    """
    with suppress(doubted):
        return read()
    return read()


_NO_BUCKET = "The bucket of {} does not exist. Create it, or correct `storage` in the spec."
_FULL = (
    "{url} is out of space while writing {path}. Free some and run again: what is stored is kept, "
    "and the run goes on from there."
)
_TROUBLE = {  # by a part of obstore's text; the first that fits
    "403 Forbidden": "{url} refuses these credentials at {path} (403 Forbidden). Check "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
    "No space left": _FULL,
    "os error 28": _FULL,
    # All that SeaweedFS says of a full disk.
    "500 Internal Server Error": "{url} answered 500 Internal Server Error at {path} for "
    f"{RETRY_S} s, as a store does whose disk is full. Free some space there (the embedded store's "
    "disk is that of --home), and run again in a minute: what is stored is kept.",
    "": "{url} failed at {path}: {line}. Run `soupray doctor`, then run again: what is stored is "
    "kept.",
}


def read_view(store: Store, path: str) -> bytes:
    """The bytes at `path`, as many as the store says there are. Raises NotFound, CheckpointError.

    For what no digest names and nothing decodes: tables and figures.
    """

    def read() -> bytes:
        data, size = store.get(path), store.size(path)
        if len(data) != size:
            raise CheckpointError(
                f"{path} in {store.url} has {size} bytes, but {len(data)} came, twice: they were "
                "cut short on their way, or it is being written. Try again; if that does not help, "
                "look at what is between here and the store."
            )
        return data

    return retry_once(read, CheckpointError)


def create_record(store: Store, path: str, record: R, kind: Any = None) -> R:
    """Store `record` unless one is there; return the one that counts: the loser adopts it.

    `kind` is what may be there, if it is a union. The record is returned as a reader decodes it,
    so that a first run and its repetition go on with the same thing, to the order of keys.
    """
    data = encode(record)
    try:
        store.create(path, data)
    except AlreadyExists:
        winner: R = read_record(store, path, kind or type(record))
        return winner
    kept: R = decode(data, kind or type(record))
    return kept


def read_record(store: Store, path: str, kind: Any) -> Any:
    """The record at `path`. Raises NotFound, CheckpointError.

    No record is a bare number, which would be another one if cut short, and not be noticed.
    """
    try:
        return retry_once(lambda: decode(store.get(path), kind), msgspec.MsgspecError)
    except msgspec.MsgspecError as error:
        raise CheckpointError(
            f"{path} in {store.url} cannot be read: {error}. It is corrupt, or of another version "
            "of soupray. Delete it and run again: only what it records is repeated."
        ) from error


def find_record(store: Store, path: str, kind: Any) -> Any:
    """The record at `path`, or None."""
    try:
        return read_record(store, path, kind)
    except NotFound:
        return None
