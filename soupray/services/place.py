"""Where a sweep keeps its data: the store and the tracker; embedded services are started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from soupray.core.errors import NotFound
from soupray.core.records import Record
from soupray.services import embedded
from soupray.services.home import node_home
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.objects import Store, open_store
from soupray.store.s3 import Credentials


class Place(Record, frozen=True, kw_only=True):
    """The store and the cache folder of a sweep, in a form that can be sent to other processes.

    `credentials` is the path of a file that only its owner can read, never a secret; None if boto3
    finds credentials on each machine. `cache` is a folder on the machine `host`; other machines use
    a folder of their own. Without `host`, all machines use the same path.
    """

    storage: str
    credentials: str | None
    cache: str
    host: str | None = None

    @property
    def folder(self) -> Path:
        """Folder on this machine for decoded data and copies of weights."""
        here = self.host in (None, socket.gethostname())
        return Path(self.cache) if here else node_home() / "cache"

    def open_store(self) -> Store:
        """Open the store with the credentials of this machine."""
        return open_store(self.storage, self.read_credentials())

    def read_credentials(self) -> Credentials | None:
        """Return the key pair of the embedded store, or None for another store."""
        if self.credentials is None:
            return None
        found = json.loads(Path(self.credentials).read_text())
        return Credentials(found["endpoint"], found["access_key"], found["secret_key"])


class Services(NamedTuple):
    """The place of a sweep, and the URLs of its tracker (None if tracking is off)."""

    place: Place
    tracking_url: str | None
    artifacts: str | None


def start_services(spec: SweepSpec, home: Path) -> Services:
    """Start the embedded services of `spec` and return the addresses of all services.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.

    Raises:
        ConfigError: the embedded store is not installed.
        StoreUnavailable: the embedded store does not start.
    """
    place = _place(spec, home)
    tracking, artifacts = spec.tracking, None
    if spec.tracking == "embedded":
        tracking, folder = embedded.tracker(home)
        artifacts = f"{folder}/{spec.name}"
    return Services(place, None if tracking == "off" else tracking, artifacts)


def find_place(spec: SweepSpec, home: Path) -> Place:
    """Return the place of a sweep whose results are read. Nothing is made for it.

    Somebody else may have written the spec, for example in a recipe file.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.

    Raises:
        ConfigError: the embedded store is not installed.
        NotFound: there is no such folder, or this home has no embedded store.
        StoreUnavailable: the embedded store does not start.
    """
    if spec.storage == "embedded" and not (home / "stack" / "data").is_dir():
        raise NotFound(
            f"{spec.name} is in the embedded store of a home, but {home} has none. Name that home: "
            "--home, or SOUPRAY_HOME."
        )
    folder = urlsplit(spec.storage)
    if folder.scheme == "file" and not Path(folder.path).is_dir():
        raise NotFound(
            f"{spec.name} is in {spec.storage}, but there is no folder {folder.path} on this "
            "machine. Mount it, or correct `storage`."
        )
    return _place(spec, home)


def _place(spec: SweepSpec, home: Path) -> Place:
    cache, host = str(home / "cache"), socket.gethostname()
    if spec.storage != "embedded":
        return Place(storage=spec.storage, credentials=None, cache=cache, host=host)
    return Place(
        storage=embedded.up(home).storage_url,
        credentials=str(home / "stack" / "stack.json"),
        cache=cache,
        host=host,
    )
