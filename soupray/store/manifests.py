"""Manifests of trials, checked against the key that names them.

The key of a trial is a digest of all that shapes its weights, and a part of the path of its
manifest. A manifest that was copied to the path of another trial, or whose trial was edited, is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from soupray.core.errors import CheckpointError
from soupray.core.records import Ingredient, Manifest, Trial, key_of
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record

T = TypeVar("T")

READERS = 16
"""Number of manifests that are read in parallel."""


def find_manifest(store: Store, key: str) -> Manifest | None:
    """Return the manifest of the trial with this key, or None if the trial is not over.

    Raises:
        CheckpointError: the manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    found: Manifest | None = find_record(store, layout.manifest(key), Manifest)
    return None if found is None else _of(key, found, store)


def create_manifest(store: Store, made: Manifest) -> Manifest:
    """Store the manifest if its trial has none, and return the one that is in the store.

    Raises:
        CheckpointError: the manifest in the store cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    key = made.trial.key
    return _of(key, create_record(store, layout.manifest(key), made, Manifest), store)


def find_manifests(store: Store, trials: Sequence[Trial]) -> list[Manifest | None]:
    """Return the manifest of each trial, or None if the trial is not over.

    Raises:
        CheckpointError: a manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    return kept_of_manifests(store, trials, lambda manifest: manifest)


def kept_of_manifests(
    store: Store, trials: Sequence[Trial], keep: Callable[[Manifest], T]
) -> list[T | None]:
    """Return what `keep` makes of the manifest of each trial, or None if the trial is not over.

    The manifests are listed once and then read in parallel. The key of each trial is computed again
    from all that shapes its weights. A manifest of a large model takes hundreds of kilobytes in
    memory; only what `keep` returns stays there.

    Args:
        store: the store.
        trials: the trials.
        keep: the part of a manifest that the caller needs.

    Raises:
        CheckpointError: a manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    there = set(store.list(layout.TRIALS)) if trials else set()

    def find(trial: Trial) -> T | None:
        known = layout.manifest(trial.key) in there
        found = find_manifest(store, trial.key) if known else None
        if found is None:
            return None
        tensors = found.tensors if isinstance(found, Ingredient) else None
        if (made_as := key_of(found.trial, tensors)) != trial.key:
            raise _another(trial.key, made_as, store)
        return keep(found)

    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(find, trials))


def _of(key: str, found: Manifest, store: Store) -> Manifest:
    if found.trial.key != key:
        raise _another(key, found.trial.key, store)
    return found


def _another(key: str, other: str, store: Store) -> CheckpointError:
    return CheckpointError(
        f"{layout.manifest(key)} in {store.url} is not the manifest of trial {key}, but of "
        f"{other}: it was copied there, or edited. Delete it and sweep again: only that trial is "
        "trained."
    )
