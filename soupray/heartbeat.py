"""What a sweep's driver says of itself while it lives: a view beside its lease, overwritten.

    sweeps/<name>/progress.json    Heartbeat, written with every renewal of the lease

It counts while the lease of the driver that wrote it does: what a dead driver left says nothing.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from soupray.checkpoints import find_record
from soupray.core.records import Record, encode
from soupray.lease import LeaseRecord, is_dead
from soupray.storage import Store


class RunningTrial(Record, frozen=True, kw_only=True):
    """A trial that runs: epochs finished, of how many, and since when (seconds since the epoch)."""

    key: str
    epoch: int
    epochs: int
    since: float


class Beat(Record, frozen=True, kw_only=True):
    """What runs now, what failed in this run (key: reason), seconds left at the present pace."""

    running: tuple[RunningTrial, ...]
    failed: dict[str, str]
    seconds_left: float | None


class Heartbeat(Record, frozen=True, kw_only=True):
    """A beat, by which holder of the lease, and when."""

    holder: str
    written: float
    beat: Beat


class Driver(NamedTuple):
    """A driver that lives, and its last heartbeat, if it has written one."""

    lease: LeaseRecord
    heartbeat: Heartbeat | None


def lease_path(sweep: str) -> str:
    """Where the lease of `sweep` is."""
    return f"sweeps/{sweep}/lease.json"


def _path(sweep: str) -> str:
    return f"sweeps/{sweep}/progress.json"


def write_heartbeat(store: Store, sweep: str, holder: str, beat: Beat) -> None:
    """Overwrite the heartbeat of `sweep`. Raises StoreError."""
    made = Heartbeat(holder=holder, written=time.time(), beat=beat)
    store.put(_path(sweep), encode(made))


def find_driver(store: Store, sweep: str) -> Driver | None:
    """Who drives `sweep` now, if anybody does. Raises StoreError, CheckpointError."""
    lease: LeaseRecord | None = find_record(store, lease_path(sweep), LeaseRecord)
    if lease is None or lease.expires <= time.time() or is_dead(lease.process):
        return None
    said: Heartbeat | None = find_record(store, _path(sweep), Heartbeat)
    return Driver(lease, said if said is not None and said.holder == lease.holder else None)
