"""One trial on several devices or nodes, through Ray Train: each takes its share of a batch."""

from __future__ import annotations

import os
from typing import Any

import torch

os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from soupray.records import Trial, decode, encode
from soupray.spec import SweepSpec
from soupray.training.fine_tune import fine_tune
from soupray.wiring import Place, world

RETRIES = 3
"""Of the whole group when one of it dies; it goes on at the trial's last state."""


class _TorchGroup:
    """See `training.start.Group`: torch.distributed's default group, which Ray Train made."""

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank()

    @property
    def size(self) -> int:
        return torch.distributed.get_world_size()

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        # One message for all: a model has hundreds of tensors.
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def train_together(spec: SweepSpec, place: Place, trial: Trial) -> None:
    """Train `trial` with as many workers as it asks for; its manifest is then in the store.

    Raises:
        Exception: what a worker raised, from Ray Train.
    """
    resources = spec.resources
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "place": encode(place).decode(),
            "trial": encode(trial).decode(),
        },
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.training.workers,
            use_gpu=resources.gpu > 0,
            resources_per_worker={"CPU": resources.cpu, "GPU": resources.gpu},
        ),
        run_config=ray.train.RunConfig(
            name=trial.key,
            storage_path=str(place.folder / "train"),
            failure_config=ray.train.FailureConfig(max_failures=RETRIES),
        ),
    )
    trainer.fit()


def _work(config: dict[str, Any]) -> None:
    spec = SweepSpec.model_validate_json(config["spec"])
    place, trial = decode(config["place"].encode(), Place), decode(config["trial"].encode(), Trial)
    here = world(spec, place)
    for _ in fine_tune(trial, here.task, here.data, here.checkpoints, _TorchGroup()):
        pass
