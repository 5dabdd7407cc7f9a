"""Workers on Ray: the same counts as in one process, on as many actors as there is room."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from soupray.core.candidates import WeightCandidate
from soupray.core.errors import EvaluationError
from soupray.core.ports import Reached
from soupray.core.records import CheckpointRef, Split
from soupray.core.requests import Request
from soupray.distributed.cluster import get, largest, slots
from soupray.evaluation.local import LocalWorkers, ahead
from soupray.evaluation.schedule import Answer, FirstReaching
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec
from soupray.training.worker import worker_context

LOOK_S = 2.0
"""Between two looks at how large the cluster is by now."""

TRIES = 3
"""Of a piece of work whose actor goes, and of starting actors. Ray starts an actor again by itself,
but gives up at once when the actor's node is lost."""

MORE = 1000
"""Actors that a decision can use: its batches are many, and slots say how many there may be."""


class _Worker:
    """Local workers in an actor, which store each result at once. Weights never travel.

    It serves one spec at a time, and whichever the next call is for.
    """

    def __init__(self) -> None:
        self._of = functools.lru_cache(maxsize=1)(
            lambda spec, place: worker_context(spec, place).workers()
        )

    def evaluate(
        self, spec: SweepSpec, place: Place, candidate: WeightCandidate, splits: Sequence[Split]
    ) -> None:
        self._of(spec, place).evaluate([candidate], splits)

    def ready(self) -> None:
        """Answers once the actor is up."""

    def run(self, spec: SweepSpec, place: Place, *work: Any) -> Answer:
        return self._of(spec, place).run(*work)

    def measure(self, spec: SweepSpec, place: Place, request: Request[Any], split: Split) -> Any:
        return self._of(spec, place).measure([request], split)[0]

    def save(self, spec: SweepSpec, place: Place, candidate: WeightCandidate) -> CheckpointRef:
        return self._of(spec, place).save(candidate)


def _workers(spec: SweepSpec, place: Place) -> LocalWorkers:
    return worker_context(spec, place).workers()


class Actors:
    """As many as there is room for, started when the first work comes. Several specs share them.

    On a cluster that grows they come one after another: those that have no node yet are what the
    autoscaler sees. `up` are those that work, `coming` the others, each with the number of
    losses before it was asked for: what comes together and is lost together is one loss.
    """

    def __init__(self, specs: Sequence[SweepSpec], attach: Callable[[], None]) -> None:
        """`attach` is called before the first actor is started."""
        self._resources, self._attach = largest([s.resources for s in specs]), attach
        self._room, self._looked = 1, -LOOK_S
        self._losses = self._losses_borne = 0
        self.up: list[Any] = []
        self.coming: dict[ray.ObjectRef, tuple[Any, int]] = {}

    def want(self, count: int) -> None:
        """Start actors until there are `count`, or as many as there may be."""
        self._attach()
        missing = min(count, self._limit()) - len(self.up) - len(self.coming)
        if missing <= 0:
            return
        remote = ray.remote(_Worker).options(
            num_cpus=self._resources.cpu,
            num_gpus=self._resources.gpu,
            max_restarts=3,
            max_task_retries=3,
            # In order, Ray waits half a minute for a call that was cancelled on its way.
            allow_out_of_order_execution=True,
        )
        self._await([remote.remote() for _ in range(missing)])

    def _await(self, actors: Collection[Any]) -> None:
        self.coming |= {actor.ready.remote(): (actor, self._losses) for actor in actors}

    def _limit(self) -> int:
        if time.monotonic() - self._looked > LOOK_S:
            self._room, self._looked = slots(self._resources), time.monotonic()
        return self._room

    def arrived(self, reference: ray.ObjectRef) -> list[Any]:
        """The actor that answered: it is up. None, if its node went before that."""
        actor, losses = self.coming.pop(reference)
        try:
            get(reference)
        except EvaluationError as error:
            self._losses += losses == self._losses
            if not _died(error) or self._losses - self._losses_borne > TRIES:
                raise
            return []
        self._losses_borne = self._losses
        self.up.append(actor)
        return [actor]

    def dismiss(self, actor: Any) -> None:
        """It is gone, or Ray has lost sight of it: another one takes its place."""
        self.up.remove(actor)
        ray.kill(actor)

    def doubt(self, idle: Collection[Any]) -> None:
        """These may be gone as well: they count as coming until they answer."""
        for actor in idle:
            self.up.remove(actor)
        self._await(idle)


class _Work(NamedTuple):
    """A call of an actor's method, which is made again if the actor goes."""

    what: Any
    method: str
    call: tuple[Any, ...]
    tries: int = 1


def _died(error: EvaluationError) -> bool:
    """Whether it was the actor, or the node that held its answer; not the work."""
    gone = ray.exceptions.RayActorError | ray.exceptions.ObjectLostError
    return isinstance(error.__cause__, gone)


class _ActorPool:
    """The actors at one piece of work: who is idle, who does what."""

    def __init__(self, actors: Actors) -> None:
        self.actors, self._idle = actors, deque(actors.up)
        self._running: dict[ray.ObjectRef, tuple[Any, _Work]] = {}
        self._again: deque[_Work] = deque()

    def __enter__(self) -> _ActorPool:
        return self

    def __exit__(self, *error: object) -> None:
        for reference in self._running:
            ray.cancel(reference)

    def __len__(self) -> int:
        """How many pieces of it were started and are not over."""
        return len(self._running) + len(self._again)

    @property
    def free(self) -> bool:
        """Whether somebody is idle."""
        return bool(self._idle)

    def start(self, what: Any, method: str, *call: Any) -> None:
        """Give `method` to somebody idle; `what` names it in `ended`."""
        self._give(_Work(what, method, call))

    def _give(self, work: _Work) -> None:
        actor = self._idle.popleft()
        self._running[getattr(actor, work.method).remote(*work.call)] = (actor, work)

    def ended(self) -> Iterator[tuple[Any, Any]]:
        """(what, result) of a call that is over; nothing if an actor came up, or is gone."""
        while self._again and self._idle:
            self._give(self._again.popleft())
        (ready,), _ = ray.wait([*self._running, *self.actors.coming], num_returns=1)
        if ready in self.actors.coming:
            self._idle += self.actors.arrived(ready)
            return
        actor, work = self._running.pop(ready)
        try:
            result = get(ready)
        except EvaluationError as error:
            if not _died(error) or work.tries == TRIES:
                raise
            self.actors.dismiss(actor)
            # If it was a node that went, the others there would cost the work a try each.
            self.actors.doubt(self._idle)
            self._idle.clear()
            self._again.append(work._replace(tries=work.tries + 1))
            return
        self._idle.append(actor)
        yield work.what, result


class RayWorkers:
    """See `evaluator.Workers`. An actor that dies is started again, and its work repeated."""

    def __init__(self, spec: SweepSpec, place: Place, actors: Actors) -> None:
        self._there, self.actors = (spec, place), actors

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None],
    ) -> None:
        """See `evaluator.Workers`. One candidate on each actor at a time."""
        calls = [(c, splits) for c in candidates]
        self.spread("evaluate", calls, lambda: done(len(splits)))

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """See `evaluator.Workers`. Work that is no longer needed is cancelled."""
        with _ActorPool(self.actors) as pool:
            while (reached := schedule.answer()) is None:
                while pool.free and (unit := schedule.next()) is not None:
                    coming = ahead(candidates, unit.candidate)
                    call = (unit, candidates[unit.candidate], split, tau, coming)
                    pool.start(unit, "run", *self._there, *call)
                if not pool.free:
                    self.actors.want(len(pool) + MORE)
                for unit, answer in pool.ended():
                    schedule.take(unit, answer)
        return reached

    def measure(self, requests: Sequence[Request[Any]], split: Split) -> list[Any]:
        """See `evaluator.Workers`."""
        return self.spread("measure", [(r, split) for r in requests])

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """See `evaluator.Workers`."""
        ref: CheckpointRef = self.spread("save", [(candidate,)])[0]
        return ref

    def spread(
        self,
        method: str,
        calls: Sequence[tuple[Any, ...]],
        done: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """The results of `calls`, in order; each actor has one at a time."""
        waiting = deque(enumerate(calls))
        results: list[Any] = [None] * len(calls)
        with _ActorPool(self.actors) as pool:
            while waiting or len(pool):
                while waiting and pool.free:
                    index, call = waiting.popleft()
                    pool.start(index, method, *self._there, *call)
                self.actors.want(len(pool) + len(waiting))
                for index, result in pool.ended():
                    results[index] = result
                    done()
        return results
