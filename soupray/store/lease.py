"""Allow one driver per sweep: the driver renews a lease object in the store while it runs.

With every renewal the driver also overwrites its heartbeat, an object beside the lease that says
what runs now. A heartbeat is valid only while the lease of its writer is valid. Whoever wants the
driver to stop writes a request beside it, which the driver reads with every heartbeat: the two need
no network between them, only the store.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, NamedTuple

import msgspec

from soupray.core.errors import AlreadyExists, CheckpointError, NotFound, StoreError
from soupray.core.records import Record, decode, encode
from soupray.store import layout
from soupray.store.objects import Store, find_record, retry_once

log = logging.getLogger(__name__)

TERM_S = 60.0
RENEW_S = 15.0


Process = Annotated[str, msgspec.Meta(pattern=r"^[^/]+/[^/]+/[0-9]{1,19}/[0-9a-z]+\Z")]
"""Boot, PID namespace, PID and start time of a process: see `this_process`."""


class LeaseRecord(Record, frozen=True, kw_only=True):
    """The driver of a sweep, and when its lease ends without renewal (seconds since the epoch).

    The end is by the clock of the driver; 0: the lease was given back.
    """

    holder: str
    who: str
    process: Process
    expires: float


def this_process() -> str:
    """Return a string that identifies this process: boot, PID namespace, PID, start time."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{os.getpid()}/{_started(os.getpid())}"


def this_driver() -> str:
    """Return how messages name this process."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


def is_dead(process: str) -> bool:
    """Return whether `process` has certainly ended.

    A process can only be checked if it ran in the same boot and PID namespace as this one.

    Args:
        process: identity of a process, from `this_process`.

    Returns:
        True if the process has ended; False if it runs or cannot be checked.
    """
    _, pid, started = process.rsplit("/", 2)
    return is_here(process) and _started(int(pid)) != started


def is_here(process: str) -> bool:
    """Return whether `process`, from `this_process`, ran in this boot and PID namespace."""
    return process.rsplit("/", 2)[0] == this_process().rsplit("/", 2)[0]


def _is_free(lease: LeaseRecord) -> bool:
    """Whether the lease was given back, or its holder has certainly ended."""
    return lease.expires <= 0 or is_dead(lease.process)


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

    A lease that was given back, or whose process is dead, is taken over by compare-and-swap; that
    of a driver on another machine if it is not renewed for a term on the clock of this one. If two
    drivers see the same free lease, only one of them gets it. A client may repeat a write that had
    already succeeded; the store then rejects the second write. Therefore a rejected writer reads
    the lease to see whether it holds the lease itself.
    """

    def __init__(self, store: Store, path: str, term_s: float = TERM_S) -> None:
        self._store, self._path, self._term = store, path, term_s
        self.holder = uuid.uuid4().hex
        self._beat: Callable[[], None] = lambda: None
        self._who = this_driver()
        self._stop = threading.Event()
        self._over = threading.Event()
        self.taken_by: str | None = None
        self._renewed = time.monotonic()
        self.thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def refuse_loss(self, sweep: str) -> None:
        """Raise StoreError if the lease was lost, and say how.

        Args:
            sweep: name of the sweep.
        """
        if not self.lost:
            return
        if self.taken_by is not None:
            raise StoreError(
                f"Another driver ({self.taken_by}) took the sweep {sweep} over; this one stops."
            )
        raise StoreError(
            f"The lease of the sweep {sweep} was not renewed for {self._term:.0f} s: the store was "
            "away, or this process stood still. No other driver is known to have it. Run the same "
            "command again: what is stored is kept."
        )

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
        with suppress(StoreError):  # if the store cannot be reached, the lease expires
            if not self.lost:
                self._write(expires=0.0)
            elif (held := self._read()[0]).holder != self.holder:
                self.taken_by = held.who

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
            if not _is_free(held):
                if is_here(held.process):  # its clock is this clock
                    left = held.expires - time.time()
                    if left > 0:
                        raise StoreError(
                            f"Another driver ({held.who}) holds this sweep. If it is dead, its "
                            f"lease ends in {left:.0f} s: run again then."
                        ) from None
                else:
                    etag = self._watch(held, etag)
            if not self._swap(time.time() + self._term, etag):
                raise StoreError(
                    f"Another driver took the lease that {held.who} left: it runs this sweep now."
                ) from None

    def _watch(self, held: LeaseRecord, etag: str | None) -> str | None:
        """Return the ETag of a lease that its holder does not renew for a whole term.

        The holder is on another machine, whose clock may be wrong: time is measured here.

        Args:
            held: the lease.
            etag: its ETag.

        Raises:
            StoreError: the lease was renewed: its holder lives.
        """
        log.info(
            f"another driver ({held.who}) may run this sweep: waiting {self._term:.0f} s to see "
            "whether it renews its lease ..."
        )
        end = time.monotonic() + self._term
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self._term * RENEW_S / TERM_S))
            now, etag = self._read()
            if _is_free(now):
                break
            if now != held:
                raise StoreError(
                    f"Another driver ({now.who}) runs this sweep: it has just renewed its lease. "
                    "`soupray status` shows what it does."
                )
        return etag

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
            self.taken_by = self._read()[0].who
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


class StopRequest(Record, frozen=True, kw_only=True):
    """Asks the holder of the lease to stop. `who` asked, `asked` is in seconds since the epoch."""

    holder: str
    who: str
    asked: float


def ask_to_stop(store: Store, sweep: str, holder: str) -> None:
    """Ask the driver of `sweep` to stop at its next heartbeat.

    Args:
        store: the store of the sweep.
        sweep: name of the sweep.
        holder: identity of the lease's holder; a later driver is not asked.

    Raises:
        StoreError: the store cannot be reached.
    """
    made = StopRequest(holder=holder, who=this_driver(), asked=time.time())
    store.put(layout.stop_request(sweep), encode(made))


def find_stop_request(store: Store, sweep: str, holder: str) -> StopRequest | None:
    """Return the request to this holder of the lease of `sweep`, or None. Raises StoreError.

    A request that cannot be read counts as none: `soupray stop` writes it again.
    """
    try:
        found: StopRequest | None = find_record(store, layout.stop_request(sweep), StopRequest)
    except CheckpointError as error:
        log.warning(f"is this a request to stop? {error}")
        return None
    return found if found is not None and found.holder == holder else None


class Drain(Record, frozen=True, kw_only=True):
    """The holder of the lease lets no further trial start; those that run finish."""

    holder: str


def begin_drain(store: Store, sweep: str, holder: str) -> None:
    """Let no further trial of `sweep` start under this holder of the lease. Raises StoreError."""
    store.put(layout.drain(sweep), encode(Drain(holder=holder)))


def is_draining(store: Store, sweep: str, holder: str) -> bool:
    """Whether no further trial of `sweep` may start under this holder of the lease.

    Raises:
        CheckpointError: the record cannot be read.
        StoreError: the store cannot be reached.
    """
    found: Drain | None = find_record(store, layout.drain(sweep), Drain)
    return found is not None and found.holder == holder


def find_driver(store: Store, sweep: str) -> Driver | None:
    """Return the driver that runs `sweep` now, or None. Raises StoreError, CheckpointError."""
    lease: LeaseRecord | None = find_record(store, layout.lease(sweep), LeaseRecord)
    if lease is None or lease.expires <= time.time() or is_dead(lease.process):
        return None
    said: Heartbeat | None = find_record(store, layout.heartbeat(sweep), Heartbeat)
    return Driver(lease, said if said is not None and said.holder == lease.holder else None)
