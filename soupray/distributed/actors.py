"""Workers on Ray: the same counts as in one process, on as many actors as there is room."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from soupray.candidates import WeightCandidate
from soupray.distributed.cluster import get, slots
from soupray.evaluation.schedule import Answer, FirstReaching, Unit
from soupray.ports import Reached, Request
from soupray.records import CheckpointRef, Split
from soupray.spec import SweepSpec
from soupray.wiring import Place, world


class _Worker:
    """Local workers in an actor, which store each result at once. Weights never travel."""

    def __init__(self, spec: SweepSpec, place: Place) -> None:
        self._here = world(spec, place).workers()

    def evaluate(self, candidate: WeightCandidate, splits: Sequence[Split]) -> None:
        self._here.evaluate([candidate], splits)

    def run(
        self, unit: Unit, candidate: WeightCandidate, split: Split, tau: float | None
    ) -> Answer:
        return self._here.run(unit, candidate, split, tau)

    def measure(self, request: Request[Any], split: Split) -> Any:
        return self._here.measure([request], split)[0]

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        return self._here.save(candidate)


class RayWorkers:
    """See `evaluator.Workers`. An actor that dies is started again, and its work repeated."""

    def __init__(
        self, spec: SweepSpec, place: Place, attach: Callable[[], None] = lambda: None
    ) -> None:
        """`attach` is called before the first actor is started."""
        self._spec, self._place, self._attach = spec, place, attach

    @functools.cached_property
    def _actors(self) -> list[Any]:
        """As many as there is room for, started when the first work comes."""
        self._attach()
        remote = ray.remote(_Worker).options(
            num_cpus=self._spec.resources.cpu,
            num_gpus=self._spec.resources.gpu,
            max_restarts=3,
            max_task_retries=3,
        )
        count = slots(self._spec.resources)
        return [remote.remote(self._spec, self._place) for _ in range(count)]

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
        idle = deque(self._actors)
        running: dict[ray.ObjectRef, tuple[Unit, Any]] = {}
        try:
            while (reached := schedule.settled()) is None:
                while idle and (unit := schedule.next()) is not None:
                    actor = idle.popleft()
                    reference = actor.run.remote(unit, candidates[unit.candidate], split, tau)
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
        waiting, idle = deque(enumerate(calls)), deque(self._actors)
        running: dict[ray.ObjectRef, tuple[int, Any]] = {}
        results: list[Any] = [None] * len(calls)
        try:
            while waiting or running:
                while waiting and idle:
                    (index, call), actor = waiting.popleft(), idle.popleft()
                    running[getattr(actor, method).remote(*call)] = (index, actor)
                (ready,), _ = ray.wait(list(running), num_returns=1)
                index, actor = running.pop(ready)
                results[index] = get(ready)
                idle.append(actor)
                done()
        finally:
            for reference in running:
                ray.cancel(reference)
        return results
