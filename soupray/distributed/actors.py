"""Evaluate models with actors on Ray; the results equal those of a single process."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from soupray.core.candidates import WeightCandidate
from soupray.core.errors import EvaluationError
from soupray.core.imports import importing
from soupray.core.ports import Reached
from soupray.core.records import CheckpointRef, Split
from soupray.core.requests import Request
from soupray.distributed.cluster import LOOK_S, Vigil, get, largest, slots
from soupray.distributed.nodes import wanted
from soupray.evaluation.schedule import Answer, FirstReaching
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec

with importing():  # of torch, in each actor
    from soupray.evaluation.local import LocalWorkers, ahead
    from soupray.training.worker import worker_context

TRIES = 3
"""Largest number of attempts for work whose actor dies, and for starting actors.

Ray restarts a dead actor by itself, but not if the actor's node is lost.
"""

MORE = 1000
"""Additional actors that a decision requests: it has many batches, and `slots` sets the limit."""


class _Worker:
    """An actor with local workers, which store each result at once; weights are never sent.

    It keeps the workers of one spec at a time: those of the most recent call.
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
        """Return when the actor runs."""

    def run(self, spec: SweepSpec, place: Place, *work: Any) -> Answer:
        return self._of(spec, place).run(*work)

    def measure(self, spec: SweepSpec, place: Place, request: Request[Any], split: Split) -> Any:
        return self._of(spec, place).measure([request], split)[0]

    def save(self, spec: SweepSpec, place: Place, candidate: WeightCandidate) -> CheckpointRef:
        return self._of(spec, place).save(candidate)


def _workers(spec: SweepSpec, place: Place) -> LocalWorkers:
    return worker_context(spec, place).workers()


class Actors:
    """The actors of a session: as many as fit on the cluster, shared by several specs.

    They start with the first work. On a cluster that grows, actors that wait for a node tell the
    autoscaler to add nodes. `up` are the actors that run. `coming` are the others, each with the
    number of losses before its start: actors that start together and are lost together count as one
    loss.
    """

    def __init__(
        self,
        specs: Sequence[SweepSpec],
        attach: Callable[[], None],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the actors.

        Args:
            specs: the specs that share the actors; the largest resources are used.
            attach: connects to Ray; called before the first actor starts.
            look: called while this process waits for the actors; it may raise to end the work.
        """
        self._look = look
        self._resources, self._attach = largest([s.resources for s in specs]), attach
        self._room, self._looked = 1, -LOOK_S
        self._vigil = Vigil(wanted(self._resources, 1))
        self._losses = self._losses_borne = 0
        self.up: list[Any] = []
        self.coming: dict[ray.ObjectRef, tuple[Any, int]] = {}

    def want(self, count: int) -> None:
        """Start actors until there are `count` of them, or as many as the cluster may have."""
        self._attach()
        missing = min(count, self._limit()) - len(self.up) - len(self.coming)
        if missing <= 0:
            return
        remote = ray.remote(_Worker).options(
            num_cpus=self._resources.cpu,
            num_gpus=self._resources.gpu,
            max_restarts=3,
            max_task_retries=3,
            # With ordered execution, Ray waits half a minute for a call that was cancelled early.
            allow_out_of_order_execution=True,
        )
        self._await([remote.remote() for _ in range(missing)])

    def _await(self, actors: Collection[Any]) -> None:
        self.coming |= {actor.ready.remote(): (actor, self._losses) for actor in actors}

    def _limit(self) -> int:
        if time.monotonic() - self._looked > LOOK_S:
            self._room, self._looked = slots(self._resources), time.monotonic()
        return self._room

    def wait(self, running: Collection[ray.ObjectRef]) -> ray.ObjectRef:
        """Wait until a call has ended or a new actor answers, and return the reference.

        Args:
            running: the calls that run.

        Raises:
            RayLost: the node of this machine died.
            ConfigError: there was no room for an actor for too long.
        """
        while True:
            self._look()
            ready, _ = ray.wait([*running, *self.coming], num_returns=1, timeout=LOOK_S)
            if ready:
                return ready[0]
            self._vigil.look(len(running))

    def arrived(self, reference: ray.ObjectRef) -> list[Any]:
        """Handle the first answer of an actor.

        Args:
            reference: the key of the actor in `coming`.

        Returns:
            A list with the actor, or an empty list if the actor or its node was lost.

        Raises:
            EvaluationError: too many actors were lost before any of them ran.
        """
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
        """Remove and kill an actor that died or that Ray cannot reach; another may then start."""
        self.up.remove(actor)
        ray.kill(actor)

    def doubt(self, idle: Collection[Any]) -> None:
        """Treat these actors as not running until they answer, because they may be lost too."""
        for actor in idle:
            self.up.remove(actor)
        self._await(idle)


class _Work(NamedTuple):
    """A call of an actor's method; it is repeated if the actor dies."""

    what: Any
    method: str
    call: tuple[Any, ...]
    tries: int = 1


def _died(error: EvaluationError) -> bool:
    """Return whether the actor or a node was lost; otherwise the work itself raised the error."""
    gone = ray.exceptions.RayActorError | ray.exceptions.ObjectLostError
    return isinstance(error.__cause__, gone)


class _ActorPool:
    """Gives the calls of one task to idle actors and collects the results."""

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
        """Return the number of calls that were started and have not ended."""
        return len(self._running) + len(self._again)

    @property
    def free(self) -> bool:
        """Whether an actor is idle."""
        return bool(self._idle)

    def start(self, what: Any, method: str, *call: Any) -> None:
        """Call `method` on an idle actor; `ended` returns `what` with the result."""
        self._give(_Work(what, method, call))

    def _give(self, work: _Work) -> None:
        actor = self._idle.popleft()
        self._running[getattr(actor, work.method).remote(*work.call)] = (actor, work)

    def ended(self) -> Iterator[tuple[Any, Any]]:
        """Wait for one event, and yield (what, result) if a call has ended.

        Yield nothing if an actor has started or was lost.
        """
        while self._again and self._idle:
            self._give(self._again.popleft())
        ready = self.actors.wait(self._running)
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
            # If the node is lost, its other actors would each use up one attempt.
            self.actors.doubt(self._idle)
            self._idle.clear()
            self._again.append(work._replace(tries=work.tries + 1))
            return
        self._idle.append(actor)
        yield work.what, result


class RayWorkers:
    """Workers for an evaluator (`evaluator.Workers`) that run in Ray actors.

    If an actor dies, another one is started and its work is repeated.
    """

    def __init__(self, spec: SweepSpec, place: Place, actors: Actors) -> None:
        self._there, self.actors = (spec, place), actors

    def evaluate(
        self,
        candidates: Sequence[WeightCandidate],
        splits: Sequence[Split],
        done: Callable[[int], None],
    ) -> None:
        """Evaluate candidates on splits; the actors store the results. Each takes one at a time.

        Args:
            candidates: the models.
            splits: the splits to evaluate.
            done: called with the number of new results.
        """
        calls = [(c, splits) for c in candidates]
        self.spread("evaluate", calls, lambda: done(len(splits)))

    def decide(
        self,
        schedule: FirstReaching,
        candidates: Sequence[WeightCandidate],
        split: Split,
        tau: float | None,
    ) -> Reached:
        """Find the first candidate that reaches a bound, and cancel work that is not needed.

        Args:
            schedule: chooses the next unit of work and makes the decision.
            candidates: the models, in order.
            split: the split to evaluate.
            tau: a bfloat16 result with a smaller margin is unsure.
        """
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
        """Return the answers to `requests`, in order."""
        return self.spread("measure", [(r, split) for r in requests])

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """Store the weights of a candidate on a worker and return a reference to them."""
        ref: CheckpointRef = self.spread("save", [(candidate,)])[0]
        return ref

    def spread(
        self,
        method: str,
        calls: Sequence[tuple[Any, ...]],
        done: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Call a method of the actors once for each element of `calls`, one at a time per actor.

        Args:
            method: name of the method.
            calls: its arguments after spec and place.
            done: called after each result.

        Returns:
            The results, in the order of `calls`.
        """
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
