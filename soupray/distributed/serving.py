"""A model behind HTTP, on Ray Serve: requests of many clients share forward passes.

Each replica has a model. It reads a request in a thread while a forward pass of earlier requests
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import ray
from ray import serve
from ray.serve._private import replica as ray_replica
from ray.serve.schema import ApplicationStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from soupray.core.errors import ConfigError, EvaluationError, RayLost, Refused, one_line
from soupray.distributed.cluster import LOOK_S, Vigil, attach

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
"""Where programs of this machine, and no others, reach the server."""

APP = "soupray"
"""Name of the application in Ray Serve."""

PAUSE = 0.1
"""The part of a forward pass that a sample waits for others, if there are too few for a batch."""

ONGOING = 512
"""Requests at a replica: twice the default batch, so that one batch is read while another runs."""

QUEUED = 1024
"""Requests that wait for a replica; above it the answer is 503, and to try again in a second."""

TIMEOUT_S = 300.0
"""Seconds after which a request ends with 408: a client that stops sending keeps no place."""

HEALTH_S = 2.0
"""Seconds between two checks of a replica: after at most so many, a dead one is replaced."""


class Served(Protocol):
    """What a replica serves. `run` is called from one thread, all others from any.

    Attributes:
        batch_size: the most samples that `run` is given.
        most_bytes: the most bytes of a request.
        pages: JSON that is answered to GET, by its path.
    """

    batch_size: int
    most_bytes: int
    pages: Mapping[str, bytes]

    def read(self, content_type: str, body: bytes) -> Sequence[Any]:
        """Return the samples of a request. Raises Refused if they cannot be read."""

    def run(self, samples: Sequence[Any]) -> Sequence[Any]:
        """Return the results of samples of several requests, in their order."""

    def answer(self, results: Sequence[Any]) -> bytes:
        """Return the answer to a request as JSON."""


class Wanted(NamedTuple):
    """What is started: replicas, and the CPUs and GPUs that each of them reserves.

    Without `cpus`, the replicas share those of this machine.
    """

    replicas: int = 1
    gpus: float = 0
    cpus: float | None = None


class Batches:
    """Samples of all requests in batches: the next forward pass takes all that wait for it.

    Ray's own `serve.batch` closes a batch before the model is free: under load, passes of two.
    """

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]], size: int) -> None:
        """Prepare; the event loop of the requests is the only one that may call `result`.

        Args:
            run: returns the results of samples, in their order.
            size: the most samples that `run` is given.
        """
        self._run, self._size = run, size
        self._waiting = deque[tuple[Any, asyncio.Future[Any]]]()
        self._passes: asyncio.Task[None] | None = None
        self._took = 0.0
        # One thread: torch starts its own threads for each thread that calls it.
        self._model = ThreadPoolExecutor(1)

    async def result(self, sample: Any) -> Any:
        """Return the result of a sample, or raise what `run` raised for its batch."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((sample, future))
        if self._passes is None:
            self._passes = asyncio.create_task(self._until_none_waits())
        return await future

    async def _until_none_waits(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._size:
                await asyncio.sleep(PAUSE * self._took)
            some = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            await self._pass([one for one in some if not one[1].done()])  # some were cancelled
        self._passes = None

    async def _pass(self, some: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        """Run one batch, and give each future its result or the exception."""
        if not some:
            return
        started, loop = time.perf_counter(), asyncio.get_running_loop()
        samples = [sample for sample, _ in some]
        try:
            results = await loop.run_in_executor(self._model, self._run, samples)
            found = [(future, result) for (_, future), result in zip(some, results, strict=True)]
        except Exception as error:  # noqa: BLE001 - whatever it is, each request hears of it
            found = [(future, error) for _, future in some]
        for future, result in found:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._took = time.perf_counter() - started


class _Replica:
    """A process with a model. Ray Serve calls `__serve_build_asgi_app__` after the constructor."""

    def __init__(self, make: Callable[[], Served], on_loopback: bool) -> None:
        self._middleware = list[Middleware]()
        if on_loopback:
            _listen_on_loopback()
            # A web page whose name was bound to 127.0.0.1 afterwards gets no answer.
            hosts = [LOOPBACK, "localhost"]
            self._middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
        self._served = make()
        self._batches = Batches(self._served.run, self._served.batch_size)

    def __serve_build_asgi_app__(self) -> Starlette:
        pages = [Route(path, self._page, methods=["GET"]) for path in self._served.pages]
        return Starlette(
            routes=[Route("/predict", self._predict, methods=["POST"]), *pages],
            middleware=self._middleware,
            exception_handlers={
                Refused: self._refused,
                HTTPException: self._not_there,
                Exception: _failed,
            },
        )

    async def _predict(self, request: Request) -> Response:
        body = await self._body(request)
        kind = request.headers.get("content-type", "")
        samples = await asyncio.to_thread(self._served.read, kind, body)
        del body
        results = await asyncio.gather(*map(self._batches.result, samples))
        return _json(200, self._served.answer(results))

    async def _body(self, request: Request) -> bytes:
        most, size, parts = self._served.most_bytes, 0, list[bytes]()
        async for part in request.stream():
            size += len(part)
            # What is too much is received too, and dropped: who still sends hears no answer.
            if size <= most:
                parts.append(part)
        if size > most:
            raise Refused(413, f"{size} bytes; a request has at most {most}.")
        return b"".join(parts)

    async def _page(self, request: Request) -> Response:
        return _json(200, self._served.pages[request.url.path])

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _problem(error.status, str(error))

    async def _not_there(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        there = ", ".join(["POST /predict", *(f"GET {path}" for path in self._served.pages)])
        said = f"no {request.method} {one_line(request.url.path)} here. There are: {there}."
        return _problem(error.status_code, said, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _problem(500, f"{type(error).__name__}: {one_line(error)}")


def _problem(status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, json.dumps({"error": said}).encode(), headers)


def _json(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content, status, headers, media_type="application/json")


def _listen_on_loopback() -> None:
    """Let the port for calls between replicas be on 127.0.0.1 only. Ray 2.60 has no such setting.

    Ray opens the port after the constructor of the replica, for which nothing on one machine asks.
    """
    opened = ray_replica.add_port_to_grpc_server
    ray_replica.add_port_to_grpc_server = lambda server, address: opened(
        server, address.replace("[::]", LOOPBACK)
    )


def application(make: Callable[[], Served], wanted: Wanted, on_loopback: bool = False) -> Any:
    """Return an application of Ray Serve.

    Args:
        make: makes what a replica serves; called in each replica, to which it is pickled.
        wanted: number of replicas, and what each reserves.
        on_loopback: let the replicas listen on 127.0.0.1 only.
    """
    actor = {"num_cpus": 1 if wanted.cpus is None else wanted.cpus, "num_gpus": wanted.gpus}
    made = serve.deployment(
        serve.ingress()(_Replica),
        name="Model",
        num_replicas=wanted.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        backpressure_config={"retry_after_s": 1.0},
        health_check_period_s=HEALTH_S,
        graceful_shutdown_wait_loop_s=0.2,  # between two looks whether requests still run
        max_constructor_retry_count=1,
        logging_config={"enable_access_log": False},
    )
    return made.bind(make, on_loopback)


def deploy(app: Any, name: str = APP, route: str = "/") -> None:
    """Start an application of Ray Serve, and wait until it answers.

    Args:
        app: the application.
        name: of the application.
        route: beginning of the paths that it answers.

    Raises:
        EvaluationError: a replica does not start.
    """
    try:
        serve.run(app, name=name, route_prefix=route)
    except (RuntimeError, TimeoutError) as error:
        # A message with a traceback in it, whose last line is the error of the replica.
        said = [one.message for one in serve.status().applications[name].deployments.values()]
        why = "\n".join([str(error), *said]).strip().splitlines()[-1]
        raise EvaluationError(
            f"a replica does not start: {one_line(why)} Its log is in the folder of Ray's session, "
            "in logs/serve."
        ) from error


@contextlib.contextmanager
def serving(make: Callable[[], Served], wanted: Wanted, port: int) -> Iterator[Callable[[], None]]:
    """Serve on a Ray that starts on this machine, until the end of the context.

    Args:
        make: makes what a replica serves.
        wanted: number of replicas, and what each reserves.
        port: TCP port of 127.0.0.1.

    Yields:
        A function that waits until Ray ends, and says when replicas are lost and back.

    Raises:
        ConfigError: the port is taken, Ray does not start, or the replicas do not fit.
        EvaluationError: a replica does not start.
    """
    refuse_taken(port)
    with attach("local"):
        there = ray.cluster_resources()
        share = shared(wanted, int(there.get("CPU", 0)), int(there.get("GPU", 0)))
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            http = {"host": LOOPBACK, "port": port, "request_timeout_s": TIMEOUT_S}
            serve.start(http_options=http)
            deploy(application(make, wanted._replace(cpus=share), on_loopback=True))
            yield _watch
        finally:
            if not isinstance(sys.exc_info()[1], RayLost):  # else nothing is left that could end
                serve.delete(APP)


def refuse_taken(port: int) -> None:
    """Raise ConfigError if nothing can listen on this port of 127.0.0.1."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError as error:
        raise ConfigError(
            f"port {port} of {LOOPBACK} cannot be used: {error.strerror}. Choose another --port."
        ) from error


def shared(wanted: Wanted, cpus: int, gpus: int) -> float:
    """Return the CPUs of each replica, which are also its threads.

    Args:
        wanted: what is to be started.
        cpus: CPUs of this machine.
        gpus: GPUs of this machine.

    Raises:
        ConfigError: the replicas do not fit on the machine.
    """
    share = wanted.cpus or max(1, cpus // wanted.replicas)
    fits = [int(cpus / share)]
    if wanted.gpus:  # a replica is on one GPU
        fits.append(gpus * int(1 / wanted.gpus + 1e-9))
    if min(fits) < wanted.replicas:
        raise ConfigError(
            f"{wanted.replicas} replicas of {share:g} CPU and {wanted.gpus:g} GPU do not fit on "
            f"this machine, which has {cpus} CPU and {gpus} GPU. Lower --replicas, or --gpus: two "
            "replicas share a GPU with --gpus 0.5."
        )
    return share


def _watch() -> None:
    vigil, was = Vigil("replicas"), ApplicationStatus.RUNNING
    while True:
        vigil.look(running=1)
        now = serve.status().applications[APP].status
        if now != was and now == ApplicationStatus.RUNNING:
            log.warning("all replicas run again.")
        elif was == ApplicationStatus.RUNNING and now != was:
            log.warning("a replica was lost, and another one starts; its requests got an error.")
        was = now
        time.sleep(LOOK_S)
