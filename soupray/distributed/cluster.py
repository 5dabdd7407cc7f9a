"""Attach to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before Ray is imported: its telemetry is read once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep GPUs hidden as they were

import ray

from soupray.errors import ConfigError
from soupray.records import Basis
from soupray.spec import Resources, SweepSpec
from soupray.wiring import Place, make_basis

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
"""Settings that workers need and Ray does not pass on. No secret is among them: on a cluster
those come from the nodes (instance role, pod environment) or from the job's own environment."""


@contextlib.contextmanager
def attach(address: str | None, spec: SweepSpec) -> Iterator[None]:
    """A Ray session: at `address`, else at RAY_ADDRESS (as inside a Ray job), else a new local one.

    Raises:
        ConfigError: the address does not answer, or `storage: embedded` on several nodes.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
    try:
        ray.init(
            address=address or "local",
            runtime_env={"env_vars": carried} if carried else None,
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"Ray at {address or 'this machine'} does not answer: {str(error).splitlines()[0]} "
            "Check `ray status`; `soupray doctor` explains Ray's token."
        ) from error
    try:
        protect_token()
        _refuse_embedded_on_many_nodes(spec)
        yield
    finally:
        ray.shutdown()


def protect_token(token: Path = TOKEN) -> None:
    """Ray writes its token readable by everyone on the machine; make it the owner's only."""
    if token.exists():
        token.chmod(0o600)


def _refuse_embedded_on_many_nodes(spec: SweepSpec) -> None:
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if spec.storage == "embedded" and nodes > 1:
        raise ConfigError(
            f"storage: embedded is a server on this machine, but the cluster has {nodes} nodes. "
            "Write `storage: s3://bucket/prefix` in the spec, and set AWS_ENDPOINT_URL if it is "
            "not AWS."
        )


def slots(resources: Resources) -> int:
    """How many trials, or actors, of this size the cluster holds now; at least one."""
    total = ray.cluster_resources()
    fits = [total.get("CPU", 0) / resources.cpu]
    if resources.gpu:
        fits.append(total.get("GPU", 0) / resources.gpu)
    return max(1, int(min(fits)))


def make_basis_there(spec: SweepSpec, place: Place) -> Basis:
    """`make_basis` on a worker: the driver never loads weights."""
    task = ray.remote(make_basis).options(
        num_cpus=spec.resources.cpu, num_gpus=spec.resources.gpu, max_retries=2
    )
    basis: Basis = get(task.remote(spec, place))
    return basis


def get(reference: ray.ObjectRef) -> Any:
    """The result of a task; an error in the worker is raised here as what it was there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
