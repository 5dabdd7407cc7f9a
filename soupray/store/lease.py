"""Allow one driver per sweep: the driver renews a lease object in the store while it runs.

With every renewal the driver also overwrites its heartbeat, an object beside the lease that says
what runs now. A heartbeat is valid only while the lease of its writer is valid.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from soupray.core.errors import AlreadyExists, NotFound, StoreError
from soupray.core.records import Record, decode, encode
from soupray.store import layout
from soupray.store.objects import Store, find_record, retry_once

TERM_S = 60.0
RENEW_S = 15.0


class LeaseRecord(Record, frozen=True, kw_only=True):
    """The driver of a sweep, and when its lease ends without renewal (seconds since the epoch)."""

    holder: str
    who: str
    process: str
    expires: float


def this_process() -> str:
    """Return a string that identifies this process: boot, PID namespace, PID, start time."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{os.getpid()}/{_started(os.getpid())}"


def is_dead(process: str) -> bool:
    """Return whether `process` has certainly ended.

    A process can only be checked if it ran in the same boot and PID namespace as this one.

    Args:
        process: identity of a process, from `this_process`.

    Returns:
        True if the process has ended; False if it runs or cannot be checked.
    """
    here = this_process().rsplit("/", 2)[0]
    there, pid, started = process.rsplit("/", 2)
    return there == here and _started(int(pid)) != started


def _started(pid: int) -> str:
    try:
        # Fields 3 and 22 of the file. The command name may contain spaces, so start after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone"
    # Z and X: the process ended, but no parent has read its status (a container without init).
    return "gone" if fields[0] in "ZX" else fields[19]


class Lease:
    """Context manager that holds the lease at `path`; raises StoreError if another driver holds it.

    A lease that has expired, or whose process is dead, is taken over by compare-and-swap. If two
    drivers see the same free lease, only one of them gets it. A client may repeat a write that had
    already succeeded; the store then rejects the second write. Therefore a rejected writer reads
    the lease to see whether it holds the lease itself.
    """

    def __init__(self, store: Store, path: str, term_s: float = TERM_S) -> None:
        self._store, self._path, self._term = store, path, term_s
        self.holder = uuid.uuid4().hex
        self._beat: Callable[[], None] = lambda: None
        self._who = f"{socket.gethostname()}, pid {os.getpid()}"
        self._stop = threading.Event()
        self._over = threading.Event()
        self._renewed = time.monotonic()
        self.thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    @property
    def lost(self) -> bool:
        """Whether another driver holds the lease, or may hold it because the term has ended."""
        if time.monotonic() - self._renewed > self._term:
            self._over.set()
        return self._over.is_set()

    def __enter__(self) -> Lease:
        self._renewed = time.monotonic()
        self._take()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self.thread.join()
        if not self.lost:
            with suppress(StoreError):  # if the store cannot be reached, the lease expires
                self._write(expires=0.0)

    def attend(self, beat: Callable[[], None]) -> None:
        """Call `beat` now and with every renewal; a StoreError in `beat` is ignored.

        Args:
            beat: writes the heartbeat.
        """
        self._beat = beat
        with suppress(StoreError):
            beat()

    def _take(self) -> None:
        try:
            self._store.create(self._path, self._record(time.time() + self._term))
        except AlreadyExists:
            held, etag = self._read()
            if held.holder == self.holder:
                return
            left = 0.0 if is_dead(held.process) else held.expires - time.time()
            if left > 0 or not self._swap(time.time() + self._term, etag):
                raise StoreError(
                    f"Another driver ({held.who}) holds this sweep. If it is dead, its lease ends "
                    f"in {max(left, 0):.0f} s: run again then."
                ) from None

    def _read(self) -> tuple[LeaseRecord, str | None]:
        def read() -> tuple[LeaseRecord, str | None]:
            data, etag = self._store.get_tagged(self._path)
            return decode(data, LeaseRecord), etag

        try:
            return retry_once(read, msgspec.MsgspecError)
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"{self._path} in {self._store.url} is not a lease: {error}. If no other driver "
                "runs, delete it and run again."
            ) from error

    def _record(self, expires: float) -> bytes:
        return encode(
            LeaseRecord(holder=self.holder, who=self._who, process=this_process(), expires=expires)
        )

    def _swap(self, expires: float, etag: str | None) -> bool:
        data = self._record(expires)
        return self._store.swap(self._path, data, etag) or self._store.get(self._path) == data

    def _write(self, expires: float) -> None:
        try:
            held, etag = self._read()
            if held.holder == self.holder and self._swap(expires, etag):
                return
        except NotFound:
            pass
        self._over.set()

    def _keep(self) -> None:
        while not self._stop.wait(self._term * RENEW_S / TERM_S) and not self.lost:
            # A request may be slow or fail, so the term is counted from the start of the request.
            with suppress(StoreError):
                asked = time.monotonic()
                self._write(time.time() + self._term)
                self._renewed = asked
                self._beat()


class RunningTrial(Record, frozen=True, kw_only=True):
    """A running trial: finished epochs, all epochs, and its start (seconds since the epoch)."""

    key: str
    epoch: int
    epochs: int
    since: float


class Beat(Record, frozen=True, kw_only=True):
    """What runs now, failed trials (reason by key), and the estimated time left (in seconds)."""

    running: tuple[RunningTrial, ...]
    failed: dict[str, str]
    seconds_left: float | None


class Heartbeat(Record, frozen=True, kw_only=True):
    """A beat, the holder of the lease who wrote it, and when (seconds since the epoch)."""

    holder: str
    written: float
    beat: Beat


class Driver(NamedTuple):
    """A running driver and its last heartbeat; None if it has not written one."""

    lease: LeaseRecord
    heartbeat: Heartbeat | None


def write_heartbeat(store: Store, sweep: str, holder: str, beat: Beat) -> None:
    """Overwrite the heartbeat of `sweep`.

    Args:
        store: the store of the sweep.
        sweep: name of the sweep.
        holder: identity of the lease's holder.
        beat: what runs now.

    Raises:
        StoreError: the store cannot be reached.
    """
    made = Heartbeat(holder=holder, written=time.time(), beat=beat)
    store.put(layout.heartbeat(sweep), encode(made))


def find_driver(store: Store, sweep: str) -> Driver | None:
    """Return the driver that runs `sweep` now, or None. Raises StoreError, CheckpointError."""
    lease: LeaseRecord | None = find_record(store, layout.lease(sweep), LeaseRecord)
    if lease is None or lease.expires <= time.time() or is_dead(lease.process):
        return None
    said: Heartbeat | None = find_record(store, layout.heartbeat(sweep), Heartbeat)
    return Driver(lease, said if said is not None and said.holder == lease.holder else None)
