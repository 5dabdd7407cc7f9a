"""What a sweep and its trials said (`soupray logs`): from the store and from files.

The store keeps why trials diverged and, in the last heartbeat, why they failed. What a driver
prints goes to its standard error and is not kept. What workers print, Ray keeps in the folder of
its session, on the machine where they ran, until somebody removes it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import TRIAL_FAILED
from soupray.core.records import Record
from soupray.core.trials import Tombstone
from soupray.operations.details import find_trial
from soupray.search.state import find_state
from soupray.services.place import Place, find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import Heartbeat, LeaseRecord, find_driver, is_here
from soupray.store.objects import Store, find_record

MOST_READ = 2**20
"""Bytes at the end of a log file that are read."""

MOST_FILES = 20

MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines with which Ray begins what a worker prints."""


class LogFile(Record, frozen=True, kw_only=True):
    """A file of this machine: path, bytes, time of its last line, and the lines that are shown."""

    path: str
    size_bytes: int
    written: float
    lines: tuple[str, ...]


class Logs(Record, frozen=True, kw_only=True):
    """What a sweep, or one trial of it, said.

    Attributes:
        sweep: name of the sweep.
        trial: key of the trial; None: all.
        driver: who drives it, or drove it last; None if nobody did.
        runs: whether it drives now.
        heard: time of its last heartbeat, in seconds since the epoch.
        diverged: reason by the key of the trial.
        failed: reason by the key of the trial, from the last run that had a heartbeat.
        files: log files of this machine, the newest first.
        elsewhere: where other logs are, in words.
    """

    sweep: str
    trial: str | None
    driver: str | None
    runs: bool
    heard: float | None
    diverged: dict[str, str]
    failed: dict[str, str]
    files: tuple[LogFile, ...]
    elsewhere: str


class _Said(NamedTuple):
    """Reasons by the key of the trial."""

    diverged: dict[str, str]
    failed: dict[str, str]


def find_logs(spec: SweepSpec, home: Path, named: str | None, tail: int) -> Logs:
    """Return what a sweep, or one trial of it, said.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        named: a trial, as `details.find_trial` takes it; None: all trials and the driver.
        tail: number of lines to read at the end of each file.

    Raises:
        NotFound: there is no such trial.
        StoreError: the store cannot be reached.
    """
    place = find_place(spec, home)
    store = place.open_store()
    key = None if named is None else find_trial(store, spec, named).key
    lease: LeaseRecord | None = find_record(store, layout.lease(spec.name), LeaseRecord)
    beat: Heartbeat | None = find_record(store, layout.heartbeat(spec.name), Heartbeat)
    said = _said(store, spec, beat, key)
    files = [*_of_tune(place, spec, key), *_of_ray(lease)]
    read = [one for one in (_read(path, key, tail) for path in files) if one is not None]
    return Logs(
        sweep=spec.name,
        trial=key,
        driver=None if lease is None else lease.who,
        runs=find_driver(store, spec.name) is not None,
        heard=None if beat is None else beat.written,
        diverged=said.diverged,
        failed=said.failed,
        files=tuple(sorted(read, key=lambda one: -one.written)[:MOST_FILES]),
        elsewhere=_elsewhere(lease),
    )


def _said(store: Store, spec: SweepSpec, beat: Heartbeat | None, key: str | None) -> _Said:
    """Return why trials diverged, and why those failed that are not over now."""
    state = find_state(store, spec)
    over = {} if state is None else {m.trial.key: m for m in state.manifests}
    diverged = {k: m.reason for k, m in over.items() if isinstance(m, Tombstone)}
    failed = {} if beat is None else {k: r for k, r in beat.beat.failed.items() if k not in over}
    if key is None:
        return _Said(diverged, failed)
    return _Said(*({k: v for k, v in one.items() if k == key} for one in (diverged, failed)))


def sessions(lease: LeaseRecord | None) -> list[Path]:
    """Return the folders with the logs of the Ray that the last driver started on this machine.

    Args:
        lease: of that driver; Ray names its session after the process.
    """
    if lease is None or not is_here(lease.process):
        return []
    pid = lease.process.split("/")[2]
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    return sorted(root.glob(f"session_*_{pid}/logs"))


def _of_ray(lease: LeaseRecord | None) -> Iterator[Path]:
    for folder in sessions(lease):
        for ending in ("err", "out"):
            yield from folder.glob(f"worker-*.{ending}")


def _of_tune(place: Place, spec: SweepSpec, key: str | None) -> Iterator[Path]:
    """Yield where Tune writes the errors of trials whose worker died."""
    yield from (place.folder / "tune" / spec.name).glob(f"{key or '*'}*/error.txt")


def _read(path: Path, key: str | None, tail: int) -> LogFile | None:
    """Return a file with its last lines, or those about a trial; None: there are none."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            file.seek(max(0, stat.st_size - MOST_READ))
            text = file.read().decode(errors="replace")
    except OSError:
        return None  # another user's, or removed meanwhile
    lines = [line for line in text.splitlines() if not line.startswith(MARKS)]
    if key is not None and path.name != "error.txt":
        lines = _about(lines, key)
    if not lines:
        return None
    shown = tuple(lines[-tail:] if tail else ())
    return LogFile(path=str(path), size_bytes=stat.st_size, written=stat.st_mtime, lines=shown)


def _about(lines: list[str], key: str) -> list[str]:
    """Return the lines from the failure of a trial to that of the next one."""
    begins = [k for k, line in enumerate(lines) if line == TRIAL_FAILED.format(key)]
    if not begins:
        return []
    start, prefix = begins[-1], TRIAL_FAILED.partition("{")[0]
    later = (k for k in range(start + 1, len(lines)) if lines[k].startswith(prefix))
    return lines[start : next(later, len(lines))]


def _elsewhere(lease: LeaseRecord | None) -> str:
    where = "logs/ of Ray's session there (/tmp/ray/session_latest); of a Ray job: ray job logs ID"
    if lease is None:
        return f"No driver ran. What workers print is in {where}."
    if sessions(lease):
        return f"What the driver prints is not kept. On other nodes: {where}."
    return f"{lease.who} ran it: its workers' logs are in {where}."
