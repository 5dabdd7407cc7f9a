"""Find objects that can be deleted: states of finished trials, and unused weights and arrays.

The search is careful. If a digest occurs anywhere in any record of the store, the object of that
digest is kept. Recent objects are kept too, because weights are written before the record that
names them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from soupray.core.errors import SouprayError
from soupray.core.records import Record, encode
from soupray.search.state import find_basis, pool_trials
from soupray.spec.sweep_spec import SweepSpec, parse_data
from soupray.store import layout
from soupray.store.objects import Store, find_record, read_record

SHA256 = re.compile(rb"[0-9a-f]{64}")


class Garbage(Record, frozen=True, kw_only=True):
    """An object that is not needed, and the reason."""

    path: str
    size_bytes: int
    why: str


def find_garbage(store: Store, spec: SweepSpec, older_than_s: float) -> list[Garbage]:
    """Return the objects that can be deleted, from the whole store.

    Args:
        store: the store.
        spec: a sweep; together with the specs in the store, it tells which trials are planned.
        older_than_s: smallest age in seconds of an object to delete.

    Raises:
        StoreError: the store cannot be reached.
        CheckpointError: a record cannot be read.
    """
    # List objects before records: an object whose record comes later is then not in the list.
    before = time.time() - older_than_s
    folders = {layout.WEIGHTS: "weights", layout.BLOBS: "arrays"}
    files = [
        (what, e)
        for folder, what in folders.items()
        for e in store.entries(folder)
        if e[2] <= before
    ]
    states = [e for e in store.entries(layout.RESUME) if e[2] <= before]
    named = _named(store) if files else set()
    found = [
        Garbage(path=path, size_bytes=size, why=f"no record names these {what}")
        for what, (path, size, _) in files
        if layout.stem(path) not in named
    ]
    return [*found, *_old_states(store, spec, states)]


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


def _named(store: Store) -> set[str]:
    """Return every SHA-256 in every record of the store. Raises CheckpointError."""

    def digests(path: str) -> set[str]:
        # Decode first, because an incomplete record would lack digests. None: a view that was
        # deleted since the listing.
        found = find_record(store, path, Any)
        return {digest.decode() for digest in SHA256.findall(encode(found))}

    records = [p for p in store.list("") if p.endswith(".json") and not p.startswith("resume/")]
    with ThreadPoolExecutor(16) as threads:
        return set().union(*threads.map(digests, records))


def _old_states(
    store: Store, spec: SweepSpec, states: list[tuple[str, int, float]]
) -> Iterator[Garbage]:
    """Yield the states of trials that are over or that no spec plans."""
    if not states:
        return
    over = set(store.list(layout.TRIALS))
    planned = _planned(store, spec)
    for path, size, _ in states:
        key = path.split("/")[1]
        if layout.manifest(key) in over:
            yield Garbage(path=path, size_bytes=size, why=f"trial {key} is over")
        elif planned is not None and key not in planned:
            yield Garbage(path=path, size_bytes=size, why=f"no spec plans trial {key}")


def _planned(store: Store, spec: SweepSpec) -> set[str] | None:
    """Return the keys of all trials that `spec` or another sweep's spec in the store plans.

    None if a spec cannot be planned here, for example one of another version: then no trial can be
    excluded.
    """
    others = [p for p in store.list(layout.SWEEPS) if p.split("/")[2:3] == ["specs"]]
    keys = set()
    try:
        for path in others:
            if path.split("/")[1] != spec.name:
                keys |= _keys(store, parse_data(read_record(store, path, dict), path))
        return keys | _keys(store, spec)
    except SouprayError:
        return None


def _keys(store: Store, spec: SweepSpec) -> set[str]:
    basis = find_basis(store, spec)
    return set() if basis is None else {t.key for t in pool_trials(store, spec, basis)}
