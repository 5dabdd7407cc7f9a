"""Train one trial with several workers through Ray Train; each takes a part of every batch."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from threading import Thread
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from soupray.core.errors import SouprayError, TrialError
from soupray.core.records import decode, encode
from soupray.core.trials import EpochRecord, Manifest, Trial
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import read_record
from soupray.training.trial import Training, fine_tune
from soupray.training.worker import worker_context

RETRIES = 3
"""How often Ray Train restarts the group after a worker dies, from the trial's last state."""


class TorchGroup:
    """A `training.start.Group`: the default group of torch.distributed, which Ray Train creates."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return torch.distributed.get_rank()

    @property
    def size(self) -> int:
        """Number of workers."""
        return torch.distributed.get_world_size()

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all workers."""
        # One message instead of hundreds is faster.
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def shared(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap `model` in DistributedDataParallel: buckets of gradients are sent as they come.

        DDP's mean over the workers is replaced by a sum, because each loss is already its share of
        the mean over the batch, however uneven the shares are. Buffers stay each worker's own.
        """
        # All workers have the same weights (no init_sync). Parameters without a gradient keep none
        # (find_unused_parameters); it also keeps the buckets as they are: DDP would form new ones
        # after the first step, and a resumed trial would add up in another order.
        wrapped = DistributedDataParallel(
            model, broadcast_buffers=False, init_sync=False, find_unused_parameters=True
        )
        # A lambda, because DDP reads annotations, and does not understand them as strings.
        wrapped.register_comm_hook(None, lambda state, bucket: _sum(bucket))
        return wrapped

    def apart(self, shared: torch.nn.Module) -> AbstractContextManager[None]:
        """DDP's no_sync."""
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else nullcontext()


def _sum(bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    sent = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sent.then(lambda done: done.value()[0])


def train_together(spec: SweepSpec, place: Place, trial: Trial) -> Training:
    """Run `fine_tune` with the workers of `trial`, and yield the epochs of the first worker.

    Raises:
        TrialError: a worker raised an error of soupray.
        Exception: an error of Ray Train, if workers died too often.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    said = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    failed: list[Exception] = []

    def fit() -> None:
        try:
            # Ray Train's controller, on this node, wants a folder that it can write a marker into.
            # Nothing else is kept there: workers on other nodes need not see it.
            with tempfile.TemporaryDirectory() as folder:
                _trainer(spec, place, trial, said, folder).fit()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failed.append(error)
            said.put(None)

    # In a thread, because without a dashboard `fit` continues for seconds after the trial. A daemon
    # thread ends with this process, if the trial is stopped.
    Thread(target=fit, daemon=True).start()
    reason = ""
    while (one := said.get()) is not None:
        if isinstance(one, str):
            reason = one
        else:
            yield decode(one, EpochRecord)
    if failed and reason:  # Ray Train's own text is a traceback of every worker
        raise TrialError(reason) from failed[0]
    if failed:
        raise failed[0]
    manifest: Manifest = read_record(place.open_store(), layout.manifest(trial.key), Manifest)
    return manifest


def _trainer(spec: SweepSpec, place: Place, trial: Trial, said: Queue, folder: str) -> TorchTrainer:
    resources = spec.resources
    return TorchTrainer(
        _work,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "place": encode(place).decode(),
            "trial": encode(trial).decode(),
            "said": said,
        },
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.training.workers,
            use_gpu=resources.gpu > 0,
            resources_per_worker={"CPU": resources.cpu, "GPU": resources.gpu},
        ),
        run_config=ray.train.RunConfig(
            name=trial.key,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=RETRIES),
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """Run one worker.

    The first worker sends its epochs, and None when all is stored; any worker sends its error.
    """
    spec, said = SweepSpec.model_validate_json(config["spec"]), config["said"]
    place, trial = decode(config["place"].encode(), Place), decode(config["trial"].encode(), Trial)
    group = TorchGroup()
    try:
        here = worker_context(spec, place)
        training = fine_tune(trial, here.task, here.data, here.checkpoints, group)
        for record in training:
            if group.rank == 0:
                said.put(encode(record))
        if group.rank == 0:
            said.put(None)
    except SouprayError as error:
        said.put(str(error))
        raise
