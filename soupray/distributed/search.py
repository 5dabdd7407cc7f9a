"""Adaptive search: Optuna's TPE as a searcher of Tune's, over records that can be replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from ray.tune.search import Searcher

from soupray.asked import Asked, asked_path, find_asked, find_stopped
from soupray.core.records import Basis, Ingredient, Manifest, Trial, encode
from soupray.maths.metrics import value
from soupray.plan import as_trials, dimensions_of, planned_at, random_points
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, create_record, find_record

RANDOM = 10
"""Points of the random plan before TPE has enough to go by: Optuna's own default."""

LAST = math.nextafter(1, 0)
"""Coordinates are below 1."""


class Asker:
    """Points one after another: what was asked before and is not over, then new ones.

    Each is recorded before its trial runs. What is over is told to the sampler in the order of
    the points.
    """

    def __init__(self, store: Store, spec: SweepSpec, basis: Basis) -> None:
        """Replays what the store has. Raises StoreError."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._store, self._spec, self._basis = store, spec, basis
        sampler = optuna.samplers.TPESampler(seed=spec.seed, n_startup_trials=RANDOM)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        between = optuna.distributions.FloatDistribution(0, LAST)
        self._space: dict[str, Any] = dict.fromkeys(dimensions_of(spec), between)
        self._random = random_points(spec.seed, min(RANDOM, spec.search.trials), len(self._space))
        self._open: dict[str, Any] = {}
        asked = find_asked(store, spec, basis)
        stopped = find_stopped(store, spec, basis)
        self._count = len(asked)
        self._waiting: list[Asked] = []
        for one in asked:
            key = self._trial(one).key
            if key in stopped or self._score(key) is not None:
                self._tell(self._at(one.point), self._score(key))
            else:
                self._waiting.append(one)

    @property
    def left(self) -> int:
        """How many trials are still to run."""
        return self._spec.search.trials - self._count + len(self._waiting)

    def next(self) -> Trial | None:
        """The next trial to run; None when all were asked for. Raises StoreError."""
        if self._waiting:
            asked = self._waiting.pop(0)
            opened = self._at(asked.point)
        elif self._count < self._spec.search.trials:
            opened = self._new()
            point = tuple(float(opened.params[name]) for name in self._space)
            asked = Asked(point=point, planned=planned_at(self._spec, self._count, point))
            path = asked_path(self._spec, self._basis, self._count)
            asked = create_record(self._store, path, asked)
            self._count += 1
        else:
            return None
        trial = self._trial(asked)
        self._open[trial.key] = opened
        return trial

    def over(self, key: str) -> None:
        """The trial is over, one way or another: the sampler learns how it did."""
        self._tell(self._open.pop(key), self._score(key))

    def _new(self) -> Any:
        if self._count < len(self._random):
            return self._at(self._random[self._count])
        return self._study.ask(self._space)

    def _at(self, point: Sequence[float]) -> Any:
        """A trial of the study at a point that is given."""
        self._study.enqueue_trial(dict(zip(self._space, point, strict=True)))
        return self._study.ask(self._space)

    def _tell(self, opened: Any, score: float | None) -> None:
        if score is None:  # it was stopped, or failed: nothing that a sampler could compare
            self._study.tell(opened, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(opened, score)

    def _trial(self, asked: Asked) -> Trial:
        return as_trials(self._spec, self._basis, [asked.planned])[0]

    def _score(self, key: str) -> float | None:
        """The metric on held-out data; its worst of a trial that diverged; None if not over."""
        found: Manifest | None = find_record(self._store, layout.manifest(key), Manifest)
        if found is None:
            return None
        metric = self._spec.metric
        if isinstance(found, Ingredient):
            return value(found.held_out, metric)
        return -math.inf if metric == "nll" else 0.0


class AskedSearch(Searcher):  # type: ignore[misc]
    """An Asker as Tune sees it. Nothing of it is saved by Tune: the store has it."""

    def __init__(self, asker: Asker, shared: dict[str, str], tell: Callable[[Trial], None]) -> None:
        """`tell` is called with each trial before it runs."""
        super().__init__()
        self._asker, self._shared, self._tell = asker, shared, tell
        self._keys: dict[str, str] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Tune's space is empty: the points come from the asker."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial."""
        trial = self._asker.next()
        if trial is None:
            return str(Searcher.FINISHED)
        self._tell(trial)
        self._keys[trial_id] = trial.key
        return {**self._shared, "trial": encode(trial).decode()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The store knows how it did."""
        self._asker.over(self._keys.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher to resume from, and we never resume from that."""
        return {}
