"""What nothing needs any more: states of trials that are over, weights that no record names.

Conservative: a digest that occurs anywhere in any record of the store keeps the object that it
names, whatever kind of record it is; and nothing is taken that was written a short time ago, as
weights are written before the record that names them.
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
    """An object that nothing needs, and why not."""

    path: str
    size_bytes: int
    why: str


def find_garbage(store: Store, spec: SweepSpec, older_than_s: float) -> list[Garbage]:
    """What may go, of everything in the store. Raises StoreError, CheckpointError."""
    # Objects before records: what is named after its record was read was not listed yet.
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
    """Delete what was found, but for what was written again meanwhile; returns what went."""
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
    """Every SHA-256 in every record, of any sweep and of any kind. Raises CheckpointError."""

    def digests(path: str) -> set[str]:
        # Decoded first: of a record that was cut short some digests would be missing. None is a
        # view that was replaced while we looked.
        found = find_record(store, path, Any)
        return {digest.decode() for digest in SHA256.findall(encode(found))}

    records = [p for p in store.list("") if p.endswith(".json") and not p.startswith("resume/")]
    with ThreadPoolExecutor(16) as threads:
        return set().union(*threads.map(digests, records))


def _old_states(
    store: Store, spec: SweepSpec, states: list[tuple[str, int, float]]
) -> Iterator[Garbage]:
    """States of trials that are over, or that no spec plans."""
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
    """Keys of all trials that `spec`, or another sweep's spec in the store, plans.

    None if one of those cannot be planned here, as one of another version: then all may be.
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
