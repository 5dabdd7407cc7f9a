"""Manifests of trials, checked against the key that names them.

The key of a trial is a digest of all that shapes its weights, and a part of the path of its
manifest. A manifest that was copied to the path of another trial, or whose trial was edited, is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from soupray.core.errors import CheckpointError, NotFound
from soupray.core.names import Sha256
from soupray.core.records import UNITS, check_counts, encode
from soupray.core.trials import Freed, Ingredient, Manifest, Tombstone, Trial, key_of
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record

T = TypeVar("T")
S = TypeVar("S")
M = TypeVar("M", bound="Ingredient | Tombstone | Glance[Any]")

READERS = 16
"""Number of manifests that are read in parallel."""


class Counted(msgspec.Struct, tag="scores", frozen=True):
    """The correct count of stored scores. Other fields of the JSON are skipped, not decoded."""

    n: Annotated[int, msgspec.Meta(ge=1)]
    correct: int
    right: str
    graded: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Refuse (ValueError) counts that contradict each other."""
        check_counts(self)

    @property
    def accuracy(self) -> float:
        """As of `Scores`."""
        return self.correct / (self.n * UNITS if self.graded else self.n)


class Glance(msgspec.Struct, Generic[S], tag="complete", frozen=True):
    """What a status shows of an `Ingredient`. Other fields of the JSON are skipped, not decoded."""

    trial: Trial
    init: Sha256
    held_out: S


def find_manifest(store: Store, key: str) -> Manifest | None:
    """Return the manifest of the trial with this key, or None if the trial is not over.

    Raises:
        CheckpointError: the manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    found: Manifest | None = find_record(store, layout.manifest(key), Manifest)
    return None if found is None else _of(key, found)


def create_manifest(store: Store, made: Manifest) -> Manifest:
    """Store the manifest if its trial has none, and return the one that is in the store.

    Raises:
        CheckpointError: the manifest in the store cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    key = made.trial.key
    return _of(key, create_record(store, layout.manifest(key), made, Manifest))


def find_trained(store: Store, key: str) -> Manifest | None:
    """Return the manifest of a trial that need not be trained: it is over, and has its weights.

    The record that its weights were let go is removed if they are there: whoever was about to
    delete them was killed, or the trial was trained again.

    Raises:
        CheckpointError: a record cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    found = find_manifest(store, key)
    if not isinstance(found, Ingredient) or not _is_freed(store, found):
        return found
    if not _is_there(store, layout.weights(found.checkpoint.sha256)):
        return None
    store.delete(layout.freed(key))
    return found


def put_manifest(store: Store, made: Manifest) -> Manifest:
    """Store the manifest of a trial that was trained, and return the one that is in the store.

    That of a trial whose weights were let go is replaced: on another kind of machine the new
    weights are other ones. Else as `create_manifest`.
    """
    kept, key = create_manifest(store, made), made.trial.key
    if not isinstance(kept, Ingredient) or not _is_freed(store, kept):
        return kept
    store.put(layout.manifest(key), encode(made))
    store.delete(layout.freed(key))
    return made


def find_freed(store: Store, ingredients: Sequence[Ingredient]) -> dict[str, Freed]:
    """Return which of these trials have no weights any more, by key.

    Raises:
        CheckpointError: a record cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    there = set(store.list(layout.TRIALS)) if ingredients else set()
    some = [i for i in ingredients if layout.freed(i.trial.key) in there]
    with ThreadPoolExecutor(READERS) as threads:
        found = list(threads.map(lambda i: _freed(store, i), some))
    return {one.trial: one for one in found if one is not None}


def was_freed(store: Store, key: str) -> bool:
    """Whether the weights of the trial with this key were let go; False if it is no key.

    Raises:
        CheckpointError: a record cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    is_key = layout.is_ours(f"{layout.TRIALS}/{key}/manifest.json")
    found = find_manifest(store, key) if is_key else None
    return isinstance(found, Ingredient) and _is_freed(store, found)


def _is_freed(store: Store, made: Ingredient) -> bool:
    return _freed(store, made) is not None


def _freed(store: Store, made: Ingredient) -> Freed | None:
    key = made.trial.key
    found: Freed | None = find_record(store, layout.freed(key), Freed)
    if found is not None and found.trial != key:
        raise CheckpointError(
            f"{layout.freed(key)} in {store.url} is about trial {found.trial}: it was copied "
            "there, or edited. Delete it: whether weights are there is seen when they are read."
        )
    return found if found is not None and found.checkpoint == made.checkpoint else None


def _is_there(store: Store, path: str) -> bool:
    try:
        store.size(path)
    except NotFound:
        return False
    return True


def find_manifests(store: Store, trials: Sequence[Trial]) -> list[Manifest | None]:
    """Return the manifest of each trial, or None if the trial is not over.

    Raises:
        CheckpointError: a manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """
    return _each(store, trials, lambda key: find_manifest(store, key), _whole)


def _whole(manifest: Manifest) -> Manifest:
    tensors = manifest.tensors if isinstance(manifest, Ingredient) else None
    if (made_as := key_of(manifest.trial, tensors)) != manifest.trial.key:
        raise _another(manifest.trial.key, made_as)
    return manifest


def glance_at_manifests(
    store: Store,
    trials: Sequence[Trial],
    scores: type[S],
    keep: Callable[[Glance[S] | Tombstone], T],
) -> list[T | None]:
    """Return what `keep` makes of the manifest of each trial, or None if the trial is not over.

    A manifest of a large model takes hundreds of kilobytes in memory and a millisecond. A glance
    takes a tenth of the time, and only what `keep` returns stays in memory. It checks the keys of
    trials, but not those of imports, which depend on all tensors.

    Args:
        store: the store.
        trials: the trials.
        scores: `Counted`, or `Scores` for a metric that needs more than a count.
        keep: the part of a glance that the caller needs.

    Raises:
        CheckpointError: a manifest cannot be read, or belongs to another trial.
        StoreError: the store cannot be reached.
    """

    def find(key: str) -> Glance[S] | Tombstone | None:
        kind: Any = Glance[scores] | Tombstone  # type: ignore[valid-type]
        found: Glance[S] | Tombstone | None = find_record(store, layout.manifest(key), kind)
        return found

    def kept(found: Glance[S] | Tombstone) -> T:
        trial = found.trial
        if trial.method != "imported" and (made_as := key_of(trial)) != trial.key:
            raise _another(trial.key, made_as)
        return keep(found)

    return _each(store, trials, find, kept)


def _each(
    store: Store, trials: Sequence[Trial], find: Callable[[str], Any], keep: Callable[[Any], T]
) -> list[T | None]:
    """List the manifests once, then read those of `trials` in parallel."""
    there = set(store.list(layout.TRIALS)) if trials else set()

    def one(trial: Trial) -> T | None:
        found = find(trial.key) if layout.manifest(trial.key) in there else None
        return None if found is None else keep(_of(trial.key, found))

    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(one, trials))


def _of(key: str, found: M) -> M:
    if found.trial.key != key:
        raise _another(key, found.trial.key)
    return found


def _another(key: str, other: str) -> CheckpointError:
    return CheckpointError(
        f"{layout.manifest(key)} in the store is not the manifest of trial {key}, but of "
        f"{other}: it was copied there, or edited. Delete it and sweep again: only that trial is "
        "trained."
    )
