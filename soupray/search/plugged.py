"""A sampler that is not soupray's own: its points are recorded, and replayed after a restart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Set
from typing import Any

from soupray.core.errors import SouprayError, TrialError
from soupray.core.plugins import load, raised, refuse_signature
from soupray.core.ports import Sampler, Seen
from soupray.core.records import Basis
from soupray.core.trials import Trial
from soupray.search.history import (
    Suggested,
    create_suggestion,
    find_stopped,
    find_suggested,
    score_of,
)
from soupray.search.plan import as_trials, dimensions_of, planned_at
from soupray.spec.plugged_in import SAMPLERS
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.manifests import find_manifest, find_manifests
from soupray.store.objects import Store


class PluginSearch:
    """Suggests trials one after another: first stored, unfinished suggestions, then new points.

    A sampler is a function of what is known, so that nothing but the points is stored.

    Attributes:
        problem: the error of the sampler that ended the search, or None.
    """

    def __init__(self, store: Store, spec: SweepSpec, basis: Basis) -> None:
        """Read the points and the results that are in the store. Raises StoreError, ConfigError."""
        self._store, self._spec, self._basis = store, spec, basis
        self._sampler = load_sampler(spec.search.sampler)
        self._dimensions = dimensions_of(spec)
        self.problem: SouprayError | None = None
        suggested, stopped = find_suggested(store, spec, basis), find_stopped(store, spec, basis)
        self._trials = as_trials(spec, basis, [one.planned for one in suggested])
        manifests = find_manifests(store, self._trials)
        scores = [score_of(manifest, spec.metric) for manifest in manifests]
        self._seen = [Seen(s.point, score) for s, score in zip(suggested, scores, strict=True)]
        self._waiting = [
            trial
            for trial, manifest in zip(self._trials, manifests, strict=True)
            if manifest is None and trial.key not in stopped
        ]

    @property
    def left(self) -> int:
        """Number of trials that still have to run."""
        return self._spec.search.trials - len(self._trials) + len(self._waiting)

    def next(self) -> Trial | None:
        """Return the next trial to run, or None if all were suggested, or the sampler failed.

        Raises:
            StoreError: the store cannot be reached.
        """
        if self._waiting:
            return self._waiting.pop(0)
        index = len(self._trials)
        if index == self._spec.search.trials or self.problem is not None:
            return None
        try:
            point = self._point(index)
        except SouprayError as error:
            self.problem = error
            return None
        made = Suggested(point=point, planned=planned_at(self._spec, index, point))
        made = create_suggestion(self._store, self._spec, self._basis, made)
        trial = as_trials(self._spec, self._basis, [made.planned])[0]
        self._trials.append(trial)
        self._seen.append(Seen(made.point, None))
        return trial

    def over(self, key: str) -> None:
        """Read the score of a trial that is over.

        Args:
            key: key of a trial that `next` returned and that finished, diverged, stopped or failed.
        """
        index = next(i for i, trial in enumerate(self._trials) if trial.key == key)
        score = score_of(find_manifest(self._store, key), self._spec.metric)
        self._seen[index] = self._seen[index]._replace(score=score)

    def _point(self, index: int) -> tuple[float, ...]:
        """Return the sampler's next point. Raises TrialError."""
        where = f"sampler {self._spec.search.sampler!r}"
        seed = int.from_bytes(hashlib.sha256(f"{self._spec.seed} {index}".encode()).digest()[:4])
        try:
            found = self._sampler(tuple(self._seen), tuple(self._dimensions), seed)
        except Exception as error:
            raise TrialError(
                f"{where} raised {raised(error)}. Finished trials are kept: correct it, and run "
                "the same command again."
            ) from error
        try:
            return point_of(found, len(self._dimensions))
        except ValueError as error:
            raise TrialError(
                f"{where}: {error}. Finished trials are kept: correct it, and run the same command "
                "again."
            ) from error


def load_sampler(named: str) -> Sampler:
    """Import a sampler.

    Args:
        named: as in a spec.

    Raises:
        ConfigError: there is no such code, or it is no function of these three parameters.
    """
    found = load(SAMPLERS, named)
    where = f"sampler {named!r} ({found.origin})"
    refuse_signature(found.value, where, ("seen", "dimensions", "seed"))
    sampler: Sampler = found.value
    return sampler


def point_of(found: Any, dimensions: int) -> tuple[float, ...]:
    """Return the point that a sampler suggests.

    Args:
        found: what it returned.
        dimensions: number of coordinates that a point has.

    Raises:
        ValueError: it is no point. The message says what is wrong.
    """
    try:
        # A set has no order, and texts and mappings can be read one by one, too.
        if isinstance(found, str | bytes | Mapping | Set):
            raise TypeError
        point = tuple(float(x) for x in found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"it returned {type(found).__name__}, not one number for each dimension"
        ) from error
    if len(point) != dimensions:
        raise ValueError(f"it returned {len(point)} numbers for {dimensions} dimensions")
    bad = [x for x in point if not (math.isfinite(x) and 0 <= x < 1)]
    if bad:
        raise ValueError(f"it returned {bad[0]:g}; coordinates are from 0 to below 1")
    return point
