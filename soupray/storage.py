"""The object store: bytes in, bytes out, create-only when it matters.

obstore moves the data; boto3 finds the credentials (environment, profile, instance role, ...) and
the bucket. Every foreign exception is mapped to one of ours in `store_errors`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from soupray import store_errors
from soupray.core.errors import ConfigError, NotFound, StoreUnavailable
from soupray.store_errors import insist, mapped

T = TypeVar("T")


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
        self._backend = backend
        self.url = url

    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFound, StoreUnavailable."""
        return self._ask(path, lambda: bytes(obstore.get(self._backend, path).bytes()))

    def get_tagged(self, path: str) -> tuple[bytes, str | None]:
        """The object and its ETag, for `swap`."""

        def get() -> tuple[bytes, str | None]:
            answer = obstore.get(self._backend, path)
            return bytes(answer.bytes()), answer.meta["e_tag"]

        return self._ask(path, get)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`."""
        return self._ask(
            path,
            lambda: bytes(obstore.get_range(self._backend, path, start=start, length=length)),
        )

    def create(self, path: str, data: bytes) -> None:
        """Write only if absent. Raises AlreadyExists, even after a client's own first try."""
        self._ask(path, lambda: obstore.put(self._backend, path, data, mode="create"))

    def put(self, path: str, data: bytes | Path) -> None:
        """Write, or write again: for content-addressed bytes, where that is harmless, and views.

        A `Path` is uploaded in parts. No reader ever sees half an object.
        """
        self._ask(path, lambda: obstore.put(self._backend, path, data))

    def swap(self, path: str, data: bytes, etag: str | None) -> bool:
        """Overwrite only if the ETag still holds; False if somebody else was faster.

        A folder has no such operation: there the last writer wins.
        """
        kept: Any = "overwrite" if isinstance(self._backend, LocalStore) else {"e_tag": etag}

        def put() -> bool:
            with suppress(PreconditionError):
                obstore.put(self._backend, path, data, mode=kept)
                return True
            return False

        return self._ask(path, put)

    def size(self, path: str) -> int:
        """Bytes of the object. Raises NotFound."""
        return self._ask(path, lambda: int(obstore.head(self._backend, path)["size"]))

    def list(self, prefix: str) -> list[str]:
        """Paths below `prefix`, sorted."""
        return [path for path, _, _ in self.entries(prefix)]

    def entries(self, prefix: str) -> tuple[tuple[str, int, float], ...]:
        """Of objects below `prefix`: path, bytes, seconds since the epoch when written; sorted."""

        def pages() -> list[Any]:
            return [e for page in obstore.list(self._backend, prefix=prefix) for e in page]

        found = self._ask(prefix, pages)
        return tuple(sorted((e["path"], e["size"], e["last_modified"].timestamp()) for e in found))

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""
        with suppress(NotFound):
            self._ask(path, lambda: obstore.delete(self._backend, path))

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        """What comes of `request`, its errors as ours; again while the connection breaks."""

        def once() -> T:
            with mapped(self.url, path):
                return request()

        return insist(once)


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
        "retry_timeout": timedelta(seconds=store_errors.RETRY_S),
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
