"""Find objects that can be deleted: states of finished trials, and unused weights and arrays.

The search is careful. If a digest occurs anywhere in any record of the store, the object of that
digest is kept. Recent objects are kept too, because weights are written before the record that
names them. If a record cannot be read, or names a file that is not there, nothing is deleted:
perhaps the record is damaged, and named one of the files that no other record names.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from soupray.core.errors import CheckpointError, NotFound, SouprayError
from soupray.core.records import Basis, BlobRef, CheckpointRef, Evaluation, Record, encode
from soupray.core.trials import Freed, Ingredient, Manifest
from soupray.search.state import find_basis, pool_trials
from soupray.spec.sweep_spec import SweepSpec, parse_data
from soupray.store import layout
from soupray.store.manifests import find_freed, find_manifest
from soupray.store.objects import Store, find_record, read_record

log = logging.getLogger(__name__)

SHA256 = re.compile(rb"[0-9a-f]{64}")


class Garbage(Record, frozen=True, kw_only=True):
    """An object that is not needed, and the reason; `sweep` if it is known whose it was."""

    path: str
    size_bytes: int
    why: str
    sweep: str | None = None


def find_garbage(store: Store, spec: SweepSpec, older_than_s: float) -> list[Garbage]:
    """Return the objects that can be deleted, from the whole store.

    Args:
        store: the store.
        spec: a sweep; together with the specs in the store, it tells which trials are planned.
        older_than_s: smallest age in seconds of an object to delete.

    Raises:
        CheckpointError: a record is damaged, so that nobody knows what it names.
        StoreError: the store cannot be reached.
    """
    # List objects before records: an object whose record comes later is then not in the list.
    before = time.time() - older_than_s
    old = [e for e in store.entries("") if e[2] <= before and layout.is_ours(e[0])]
    files = [e for e in old if e[0].startswith((f"{layout.WEIGHTS}/", f"{layout.BLOBS}/"))]
    states = [e for e in old if e[0].startswith(f"{layout.RESUME}/")]
    named = named_files(store) if files else set()
    found = [
        Garbage(
            path=path, size_bytes=size, why=f"no record names these {_WHAT[path.split('/')[0]]}"
        )
        for path, size, _ in files
        if layout.stem(path) not in named
    ]
    return [*found, *_old_states(store, spec, states)]


_WHAT = {layout.WEIGHTS: "weights", layout.BLOBS: "arrays"}


def remove(store: Store, garbage: list[Garbage], older_than_s: float) -> list[Garbage]:
    """Delete the objects that `find_garbage` returned, unless they were written again since.

    Args:
        store: the store.
        garbage: the objects.
        older_than_s: smallest age in seconds of an object to delete.

    Returns:
        The objects that were deleted.
    """
    before = time.time() - older_than_s
    still = {
        path
        for folder in (layout.WEIGHTS, layout.BLOBS, layout.RESUME)
        for path, _, at in store.entries(folder)
        if at <= before
    }
    gone = [one for one in garbage if one.path in still]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda one: store.delete(one.path), gone))
    return gone


_NAMING: dict[str, Any] = {
    "bases": Basis,
    layout.TRIALS: Manifest,
    "evaluations": Evaluation,
    "soups": CheckpointRef,
    "statistics": BlobRef,
}
"""The records that name files of arrays, by their folder. They are decoded as what they are: a
record of another program would name nothing."""


def named_files(store: Store, but: Collection[str] = ()) -> set[str]:
    """Return every SHA-256 in every record of the store.

    Objects of other programs are named in the log. Digests in them count as well: they may be
    copies of our records.

    Args:
        store: the store.
        but: paths of records that do not count, because they will be deleted.

    Raises:
        CheckpointError: a record of soupray cannot be read, or names a file that is not there.
    """
    damaged: list[str] = []
    wanted: dict[str, str] = {}
    freed: set[str] = set()

    def digests(path: str) -> set[str]:
        if not layout.is_ours(path):
            log.warning(f"{path} in {store.url} is not an object of soupray: it is left alone.")
            return _found(lambda: store.get(path))
        try:
            # Decode first, because an incomplete record would lack digests. None: a view that was
            # deleted since the listing.
            record = _read(store, path)
        except CheckpointError as error:
            damaged.append(str(error))
            return set()
        if isinstance(record, Freed):  # it says that they may be gone
            freed.add(record.checkpoint.sha256)
        else:
            wanted.update(dict.fromkeys(_files_of(record), path))
        return _found(lambda: encode(record))

    listed = [p for p in store.list("") if p.endswith(".json") and not p.startswith("resume/")]
    records = [p for p in listed if p not in but]
    with ThreadPoolExecutor(16) as threads:
        named = set[str]().union(*threads.map(digests, records))
    # Listed last: a file is written before the record that names it.
    there = {layout.stem(p) for f in (layout.WEIGHTS, layout.BLOBS) for p in store.list(f)}
    _refuse_damaged(store, damaged, {s: p for s, p in wanted.items() if s not in there | freed})
    return named


def _refuse_damaged(store: Store, damaged: list[str], missing: dict[str, str]) -> None:
    """Raise CheckpointError if records are damaged, or name files that are not there.

    Args:
        store: the store.
        damaged: what is wrong with records.
        missing: the record that names a file, by the SHA-256 of each file that is not there.
    """
    problems = damaged + [
        f"{path} in {store.url} names the file {sha256}, which is not there. It is damaged, or "
        "somebody deleted the file. Delete the record, or restore the file."
        for sha256, path in missing.items()
    ]
    for problem in sorted(problems):
        log.warning(problem)
    if problems:
        raise CheckpointError(
            f"nothing is deleted from {store.url}, because {len(problems)} records cannot be read "
            "or name no file: nobody knows what they named. Restore or delete them, then run the "
            "same command again."
        )


def _read(store: Store, path: str) -> Any:
    """Return the record at `path`, or None. Raises CheckpointError."""
    folder = path.partition("/")[0]
    if folder == layout.TRIALS and path.endswith("/freed.json"):
        return find_record(store, path, Freed)
    if folder == layout.TRIALS:
        return find_manifest(store, path.split("/")[1])
    return find_record(store, path, _NAMING.get(folder, Any))


def _files_of(record: Any) -> Iterator[str]:
    """Yield the SHA-256 of the files of arrays that a typed record names."""
    if isinstance(record, CheckpointRef | BlobRef):
        yield record.sha256
    elif isinstance(record, Record):
        for name in record.__struct_fields__:
            yield from _files_of(getattr(record, name))


def _found(read: Callable[[], bytes]) -> set[str]:
    """Return every SHA-256 in what `read` returns; none if the object is gone."""
    try:
        return {digest.decode() for digest in SHA256.findall(read())}
    except NotFound:
        return set()


def _old_states(
    store: Store, spec: SweepSpec, states: list[tuple[str, int, float]]
) -> Iterator[Garbage]:
    """Yield the states of trials that are over or that no spec plans."""
    if not states:
        return
    keys = {path.split("/")[1] for path, _, _ in states}
    # Read, not only listed: the trial of a damaged manifest will be trained again. So may be one
    # whose weights were let go.
    found = [find_manifest(store, key) for key in keys]
    freed = find_freed(store, [m for m in found if isinstance(m, Ingredient)])
    over = {m.trial.key for m in found if m is not None} - freed.keys()
    planned = _planned(store, spec)
    for path, size, _ in states:
        key = path.split("/")[1]
        if key in over:
            yield Garbage(path=path, size_bytes=size, why=f"trial {key} is over")
        elif planned is not None and key not in planned:
            yield Garbage(path=path, size_bytes=size, why=f"no spec plans trial {key}")


def _planned(store: Store, spec: SweepSpec) -> set[str] | None:
    """Return the keys of all trials that `spec` or another sweep's spec in the store plans.

    None if a spec cannot be planned here, for example one of another version, or if the spec or the
    basis of a sweep is missing: then no trial can be excluded.
    """
    paths = list(filter(layout.is_ours, store.list(layout.SWEEPS)))
    specs = [p for p in paths if p.split("/")[2] == "specs" and p.split("/")[1] != spec.name]
    if {p.split("/")[1] for p in paths} - {p.split("/")[1] for p in specs} - {spec.name}:
        return None
    keys = set()
    try:
        for one in (spec, *(parse_data(read_record(store, path, dict), path) for path in specs)):
            basis = find_basis(store, one)
            if basis is None:
                return None
            keys |= {t.key for t in pool_trials(store, one, basis)}
    except SouprayError:
        return None
    return keys
