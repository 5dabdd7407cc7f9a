"""Connect to a Ray cluster, or start Ray on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep GPUs hidden as they were

import ray
from ray._private import ray_constants

from soupray.core.errors import ConfigError, EvaluationError, RayLost
from soupray.core.imports import importing
from soupray.core.records import Basis
from soupray.distributed.nodes import room, wanted
from soupray.services.place import Place
from soupray.spec.resources import Resources
from soupray.spec.sweep_spec import SweepSpec
from soupray.training.teacher import TeacherSource

log = logging.getLogger(__name__)
session_is_here = True

LOOK_S = 2.0
"""Seconds between two looks at the nodes, or at their room."""

SAY_AFTER_S = 60.0
"""Seconds without work after which the driver says what it waits for. Workers start in 1 to 20."""

GIVE_UP_S = 12 * 3600.0
"""Seconds without work after which a job ends: longer than a night in the queue for a GPU."""

TOKEN = Path.home() / ".ray" / "auth_token"

CARRIED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)
"""Environment variables that workers need and that Ray does not send to them.

None is a secret, because Ray writes the runtime_env of a job to its logs. On a cluster, credentials
come from the nodes (role, environment of the pod).
"""


@contextlib.contextmanager
def attach(address: str | None, *specs: SweepSpec, workers: int = 1) -> Iterator[None]:
    """Connect to Ray for the duration of the context.

    Args:
        address: address of the cluster; None for RAY_ADDRESS (as in a Ray job), else Ray starts on
            this machine.
        *specs: the specs whose work will run.
        workers: number of workers that must run at the same time, as those of one trial do; 1 for
            soups.

    Raises:
        ConfigError: Ray does not answer, the store is on one machine only, or Ray was started here
            and has no room for the workers.
    """
    _connect(address)
    try:
        for spec in specs:
            refuse_what_cannot_work(spec, workers, session_is_here)
        yield
    finally:
        ray.shutdown()


def start_again() -> None:
    """End what is left of the Ray that started on this machine, and start it again.

    Raises:
        ConfigError: it does not start.
    """
    ray.shutdown()
    _connect("local")


def _connect(address: str | None) -> None:
    global session_is_here  # global, because a process has only one Ray session
    address = address or os.environ.get("RAY_ADDRESS")
    _refuse_dead(address)
    carried = {
        n: os.environ[n] for n in CARRIED if n in os.environ and n not in variables_of_the_job()
    }
    starts_here = address in (None, "local")
    if starts_here:
        make_token()
    ends = signal.getsignal(signal.SIGTERM)
    try:
        with _on_loopback() if starts_here else contextlib.nullcontext():
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": carried} if carried else None,
                include_dashboard=False if starts_here else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:  # "timed out during startup" is one of no narrower class
        # Ray's own text may quote the job's environment, keys included: only its kind is shown.
        raise ConfigError(
            f"Ray at {address or 'this machine'} cannot be used ({type(error).__name__}). Check "
            "the address with `ray status`, and Ray's token with `soupray doctor`."
        ) from error
    session_is_here = starts_here
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ends)  # Ray has put its own handler there


@contextlib.contextmanager
def when_needed(
    address: str | None, *specs: SweepSpec, workers: int = 1
) -> Iterator[Callable[[], None]]:
    """Yield a function that connects to Ray at its first call, as stored results may be enough.

    Args:
        address: address of the cluster, as in `attach`.
        *specs: the specs whose work will run.
        workers: number of workers that must run at the same time.
    """
    with contextlib.ExitStack() as stack:
        attached = False

        def needed() -> None:
            nonlocal attached
            if not attached:
                stack.enter_context(attach(address, *specs, workers=workers))
                attached = True

        yield needed


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the Ray that starts in this context listen on 127.0.0.1, and on no other address.

    Ray offers this for Windows and macOS only: it replaces a `_node_ip_address` of 127.0.0.1 by
    the address of the network, unless this constant says that there are no other machines (2.60).
    """
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # for Ray's own processes
    others, said = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(variable)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[variable] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = others
        del os.environ[variable]
        if said is not None:
            os.environ[variable] = said


def _refuse_dead(address: str | None) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT, because Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # none, auto, local: Ray finds it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"Ray at {address} does not answer: {error}. Check the address (--address, RAY_ADDRESS)"
            " with `ray status`."
        ) from error


def variables_of_the_job() -> set[str]:
    """Return the environment variables of this Ray job.

    Its workers have them already, and Ray rejects different values.
    """
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return set((config.get("runtime_env") or {}).get("env_vars") or {})


def make_token(token: Path = TOKEN) -> None:
    """Make Ray's token if there is none, readable only by its owner.

    Ray would write it in place: of two processes that start at the same time on a new machine, one
    reads an empty file or a token that the other replaces. Ray also lets all users read it.
    """
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True)
        part = token.with_name(f"{token.name}.{os.getpid()}")
        part.touch(mode=0o600)  # before the secret is in it
        part.write_text(secrets.token_hex(32))  # as Ray's own
        try:
            token.hardlink_to(part)
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without hard links
            part.replace(token)
        part.unlink(missing_ok=True)
    token.chmod(0o600)


def refuse_what_cannot_work(spec: SweepSpec, workers: int, started_here: bool) -> None:
    """Raise ConfigError if some nodes cannot reach the store or workers cannot run.

    On a cluster that was not started here, missing room is only a warning, as it may grow.

    Args:
        spec: the spec whose work will run.
        workers: number of workers that must run at the same time.
        started_here: whether Ray was started on this machine.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if spec.storage.startswith(("embedded", "file:")) and len(nodes) > 1:
        raise ConfigError(
            f"storage: {spec.storage} is on this machine, but the cluster has {len(nodes)} nodes. "
            "Write `storage: s3://bucket/prefix` in the spec, and set AWS_ENDPOINT_URL if it is "
            "not AWS."
        )
    held = [(n.get("CPU", 0), n.get("GPU", 0)) for n in nodes]
    if sum(room(spec.resources, cpu, gpu) for cpu, gpu in held) < workers:
        message = (
            f"there is no room for {wanted(spec.resources, workers)}. Nodes: "
            f"{', '.join(f'{cpu:g} CPU {gpu:g} GPU' for cpu, gpu in held)}."
        )
        if started_here:
            raise ConfigError(message)
        log.warning(f"{message} Waiting for the cluster to grow.")


class Vigil:
    """Looks after a wait of the driver, so that no wait is silent or without an end."""

    def __init__(self, work: str) -> None:
        """Begin to wait.

        Args:
            work: what is waited for, in words, as of `wanted`.
        """
        self._work = work
        self._looked, self._idle_since, self._said = -LOOK_S, time.monotonic(), False

    def look(self, running: int) -> None:
        """Look at Ray, at most every few seconds. Say what is waited for, if nothing runs.

        Args:
            running: number of trials or actors that run now.

        Raises:
            RayLost: the node of this machine is dead.
            ConfigError: nothing has run for too long.
        """
        now = time.monotonic()
        if running:
            self._idle_since, self._said = now, False
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        nodes = ray.nodes()
        here = ray.get_runtime_context().get_node_id()
        if any(node["NodeID"] == here and not node["Alive"] for node in nodes):
            raise RayLost(_why_dead())
        idle = now - self._idle_since
        if idle > SAY_AFTER_S and not self._said:
            alive = sum(node["Alive"] for node in nodes)
            log.warning(
                f"nothing has run for {idle:.0f} s: waiting for room for {self._work}. {alive} "
                "node(s) are alive; `ray status` shows what the cluster has and what it starts."
            )
            self._said = True
        if idle > GIVE_UP_S:
            raise ConfigError(
                f"nothing has run for {idle / 3600:.0f} hours: no room for {self._work}. Add "
                "nodes, or lower `resources`, and run the same command again: what is stored is "
                "kept."
            )


def _why_dead() -> str:
    first = "" if session_is_here else "start it again (`ray start --address=...`), then "
    return (
        "the node of Ray on this machine ended (its raylet was killed, or the memory was full), "
        f"and it does not come back: {first}run the same command again. What is stored is kept."
    )


def describe() -> str:
    """Return the size of the cluster in words."""
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return f"{nodes} node(s), {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"


def slots(resources: Resources, workers: int = 1) -> int:
    """Return how many trials or actors may run at the same time; at least 1.

    The limit is `at_most` of the spec, if given; otherwise the present size of the cluster.

    Args:
        resources: what one worker reserves.
        workers: workers of one trial; 1 for an actor.
    """
    if resources.at_most is not None:
        return resources.at_most
    total = ray.cluster_resources()
    fits = [total.get("CPU", 0) / resources.cpu]
    if resources.gpu:
        fits.append(total.get("GPU", 0) / resources.gpu)
    return max(1, int(min(fits)) // workers)


def at_a_time(spec: SweepSpec) -> int | None:
    """Return how many trials Tune starts at the same time; None for all of them.

    Waiting trials tell the autoscaler to add nodes, so on a cluster all trials are started. There
    is a limit on this machine, and if Ray Train's workers reserve the resources: more trials than
    fit would only wait.
    """
    alone = spec.training.workers == 1
    if spec.resources.at_most is None and alone and not session_is_here:
        return None
    return slots(spec.resources, spec.training.workers)


def largest(resources: Sequence[Resources]) -> Resources:
    """Return resources that are enough for each of the given ones."""
    limits = [r.at_most for r in resources if r.at_most is not None]
    return Resources(
        cpu=max(r.cpu for r in resources),
        gpu=max(r.gpu for r in resources),
        at_most=max(limits, default=None),
    )


def _make_basis(spec: SweepSpec, place: Place, key: str, teacher: TeacherSource | None) -> Basis:
    with importing():
        from soupray.training.worker import make_basis

    return make_basis(spec, place, key, teacher)


def make_basis_there(
    spec: SweepSpec, place: Place, key: str, teacher: TeacherSource | None = None
) -> Basis:
    """Run `make_basis` on a worker, because the driver never loads weights, nor torch.

    Args:
        spec: the sweep.
        place: where the sweep stores its data.
        key: key of the basis.
        teacher: a model that the trials learn from.

    Raises:
        EvaluationError: the worker died.
        RayLost: the node of this machine died.
    """
    basis: Basis = _on_a_worker(spec, _make_basis, spec, place, key, teacher)
    return basis


def _check_data(spec: SweepSpec, place: Place, basis: Basis) -> None:
    with importing():
        from soupray.training.worker import check_data

    check_data(spec, place, basis)


def check_data_there(spec: SweepSpec, place: Place, basis: Basis) -> None:
    """Run `check_data` on a worker, which has the data.

    Args:
        spec: the sweep.
        place: where the sweep stores its data.
        basis: of the sweep.

    Raises:
        ConfigError: the data changed, or cannot be read.
        EvaluationError: the worker died.
        RayLost: the node of this machine died.
    """
    _on_a_worker(spec, _check_data, spec, place, basis)


def _on_a_worker(spec: SweepSpec, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns on a worker with the resources of a trial."""
    task = ray.remote(function).options(
        num_cpus=spec.resources.cpu, num_gpus=spec.resources.gpu, max_retries=2
    )
    reference, vigil = task.remote(*arguments), Vigil(wanted(spec.resources, 1))
    while not ray.wait([reference], timeout=LOOK_S)[0]:
        vigil.look(running=1)  # Ray does not say whether a task waits or runs
    return get(reference)


def get(reference: ray.ObjectRef) -> Any:
    """Return the result of a task, or raise the error that the task raised.

    Args:
        reference: Ray's reference to the result.

    Raises:
        EvaluationError: the worker died.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise EvaluationError(
            f"a worker died ({type(error).__name__}): out of memory, or its node is gone. Run "
            "again: what is stored is kept."
        ) from error
