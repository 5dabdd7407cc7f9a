"""Where a sweep keeps its data: the store and the tracker; embedded services are started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NamedTuple

from soupray.core.records import Record
from soupray.services import embedded
from soupray.services.home import node_home
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.objects import Credentials, Store, open_store


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
    cache, host = str(home / "cache"), socket.gethostname()
    place = Place(storage=spec.storage, credentials=None, cache=cache, host=host)
    tracking, artifacts = spec.tracking, None
    if spec.storage == "embedded":
        place = Place(
            storage=embedded.up(home).storage_url,
            credentials=str(home / "stack" / "stack.json"),
            cache=cache,
            host=host,
        )
    if spec.tracking == "embedded":
        tracking, folder = embedded.tracker(home)
        artifacts = f"{folder}/{spec.name}"
    return Services(place, None if tracking == "off" else tracking, artifacts)
