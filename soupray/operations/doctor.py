"""Check the installation and the services of a spec (`soupray doctor`), one line per check."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from soupray.core.errors import AlreadyExists, SouprayError, mask
from soupray.core.records import Record
from soupray.reporting.tracker import load_trackers
from soupray.services.place import Services, start_services
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, check_bucket
from soupray.store.s3 import resolve

VERSIONS = ("soupray", "ray", "torch", "open_clip_torch", "mlflow", "obstore", "boto3")


class Check(Record, frozen=True, kw_only=True):
    """The result of a check: what was checked, whether it passed, and details."""

    what: str
    ok: bool
    seen: str


def examine(spec: SweepSpec, home: Path) -> Iterator[Check]:
    """Run all checks, and yield each result as soon as it is known.

    Args:
        spec: the sweep whose services are checked.
        home: folder for the state of this machine.
    """
    yield _try("versions", _versions)
    yield _try("home", lambda: _home(home))
    services: list[Services] = []
    yield _try("services", lambda: _start(spec, home, services))
    if services:
        place = services[0].place
        yield _try("credentials", lambda: _credentials(services[0]))
        yield _try("bucket", lambda: round_trip(place.open_store()))
        yield _try("mlflow", lambda: _mlflow(services[0]))
    if spec.trackers:
        yield _try("trackers", lambda: _trackers(spec))
    yield _try("ray", lambda: _ray(spec))
    yield _try("ray token", _token)
    yield _try("gpu", _gpu)


def _try(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what=what, ok=True, seen=look())
    except (SouprayError, OSError) as error:
        return Check(what=what, ok=False, seen=str(error))


def _versions() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    except PackageNotFoundError as error:
        raise OSError(f"{error.name} is not installed: pip install soupray") from error


def _home(home: Path) -> str:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / 1e9
    if free < 1:
        raise OSError(f"{home}: only {free:.2f} GB free; checkpoints will not fit")
    return f"{home}, {free:.0f} GB free"


def _start(spec: SweepSpec, home: Path, services: list[Services]) -> str:
    services.append(start_services(spec, home))
    embedded = [n for n in ("storage", "tracking") if getattr(spec, n) == "embedded"]
    return (
        f"embedded {' and '.join(embedded)} run" if embedded else "storage and tracking are yours"
    )


def _credentials(services: Services) -> str:
    place = services.place
    check_bucket(place.storage, place.read_credentials())
    where = "none needed"
    if place.storage.startswith("s3://") and not place.credentials:
        access = resolve(place.storage)
        style = "virtual-hosted" if access.virtual else "path"
        where = (
            f"by boto3 ({access.credentials}), {access.endpoint}, region {access.region}, "
            f"{style} style"
        )
    if place.credentials:
        mode = stat.S_IMODE(Path(place.credentials).stat().st_mode)
        if mode != 0o600:
            raise OSError(f"{place.credentials} has mode {mode:o}; do: chmod 600")
        where = "generated, in a file of mode 0600"
    return f"{where}; {place.storage} lets them in"


def round_trip(store: Store) -> str:
    """Create, read, compare and delete an object, and check that create never overwrites."""
    path, data = layout.probe(uuid.uuid4().hex), os.urandom(1 << 16)
    with suppress(AlreadyExists):  # our own first request succeeded, but its answer was lost
        store.create(path, data)
    try:
        if hashlib.sha256(store.get(path)).digest() != hashlib.sha256(data).digest():
            raise OSError("the object came back with other bytes")
        try:
            store.create(path, data)
        except AlreadyExists:
            return "64 KiB written, read, checksum right; a second create is refused"
        raise OSError(
            "the store overwrites on a create-only put (If-None-Match: *): it cannot hold "
            "manifests. Use AWS S3, SeaweedFS, MinIO or another store with conditional writes"
        )
    finally:
        store.delete(path)


def _mlflow(services: Services) -> str:
    if services.tracking_url is None:
        return "off"
    from soupray.reporting.mlflow import ping

    return f"{mask(services.tracking_url)}: {ping(services.tracking_url)}"


def _trackers(spec: SweepSpec) -> str:
    load_trackers(spec)
    return f"{', '.join(spec.trackers)}: installed, and take these options"


def _ray(spec: SweepSpec) -> str:
    """Connect to Ray as a sweep does, which also checks that a trial fits on a node."""
    from soupray.distributed.cluster import attach, describe

    where = os.environ.get("RAY_ADDRESS") or "started on this machine"
    with attach(None, spec, workers=spec.training.workers):
        return f"{where}: {describe()}"


def _token() -> str:
    """Return the state of Ray's token in words."""
    from soupray.distributed.cluster import TOKEN, make_token

    mode = os.environ.get("RAY_AUTH_MODE")
    if not TOKEN.exists():
        return "none yet; Ray makes one when it first starts here"
    make_token()
    said = f"{TOKEN} (mode 0600); clusters started here ask for it"
    if mode != "token":
        said += "; before `ray job submit`: export RAY_AUTH_MODE=token"
    return said


def _gpu() -> str:
    import torch

    count = torch.cuda.device_count()
    names = {torch.cuda.get_device_name(i) for i in range(count)}
    return f"{count} ({', '.join(sorted(names))})" if count else "none on this machine"
