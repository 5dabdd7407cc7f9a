"""Attach to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before Ray is imported: its telemetry is read once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep GPUs hidden as they were

import ray

from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.records import Basis
from soupray.distributed.nodes import room, wanted
from soupray.services.place import Place
from soupray.spec.sweep_spec import Resources, SweepSpec
from soupray.training.worker import make_basis

log = logging.getLogger(__name__)
session_is_here = True
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
"""Settings that workers need and Ray does not pass on. No secret is among them, as Ray writes a
job's runtime_env to its logs: on a cluster those come from the nodes (role, pod environment)."""


@contextlib.contextmanager
def attach(address: str | None, *specs: SweepSpec, workers: int = 1) -> Iterator[None]:
    """A Ray session: at `address`, else at RAY_ADDRESS (as inside a Ray job), else a new local one.

    `workers`: so many of them work together, as those of one trial do. A soup's are alone.

    Raises:
        ConfigError: Ray does not answer, the store is on one machine only, or there is no room
            for so many workers on a Ray that was started here.
    """
    global session_is_here  # as Ray's own session, of which a process has one
    address = address or os.environ.get("RAY_ADDRESS")
    _refuse_dead(address)
    carried = {
        n: os.environ[n] for n in CARRIED if n in os.environ and n not in variables_of_the_job()
    }
    try:
        ray.init(
            address=address or "local",
            runtime_env={"env_vars": carried} if carried else None,
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        # Ray's own text may quote the job's environment, keys included: only its kind is shown.
        raise ConfigError(
            f"Ray at {address or 'this machine'} cannot be used ({type(error).__name__}). Check "
            "the address with `ray status`, and Ray's token with `soupray doctor`."
        ) from error
    session_is_here = address in (None, "local")
    try:
        protect_token()
        for spec in specs:
            refuse_what_cannot_work(spec, workers, session_is_here)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def when_needed(
    address: str | None, *specs: SweepSpec, workers: int = 1
) -> Iterator[Callable[[], None]]:
    """`attach`, but only once the function that this yields is called: work may be done already."""
    with contextlib.ExitStack() as stack:
        attached = False

        def needed() -> None:
            nonlocal attached
            if not attached:
                stack.enter_context(attach(address, *specs, workers=workers))
                attached = True

        yield needed


def _refuse_dead(address: str | None) -> None:
    """Raises ConfigError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
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
    """Variables that this Ray job brought along: its workers have them, and Ray takes no others."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return set((config.get("runtime_env") or {}).get("env_vars") or {})


def protect_token(token: Path = TOKEN) -> None:
    """Ray writes its token readable by everyone on the machine; make it the owner's only."""
    if token.exists():
        token.chmod(0o600)


def refuse_what_cannot_work(spec: SweepSpec, workers: int, started_here: bool) -> None:
    """Raises ConfigError for a store that not all nodes reach, and where workers find no room."""
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


def describe() -> str:
    """The cluster in a few words."""
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return f"{nodes} node(s), {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"


def slots(resources: Resources, workers: int = 1) -> int:
    """How many trials of so many workers, or actors, at a time; at least one.

    What the spec says, on a cluster that grows; else what the cluster holds now.
    """
    if resources.at_most is not None:
        return resources.at_most
    total = ray.cluster_resources()
    fits = [total.get("CPU", 0) / resources.cpu]
    if resources.gpu:
        fits.append(total.get("GPU", 0) / resources.gpu)
    return max(1, int(min(fits)) // workers)


def at_a_time(spec: SweepSpec) -> int | None:
    """How many trials Tune is to start at a time; None: all that wait.

    A trial that waits is what the autoscaler sees: a cluster has as many workers as trials asked
    for, and none at first. On this machine, and where trials hold nothing themselves because Ray
    Train's workers do, more than there is room for would only wait.
    """
    alone = spec.training.workers == 1
    if spec.resources.at_most is None and alone and not session_is_here:
        return None
    return slots(spec.resources, spec.training.workers)


def largest(resources: Sequence[Resources]) -> Resources:
    """What is enough for each of them."""
    limits = [r.at_most for r in resources if r.at_most is not None]
    return Resources(
        cpu=max(r.cpu for r in resources),
        gpu=max(r.gpu for r in resources),
        at_most=max(limits, default=None),
    )


def make_basis_there(spec: SweepSpec, place: Place, key: str) -> Basis:
    """`make_basis` on a worker: the driver never loads weights."""
    task = ray.remote(make_basis).options(
        num_cpus=spec.resources.cpu, num_gpus=spec.resources.gpu, max_retries=2
    )
    basis: Basis = get(task.remote(spec, place, key))
    return basis


def get(reference: ray.ObjectRef) -> Any:
    """The result of a task; an error in the worker is raised here as what it was there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise EvaluationError(
            f"a worker died ({type(error).__name__}): out of memory, or its node is gone. Run "
            "again: what is stored is kept."
        ) from error
