"""What a soup, a check and a diagnosis start with: Ray, the store, the pool and an evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from soupray.checkpoints import Checkpoints, read_record
from soupray.console import say
from soupray.errors import EvaluationError
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.evaluation.pool import Found, find_trials
from soupray.evaluation.shelf import Shelf
from soupray.plan import trials_of
from soupray.records import Basis, Pool, pool_of
from soupray.settling import Settled, settle
from soupray.spec import SweepSpec
from soupray.storage import Store, check_bucket
from soupray.wiring import find_basis


class Session(NamedTuple):
    """A pool, and everything to evaluate its models with."""

    settled: Settled
    store: Store
    pool: Pool
    basis: Basis
    shelf: Shelf
    evaluator: StoredEvaluator


@contextmanager
def opened(spec: SweepSpec, home: Path, address: str | None, partial: bool) -> Iterator[Session]:
    """The pool of `spec` on Ray's workers; what was evaluated before is known, without Ray.

    Raises:
        EvaluationError: no ingredients, or some are missing and `partial` is false.
        IncompatibleWeights: an ingredient that did not start from the pool's init.
        StoreError: the store is away.
    """
    from soupray.distributed import cluster
    from soupray.distributed.actors import RayWorkers

    with cluster.when_needed(address, spec) as attach:
        settled = settle(spec, home)
        place = settled.place
        check_bucket(place.storage, place.read_credentials())
        store = place.open_store()
        pool, basis = find_pool(store, spec, partial)
        shelf = Shelf(
            Checkpoints(store, Path(place.cache) / "weights"), spec.setting, basis.split("train")
        )
        shelf.add(pool.ingredients)
        evaluator = StoredEvaluator(RayWorkers(spec, place, attach), shelf, spec.setting)
        yield Session(settled, store, pool, basis, shelf, evaluator)


def find_pool(store: Store, spec: SweepSpec, partial: bool) -> tuple[Pool, Basis]:
    """The plan intersected with the store's manifests."""
    basis = find_basis(store, spec)
    if basis is None:
        raise EvaluationError(
            f"nothing was swept with this spec ({spec.name}) in {store.url}. "
            f"{_edits(store, spec)}Run `soupray sweep` first."
        )
    trials = trials_of(spec, basis)
    found = find_trials(store, trials, basis)
    for tombstone in found.diverged:
        say(f"trial {tombstone.trial.key} diverged and is left out: {tombstone.reason}.")
    if found.missing:
        _missing(store, spec, found, len(trials), partial)
    if not found.complete:
        raise EvaluationError(
            f"the pool of {spec.name} is empty: all {len(trials)} trials diverged. Lower the "
            "learning rates of the search space and sweep again."
        )
    if len(found.complete) == 1:
        say("note: the pool has one ingredient: every soup of it is that model.")
    return pool_of(basis, found.complete), basis


def _missing(store: Store, spec: SweepSpec, found: Found, planned: int, partial: bool) -> None:
    keys = ", ".join(t.key for t in found.missing[:8]) + (" ..." if len(found.missing) > 8 else "")
    message = f"{len(found.missing)} of {planned} trials are not in the store: {keys}. "
    if not partial or not found.complete:
        raise EvaluationError(
            f"{message}{_edits(store, spec)}Run `soupray sweep` to train them, or say --partial to "
            "go on without them."
        )
    say(f"note: {message}Going on without them (--partial).")


def _edits(store: Store, spec: SweepSpec) -> str:
    """What was edited since the sweep ran, if that explains missing trials; else nothing."""
    known = store.list(f"sweeps/{spec.name}/specs")
    mine = _flat(spec.model_dump(mode="json"))
    diffs = []
    for path in known:
        if path.endswith(f"/{spec.digest}.json"):
            return ""
        theirs = _flat(read_record(store, path, dict))
        diffs.append([k for k in sorted(mine.keys() | theirs) if mine.get(k) != theirs.get(k)])
    if not diffs:
        return ""
    fields = ", ".join(min(diffs, key=len)[:6])
    return f"The spec was edited since the sweep ran ({fields}), which plans other trials. "


def _flat(data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, object] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
