"""The history of a search: trials that a sampler suggested, and trials that a scheduler stopped.

A search is identified by a digest of everything that determines its points, except the number of
trials. A sweep with more trials therefore continues the search of a sweep with fewer trials.
"""

from __future__ import annotations

import math

import msgspec

from soupray.core.errors import CheckpointError
from soupray.core.records import Basis, Metric, Record, digest
from soupray.core.trials import EpochRecord, Ingredient, Manifest, Trial
from soupray.maths.metrics import COUNTED, value
from soupray.search.plan import PlannedTrial, dimensions_of
from soupray.spec.space import Space
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record, list_ours, read_record


class Suggested(Record, frozen=True, kw_only=True):
    """A trial that a sampler suggested, and its point: one number in [0, 1) per dimension."""

    point: tuple[float, ...]
    planned: PlannedTrial


class Stopped(Record, tag="stopped", frozen=True, kw_only=True):
    """A trial that the scheduler stopped; it is not fully trained, so it is not an ingredient."""

    trial: Trial
    last: EpochRecord


def search_key(spec: SweepSpec, basis: Basis) -> str:
    """Return the digest that identifies the search of `spec`: 16 hexadecimal digits."""
    search = spec.search.model_dump(mode="json", exclude={"trials", "stop"})
    shaping = [search, spec.seed, basis.key, spec.setting, spec.training.record()]
    return digest(shaping if spec.metric == "accuracy" else [*shaping, spec.metric])[:16]


def score_of(found: Manifest | None, metric: Metric) -> float | None:
    """Return the score of a trial as samplers see it: more is better. None: it is not over.

    A trial that diverged gets the worst value of the metric.

    Args:
        found: its manifest.
        metric: of the spec.
    """
    if found is None:
        return None
    if isinstance(found, Ingredient):
        return value(found.held_out, metric)
    return 0.0 if metric in COUNTED else -math.inf


def create_suggestion(store: Store, spec: SweepSpec, basis: Basis, made: Suggested) -> Suggested:
    """Store a suggestion before its trial runs, and return the one that is in the store.

    If another process has stored a suggestion with this index first, that one is returned. Raises
    StoreError.
    """
    path = layout.suggestion(spec.name, search_key(spec, basis), made.planned.index)
    return create_record(store, path, made)


def find_suggested(store: Store, spec: SweepSpec, basis: Basis) -> list[Suggested]:
    """Return the stored suggestions in order, up to the number of trials in the spec."""
    found: list[Suggested] = []
    for path in list_ours(store, layout.suggestions(spec.name, search_key(spec, basis))):
        one: Suggested = read_record(store, path, Suggested)
        if int(layout.stem(path)) != len(found) or not _is_at(one, len(found), spec):
            raise CheckpointError(
                f"{path} in {store.url} is not suggestion {len(found)} of this search: one before "
                "it is missing, or it was copied or edited. Restore it, or delete it and all that "
                "follow it, and sweep again."
            )
        found.append(one)
    return [one for one in found if one.planned.index < spec.search.trials]


def _is_at(one: Suggested, index: int, spec: SweepSpec) -> bool:
    """Whether a suggestion has this index, and the coordinates and hyperparameters of the spec."""
    return (
        one.planned.index == index
        and len(one.point) == len(dimensions_of(spec))
        and all(0 <= x < 1 for x in one.point)
        and set(dimensions_of(spec)) <= one.planned.hparams.keys() <= set(Space.model_fields)
    )


def create_stopped(store: Store, spec: SweepSpec, basis: Basis, made: Stopped) -> None:
    """Record that the scheduler stopped a trial. Raises StoreError."""
    create_record(store, layout.stopped(spec.name, search_key(spec, basis), made.trial.key), made)


class _Saved(msgspec.Struct):
    """What is read of the record about the saved state of a trial. Other fields are skipped."""

    history: tuple[EpochRecord, ...]


def find_saved_epochs(store: Store, key: str) -> tuple[EpochRecord, ...]:
    """Return the epochs that are in the saved state of a trial that is not over; none without one.

    Raises:
        CheckpointError: the record cannot be read.
        StoreError: the store cannot be reached.
    """
    saved: _Saved | None = find_record(store, layout.resume_state(key), _Saved)
    return () if saved is None else saved.history


def find_stopped(store: Store, spec: SweepSpec, basis: Basis) -> set[str]:
    """Return the keys of the trials that the scheduler of this sweep stopped."""
    if spec.search.scheduler == "fifo":
        return set()
    paths = list_ours(store, layout.all_stopped(spec.name, search_key(spec, basis)))
    return set(map(layout.stem, paths))
