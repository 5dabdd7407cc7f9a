"""The place of a sweep: its store, and its tracker. What is embedded is started."""

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
    """Where a sweep keeps things, in a form that may cross a process border.

    `credentials` is the path of a file readable by its owner only, never a secret; it is None
    where boto3's chain finds them on each machine. `cache` is a folder of the machine `host`;
    others have one of their own. Without `host` it is the same for all.
    """

    storage: str
    credentials: str | None
    cache: str
    host: str | None = None

    @property
    def folder(self) -> Path:
        """Where this machine keeps decoded data and copies of weights."""
        here = self.host in (None, socket.gethostname())
        return Path(self.cache) if here else node_home() / "cache"

    def open_store(self) -> Store:
        """The store, with credentials read here and now."""
        return open_store(self.storage, self.read_credentials())

    def read_credentials(self) -> Credentials | None:
        """The embedded store's key pair, if there is one."""
        if self.credentials is None:
            return None
        found = json.loads(Path(self.credentials).read_text())
        return Credentials(found["endpoint"], found["access_key"], found["secret_key"])


class Services(NamedTuple):
    """Where this sweep's things are: the place of the store, and the tracker."""

    place: Place
    tracking_url: str | None
    artifacts: str | None


def start_services(spec: SweepSpec, home: Path) -> Services:
    """Start what is embedded, and say where everything is.

    Raises:
        ConfigError: the embedded store is not installed.
        StoreUnavailable: it does not start.
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
