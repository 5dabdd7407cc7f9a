"""What trials and actors reserve, and how trials are computed.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from soupray.core.trials import Training
from soupray.spec.space import Count, NonNegative, Search, SpecModel

LEAST_SHARE = 0.0001
"""The smallest share of a CPU or GPU that Ray counts: its kResourceUnitScaling is 10 000."""


class Resources(SpecModel):
    """What one trial, or one actor that evaluates, reserves. Fractions are allowed."""

    cpu: Annotated[float, Field(ge=LEAST_SHARE, le=1_000_000)] = 1.0
    """Cores."""

    gpu: Annotated[NonNegative, Field(json_schema_extra={"maximum": 1})] = 0.0
    """GPUs, at most one. With 0 everything is computed on the CPU."""

    at_most: Count | None = None
    """How many trials or actors run at a time. Left out: a sweep shows all its trials to the
    autoscaler, and a soup takes the cluster as it is. A soup on a cluster that grows asks for this
    number of actors."""

    @pydantic.field_validator("gpu")
    @classmethod
    def _at_most_one(cls, gpu: float) -> float:
        if gpu > 1:
            raise ValueError("a worker computes on one GPU; for more: training: {workers: N}")
        if 0 < gpu < LEAST_SHARE:
            raise ValueError(f"Ray divides a GPU into shares of {LEAST_SHARE:g} and more")
        return gpu


class TrainingSpec(SpecModel):
    """How trials are computed; `resources` are those of one worker."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast and a fused optimizer. Weights stay float32."""

    micro_batch: Annotated[Count, Field(le=1_000_000)] | None = None
    """Samples in a forward pass; it is halved by itself where memory ends. Left out: the whole
    batch."""

    checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory, more time."""

    workers: Annotated[Count, Field(le=10_000)] = 1
    """Workers of one trial, through Ray Train. Each has the `resources` and its share of every
    batch; BatchNorm sees that share only."""

    def record(self) -> Training:
        """Return these settings as the record that trials contain (`core.trials.Training`)."""
        return Training(**self.model_dump())


def check_workers(value: TrainingSpec, search: Search | None) -> None:
    """Raise ValueError if trials cannot be computed in this way.

    Args:
        value: how trials are computed.
        search: the trials; None if they are not valid.
    """
    together = value.workers > 1
    if together and search is not None and search.scheduler == "asha":
        raise ValueError(
            f"workers = {value.workers} train a trial to its end: asha cannot stop it; "
            "write scheduler: fifo, or workers: 1"
        )
    if together and search is not None and search.train == "head":
        raise ValueError(
            f"workers = {value.workers} would each compute the features of all samples, most "
            "of the work of train: head; write workers: 1"
        )
    if value.checkpointing and search is not None and search.train == "head":
        raise ValueError("checkpointing = true is about the body, but train: head; leave it out")


def check_resources(value: Resources, training: TrainingSpec | None) -> None:
    """Raise ValueError if workers cannot share what a trial reserves.

    Args:
        value: what one worker reserves.
        training: how trials are computed; None if it is not valid.
    """
    if 0 < value.gpu < 1 and training is not None and training.workers > 1:
        raise ValueError(
            f"gpu = {value.gpu:g} with training.workers = {training.workers}: NCCL takes no "
            "two workers on one GPU; write gpu: 1, or workers: 1"
        )
