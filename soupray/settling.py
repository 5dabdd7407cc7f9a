"""Which store and which tracker: settled before a sweep or a soup starts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from soupray import stack
from soupray.spec.sweep_spec import SweepSpec
from soupray.wiring import Place


class Settled(NamedTuple):
    """Where this sweep's things are: the place of the store, and the tracker."""

    place: Place
    tracking_url: str | None
    artifacts: str | None


def settle(spec: SweepSpec, home: Path) -> Settled:
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
            storage=stack.up(home).storage_url,
            credentials=str(home / "stack" / "stack.json"),
            cache=cache,
            host=host,
        )
    if spec.tracking == "embedded":
        tracking, folder = stack.tracker(home)
        artifacts = f"{folder}/{spec.name}"
    return Settled(place, None if tracking == "off" else tracking, artifacts)
