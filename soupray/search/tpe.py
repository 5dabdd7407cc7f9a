"""Adaptive search with Optuna's TPE sampler, which can be repeated from stored records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna

from soupray.core.records import Basis
from soupray.core.trials import Manifest, Trial
from soupray.search.history import (
    Suggested,
    create_suggestion,
    find_stopped,
    find_suggested,
    score_of,
)
from soupray.search.plan import as_trials, dimensions_of, planned_at, random_points
from soupray.spec.sweep_spec import SweepSpec
from soupray.store.manifests import find_manifest, find_manifests
from soupray.store.objects import Store

RANDOM = 10
"""Number of random points before TPE starts to model the scores; Optuna's default."""

LAST = math.nextafter(1, 0)
"""The largest number below 1: coordinates are in [0, 1)."""


class TpeSearch:
    """Suggests trials one after another: first stored, unfinished suggestions, then new points.

    Each suggestion is stored before its trial runs. On a restart, the sampler gets the results of
    finished trials in the order of their points.
    """

    def __init__(self, store: Store, spec: SweepSpec, basis: Basis) -> None:
        """Give the sampler the results that are in the store. Raises StoreError."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._store, self._spec, self._basis = store, spec, basis
        sampler = optuna.samplers.TPESampler(seed=spec.seed, n_startup_trials=RANDOM)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        between = optuna.distributions.FloatDistribution(0, LAST)
        self._space: dict[str, Any] = dict.fromkeys(dimensions_of(spec), between)
        self._random = random_points(spec.seed, min(RANDOM, spec.search.trials), len(self._space))
        self._open: dict[str, Any] = {}
        suggested, stopped = find_suggested(store, spec, basis), find_stopped(store, spec, basis)
        trials = [self._trial(one) for one in suggested]
        self._count = len(suggested)
        self._waiting: list[Suggested] = []
        manifests = find_manifests(store, trials)
        for one, trial, manifest in zip(suggested, trials, manifests, strict=True):
            if trial.key in stopped or manifest is not None:
                self._tell(self._at(one.point), self._score(manifest))
            else:
                self._waiting.append(one)

    @property
    def left(self) -> int:
        """Number of trials that still have to run."""
        return self._spec.search.trials - self._count + len(self._waiting)

    def next(self) -> Trial | None:
        """Return the next trial to run, or None if all were suggested. Raises StoreError."""
        if self._waiting:
            suggested = self._waiting.pop(0)
            opened = self._at(suggested.point)
        elif self._count < self._spec.search.trials:
            opened = self._new()
            point = tuple(float(opened.params[name]) for name in self._space)
            planned = planned_at(self._spec, self._count, point)
            suggested = Suggested(point=point, planned=planned)
            suggested = create_suggestion(self._store, self._spec, self._basis, suggested)
            self._count += 1
        else:
            return None
        trial = self._trial(suggested)
        self._open[trial.key] = opened
        return trial

    def over(self, key: str) -> None:
        """Report the score of a trial that is over to the sampler.

        Args:
            key: key of a trial that `next` returned and that finished, diverged, stopped or failed.
        """
        self._tell(self._open.pop(key), self._score(find_manifest(self._store, key)))

    def _new(self) -> Any:
        if self._count < len(self._random):
            return self._at(self._random[self._count])
        return self.study.ask(self._space)

    def _at(self, point: Sequence[float]) -> Any:
        """Return a new Optuna trial at the given point."""
        self.study.enqueue_trial(dict(zip(self._space, point, strict=True)))
        return self.study.ask(self._space)

    def _tell(self, opened: Any, score: float | None) -> None:
        if score is None:  # stopped or failed: there is no score to compare
            self.study.tell(opened, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(opened, score)

    def _trial(self, suggested: Suggested) -> Trial:
        return as_trials(self._spec, self._basis, [suggested.planned])[0]

    def _score(self, found: Manifest | None) -> float | None:
        return score_of(found, self._spec.metric)
