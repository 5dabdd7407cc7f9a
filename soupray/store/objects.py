"""The object store: read and write bytes, and create objects that are never overwritten.

obstore transfers the data. boto3 finds the credentials (environment, profile, instance role, ...).
`mapped` turns every exception of these libraries into one of ours. Records are JSON objects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
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
    one_line,
)
from soupray.core.names import plain
from soupray.core.records import decode, encode
from soupray.store import layout
from soupray.store.s3 import (
    NO_BUCKET,
    Credentials,
    check_access,
    embedded_options,
    found_options,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

RETRY_S = 30
"""Seconds for which a failed request is repeated before the store counts as unavailable."""


class Store:
    """A store of objects: a prefix of an S3 bucket, a local folder, or memory."""

    def __init__(self, backend: ObjectStore, url: str) -> None:
        self.backend = backend
        self.url = url

    def get(self, path: str) -> bytes:
        """Return the bytes of the whole object. Raises NotFound, StoreUnavailable."""
        return self._ask(path, lambda: bytes(obstore.get(self.backend, path).bytes()))

    def get_tagged(self, path: str) -> tuple[bytes, str | None]:
        """Return the bytes of the object and its ETag, which `swap` takes."""

        def get() -> tuple[bytes, str | None]:
            answer = obstore.get(self.backend, path)
            return bytes(answer.bytes()), answer.meta["e_tag"]

        return self._ask(path, get)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes of the object from byte `start`."""
        return self._ask(
            path,
            lambda: bytes(obstore.get_range(self.backend, path, start=start, length=length)),
        )

    def create(self, path: str, data: bytes) -> None:
        """Write the object only if it does not exist.

        Args:
            path: path of the object.
            data: bytes to write.

        Raises:
            AlreadyExists: the object exists. A client that repeats its own successful write gets
                this error too.
        """
        self._ask(path, lambda: obstore.put(self.backend, path, data, mode="create"))

    def put(self, path: str, data: bytes | Path) -> None:
        """Write the object, or overwrite it. No reader ever sees a part of an object.

        Use it for content-addressed bytes, which do not change, and for objects that may be
        replaced.

        Args:
            path: path of the object.
            data: bytes to write, or a local file, which is uploaded in parts.
        """
        self._ask(path, lambda: obstore.put(self.backend, path, data))

    def swap(self, path: str, data: bytes, etag: str | None) -> bool:
        """Overwrite the object only if it still has this ETag.

        A local folder does not support this check: there the object is always overwritten.

        Args:
            path: path of the object.
            data: bytes to write.
            etag: the ETag from `get_tagged`.

        Returns:
            False if another client has overwritten the object since.
        """
        kept: Any = "overwrite" if isinstance(self.backend, LocalStore) else {"e_tag": etag}

        def put() -> bool:
            with suppress(PreconditionError):
                obstore.put(self.backend, path, data, mode=kept)
                return True
            return False

        return self._ask(path, put)

    def size(self, path: str) -> int:
        """Return the size of the object in bytes. Raises NotFound."""
        return self._ask(path, lambda: int(obstore.head(self.backend, path)["size"]))

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all objects below `prefix`, sorted."""
        return [path for path, _, _ in self.entries(prefix)]

    def entries(self, prefix: str) -> tuple[tuple[str, int, float], ...]:
        """List the objects below `prefix`, sorted by path.

        Returns:
            For each object: path, size in bytes, time of writing (seconds since the epoch).
        """

        def pages() -> list[Any]:
            return [e for page in obstore.list(self.backend, prefix=prefix) for e in page]

        def whole() -> list[Any]:
            try:
                return pages()
            except BaseError as error:
                if "invalid list response" not in str(error):
                    raise
            return pages()  # its end was missing: see `retry_once`

        found = self._ask(prefix, whole)
        return tuple(sorted((e["path"], e["size"], e["last_modified"].timestamp()) for e in found))

    def delete(self, path: str) -> None:
        """Delete the object; do nothing if it does not exist."""
        with suppress(NotFound):
            self._ask(path, lambda: obstore.delete(self.backend, path))

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        """Return the result of `request`; map its errors, and repeat it if the connection fails."""

        def once() -> T:
            with mapped(self.url, path):
                return request()

        return retry(once)


def open_store(url: str, credentials: Credentials | None = None) -> Store:
    """Open the store at s3://bucket/prefix, file:///folder or memory://.

    Args:
        url: address of the store.
        credentials: key pair and endpoint. If None, boto3 finds them, see `resolve`.

    Raises:
        ConfigError: no credentials were found, or the scheme is unknown.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return Store(MemoryStore(), url)
    if parts.scheme == "file":
        return Store(LocalStore(parts.path, mkdir=True), url)
    if parts.scheme != "s3":
        raise ConfigError(f"storage {url!r}: write s3://bucket/prefix or file:///folder.")
    options = embedded_options(credentials) if credentials else found_options(url)
    allow_http = str(options["endpoint"]).startswith("http://")
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
        "max_retries": 50,  # high, because `retry_timeout` is the limit
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }


def check_bucket(url: str, credentials: Credentials | None = None) -> None:
    """Send one request to check that the bucket exists and that the credentials are accepted.

    Where credentials come from boto3, boto3 checks: obstore's errors do not separate a wrong key
    from a missing bucket. Stores that are not on S3 are not checked.

    Args:
        url: address of the store.
        credentials: key pair and endpoint, or None to let boto3 find them.

    Raises:
        ConfigError: no credentials were found.
        NotFound: the bucket does not exist.
        StoreUnavailable: the store cannot be reached, or it refuses the credentials.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return
    if credentials is not None:
        open_store(url, credentials).list("soupray-is-here/")
        return
    check_access(url)


@contextmanager
def mapped(url: str, path: str) -> Iterator[None]:
    """Turn the exceptions of obstore into ours; specific exceptions are handled first.

    Args:
        url: address of the store, for the message.
        path: path of the object, for the message.

    Raises:
        NotFound: the object or the bucket does not exist.
        AlreadyExists: the object exists.
        StoreUnavailable: any other error of the store.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise NotFound(NO_BUCKET.format(url)) from error
        raise NotFound(f"{path} is not in {url}.") from error
    except AlreadyExistsError as error:
        raise AlreadyExists(f"{path} is already in {url}.") from error
    except (BaseError, OSError) as error:
        text = str(error).strip() or "no reason given"
        if "NoSuchBucket" in text:
            raise NotFound(NO_BUCKET.format(url)) from error
        said = next(message for sign, message in _TROUBLE.items() if sign in text)
        line = plain(text.partition("\n\nDebug source:")[0])[:300]
        raise StoreUnavailable(said.format(url=url, path=path, line=line)) from error


def retry(ask: Callable[[], T]) -> T:
    """Return `ask()`; repeat it for at most RETRY_S seconds while the connection breaks.

    obstore itself does not repeat conditional writes, pages of a list, or broken "not found"
    answers. If a conditional write succeeded but its answer was lost, the repeated write fails: the
    object already exists.

    Args:
        ask: sends the request.

    Raises:
        StoreUnavailable: the connection still breaks, or the error is of another kind.
    """
    failed: float | None = None
    pause = 0.2
    while True:
        try:
            return ask()
        except StoreUnavailable as error:
            broken, now = "HTTP error" in str(error.__cause__), time.monotonic()
            # counted from the first failure: a request may be slow
            failed = now if failed is None else failed
            if not broken or now - failed + pause > RETRY_S:
                raise
        time.sleep(pause)
        pause *= 2


def retry_once(read: Callable[[], T], doubted: type[Exception]) -> T:
    """Return `read()`; call it a second time if it raises `doubted`.

    An answer can be cut short although its length header was correct. Only decoding its content
    shows this. If the second answer is incomplete too, `doubted` is raised.

    Args:
        read: reads and checks the content.
        doubted: the exception that says that the content is incomplete.
    """
    with suppress(doubted):
        return read()
    return read()


_FULL = (
    "{url} is out of space while writing {path}. Free some and run again: what is stored is kept, "
    "and the run goes on from there."
)
_TROUBLE = {  # key: a part of obstore's message; the first match is used
    "403 Forbidden": "{url} refuses these credentials at {path} (403 Forbidden). Check "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
    "invalid path": "{url} has an object below {path!r} whose name is no path: {line}. Another "
    "program wrote it: rename it or delete it there, or use a prefix of your own.",
    "No space left": _FULL,
    "os error 28": _FULL,
    # SeaweedFS gives no other message when its disk is full.
    "500 Internal Server Error": "{url} answered 500 Internal Server Error at {path} for "
    f"{RETRY_S} s, as a store does whose disk is full. Free some space there (the embedded store's "
    "disk is that of --home), and run again in a minute: what is stored is kept.",
    "": "{url} failed at {path}: {line}. Run `soupray doctor`, then run again: what is stored is "
    "kept.",
}


def list_ours(store: Store, prefix: str) -> list[str]:
    """Return the sorted paths of soupray's objects below `prefix`; others are named in the log."""
    paths = store.list(prefix)
    for path in (p for p in paths if not layout.is_ours(p)):
        log.warning(f"{path} in {store.url} is not an object of soupray: it is left alone.")
    return [p for p in paths if layout.is_ours(p)]


def read_view(store: Store, path: str) -> bytes:
    """Return the bytes at `path`, and check that their number equals the size in the store.

    Use it for tables and figures: no digest or decoder can show that they are incomplete.

    Raises:
        NotFound: the object does not exist.
        CheckpointError: two answers were incomplete.
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
    """Store `record` if the path is free, and return the record that is in the store.

    If another process has stored a record first, that record is returned. The result is always
    decoded from JSON, so that the first run and a repeated run use equal data, including the order
    of keys.

    Args:
        store: the store.
        path: path of the record.
        record: the record to store.
        kind: the type to decode, if it is a union; else the type of `record`.
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
    """Read and decode the record at `path`.

    A record is never a single number, because a number that is cut short is still a valid number.

    Args:
        store: the store.
        path: path of the record.
        kind: the type to decode.

    Raises:
        NotFound: there is no record.
        CheckpointError: the record cannot be decoded.
    """
    try:
        return retry_once(lambda: decode(store.get(path), kind), msgspec.MsgspecError)
    except msgspec.MsgspecError as error:
        raise CheckpointError(
            f"{path} in {store.url} cannot be read: {one_line(error)}. It is corrupt, or of "
            "another version of soupray. Delete it and run again: only what it records is repeated."
        ) from error


def find_record(store: Store, path: str, kind: Any) -> Any:
    """Return the record at `path`, or None if there is none. Raises CheckpointError."""
    try:
        return read_record(store, path, kind)
    except NotFound:
        return None
