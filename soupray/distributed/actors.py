"""Workers on Ray: the same counts as in one process, on as many actors as there is room."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from soupray.candidates import WeightCandidate
from soupray.distributed.cluster import get, largest, slots
from soupray.evaluation.schedule import Answer, FirstReaching, Unit
from soupray.ports import Reached
from soupray.records import CheckpointRef, Split
from soupray.requests import Request
from soupray.spec import SweepSpec
from soupray.wiring import Place, world


class _Worker:
    """Local workers in an actor, which store each result at once. Weights never travel.

    It serves one spec at a time, and whichever the next call is for.
    """

    def __init__(self) -> None:
        self._of = functools.lru_cache(maxsize=1)(lambda spec, place: world(spec, place).workers())

    def evaluate(
        self, spec: SweepSpec, place: Place, candidate: WeightCandidate, splits: Sequence[Split]
    ) -> None:
        self._of(spec, place).evaluate([candidate], splits)

    def run(self, spec: SweepSpec, place: Place, *work: Any) -> Answer:
        return self._of(spec, place).run(*work)

    def measure(self, spec: SweepSpec, place: Place, request: Request[Any], split: Split) -> Any:
        return self._of(spec, place).measure([request], split)[0]

    def save(self, spec: SweepSpec, place: Place, candidate: WeightCandidate) -> CheckpointRef:
        return self._of(spec, place).save(candidate)


class Actors:
    """As many as there is room for, started when the first work comes. Several specs share them."""

    def __init__(self, specs: Sequence[SweepSpec], attach: Callable[[], None]) -> None:
        """`attach` is called before the first actor is started."""
        self._resources, self._attach = largest([s.resources for s in specs]), attach

    @functools.cached_property
    def all(self) -> list[Any]:
        """The actors."""
        self._attach()
        remote = ray.remote(_Worker).options(
            num_cpus=self._resources.cpu,
            num_gpus=self._resources.gpu,
            max_restarts=3,
            max_task_retries=3,
        )
        return [remote.remote() for _ in range(slots(self._resources))]


class RayWorkers:
    """See `evaluator.Workers`. An actor that dies is started again, and its work repeated."""

    def __init__(self, spec: SweepSpec, place: Place, actors: Actors) -> None:
        self._there, self._actors = (spec, place), actors

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None],
    ) -> None:
        """See `evaluator.Workers`. One candidate on each actor at a time."""
        calls = [(c, splits) for c in candidates]
        self._spread("evaluate", calls, lambda: done(len(splits)))

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """See `evaluator.Workers`. Work that is no longer needed is cancelled."""
        idle = deque(self._actors.all)
        running: dict[ray.ObjectRef, tuple[Unit, Any]] = {}
        try:
            while (reached := schedule.settled()) is None:
                while idle and (unit := schedule.next()) is not None:
                    actor = idle.popleft()
                    reference = actor.run.remote(
                        *self._there, unit, candidates[unit.candidate], split, tau
                    )
                    running[reference] = (unit, actor)
                (ready,), _ = ray.wait(list(running), num_returns=1)
                unit, actor = running.pop(ready)
                schedule.take(unit, get(ready))
                idle.append(actor)
        finally:
            for reference in running:
                ray.cancel(reference)
        return reached

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """See `evaluator.Workers`."""
        return self._spread("measure", [(r, split) for r in requests])

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """See `evaluator.Workers`."""
        ref: CheckpointRef = self._spread("save", [(candidate,)])[0]
        return ref

    def _spread(
        self,
        method: str,
        calls: Sequence[tuple[Any, ...]],
        done: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """The results of `calls`, in order; each actor has one at a time."""
        waiting, idle = deque(enumerate(calls)), deque(self._actors.all)
        running: dict[ray.ObjectRef, tuple[int, Any]] = {}
        results: list[Any] = [None] * len(calls)
        try:
            while waiting or running:
                while waiting and idle:
                    (index, call), actor = waiting.popleft(), idle.popleft()
                    running[getattr(actor, method).remote(*self._there, *call)] = (index, actor)
                (ready,), _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(ready)
                results[index] = get(ready)
                idle.append(actor)
                done()
        finally:
            for reference in running:
                ray.cancel(reference)
        return results
