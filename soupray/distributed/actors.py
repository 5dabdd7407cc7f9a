"""The evaluator on Ray: the same counts as the local one, on as many actors as there is room."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from soupray.distributed.cluster import get, slots
from soupray.evaluation.local import reaches
from soupray.evaluation.remembered import Remembered
from soupray.ports import Accept, Reached
from soupray.records import Candidate, CheckpointRef, Predictions, Scores, Split
from soupray.spec import SweepSpec
from soupray.wiring import Place, world


class _Worker:
    """A LocalEvaluator in an actor, which stores each score at once. Weights never travel."""

    def __init__(self, spec: SweepSpec, place: Place) -> None:
        here = world(spec, place)
        self._evaluator = Remembered(here.evaluator(), here.checkpoints.store, spec.setting)

    def score(self, candidate: Candidate, split: Split) -> Scores:
        return self._evaluator.scores([candidate], split)[0]

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        return self._evaluator.predictions(candidate, split)

    def save(self, candidate: Candidate) -> CheckpointRef:
        return self._evaluator.save(candidate)


class RayEvaluator:
    """A `ports.Evaluator`. An actor that dies is started again, and its candidate repeated."""

    def __init__(
        self, spec: SweepSpec, place: Place, on_result: Callable[[], None] = lambda: None
    ) -> None:
        self._spec, self._place = spec, place
        self.on_result = on_result

    @functools.cached_property
    def _workers(self) -> list[Any]:
        """As many as there is room for, started when the first candidate comes."""
        remote = ray.remote(_Worker).options(
            num_cpus=self._spec.resources.cpu,
            num_gpus=self._spec.resources.gpu,
            max_restarts=3,
            max_task_retries=3,
        )
        count = slots(self._spec.resources)
        return [remote.remote(self._spec, self._place) for _ in range(count)]

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """See `ports.Evaluator`."""
        return list(self._in_order(candidates, split))

    def first_reaching(
        self, candidates: Sequence[Candidate], split: Split, bound: int, accept: Accept
    ) -> Reached:
        """See `ports.Evaluator`. Later ones are scored ahead; those after a hit are dropped."""
        results: list[Scores] = []
        for scores in self._in_order(candidates, split):
            results.append(scores)
            if reaches(scores, bound, accept):
                return Reached(results=tuple(results), hit=True)
        return Reached(results=tuple(results), hit=False)

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """See `ports.Evaluator`."""
        predictions: Predictions = get(self._workers[0].predictions.remote(candidate, split))
        return predictions

    def save(self, candidate: Candidate) -> CheckpointRef:
        """See `ports.Evaluator`."""
        ref: CheckpointRef = get(self._workers[0].save.remote(candidate))
        return ref

    def _in_order(self, candidates: Sequence[Candidate], split: Split) -> Iterator[Scores]:
        """Scores in the candidates' order, one candidate on each worker at a time."""
        waiting = deque(candidates)
        idle = deque(self._workers)
        running: deque[tuple[ray.ObjectRef, ray.actor.ActorHandle]] = deque()
        try:
            while waiting or running:
                while waiting and idle:
                    worker = idle.popleft()
                    running.append((worker.score.remote(waiting.popleft(), split), worker))
                reference, worker = running.popleft()
                scores: Scores = get(reference)
                idle.append(worker)
                self.on_result()
                yield scores
        finally:
            for reference, _ in running:
                ray.cancel(reference)
