"""Measure a training step and an evaluation on this machine, for `sweep --dry-run --measure`.

A few batches of the real data go through the real training. Nothing is stored.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import UnsetType

from soupray.core.arrays import Images, Labels
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.ports import Task
from soupray.core.records import Objective, Record
from soupray.data.building import look_of
from soupray.data.captions import write_captioned
from soupray.data.decoding import Look
from soupray.data.reading import Stream
from soupray.data.sets import parts_of
from soupray.data.splits import Listing, Samples
from soupray.evaluation.live_model import predict
from soupray.operations.estimate import DryRun
from soupray.search.plan import plan
from soupray.spec.data import ImagesSpec
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import CaptionsSpec
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.start import Start

ROUNDS, LONG_S = 3, 2.0
"""How often something is measured, and the seconds after which once is enough."""


class Measured(Record, frozen=True, kw_only=True):
    """What a step and a pass take on this machine, and what follows for the sweep.

    Attributes:
        device: where this was measured.
        threads: of the CPU.
        batch_size: samples in the step.
        step_seconds: of a training step; None where only heads are trained, in which steps take
            next to nothing.
        pass_samples: samples in the pass.
        pass_seconds: of a forward pass.
        at_a_time: trials for which this machine has room.
        sweep_seconds: estimate for all trials on this machine.
        soup_seconds: estimate for the soups that the spec lists, as if none was rejected early.
    """

    device: str
    threads: int
    batch_size: int
    step_seconds: float | None
    pass_samples: int
    pass_seconds: float
    at_a_time: int
    sweep_seconds: float
    soup_seconds: float


class _Batch(NamedTuple):
    """The data of the training loop: one batch, as the train split."""

    images: Any
    labels: Labels
    objective: Objective | UnsetType

    def split(self, name: str) -> _Batch:
        return self

    def samples(self, split: _Batch) -> tuple[Any, Labels]:
        return self.images, self.labels


def measure(spec: SweepSpec, cost: DryRun) -> Measured:
    """Train one step, after one to warm up, and evaluate one batch.

    Args:
        spec: the sweep.
        cost: what it costs, in samples.

    Raises:
        ConfigError: the spec plans no trial, asks for a GPU that is not here, or its data or model
            cannot be read.
        TrialError: the memory is too small for one sample.
    """
    if not spec.search.trials:
        raise ConfigError("--measure: this spec plans no trial (search.trials = 0).")
    device = spec.setting.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--measure: resources.gpu is set, but there is no GPU on this machine. Measure on one "
            "that has a GPU, or write gpu: 0."
        )
    torch.set_num_threads(spec.threads)
    hparams = Hyperparameters(**{**plan(spec)[0].hparams, "epochs": ROUNDS + 1})  # type: ignore[arg-type]
    train, evaluated, labels = _samples(spec, hparams.batch_size)
    task = task_of(spec.task)
    torch.manual_seed(spec.seed)
    weights = task.init()
    step = None
    if spec.search.train != "head":
        step = _step(task, _Batch(train, labels, spec.targets), hparams, _start(spec, weights))
    model = task.model()
    model.load_state_dict(weights)
    model.to(device)
    # As many as a pass has: `predict` fills up a smaller batch.
    rows = np.resize(np.arange(len(labels)), spec.evaluation_batch)
    passed = _seconds(lambda: predict(model, task, evaluated[rows], spec.setting))
    return _estimate(spec, cost, (len(labels), step), passed)


def _start(spec: SweepSpec, weights: dict[str, torch.Tensor]) -> Start:
    """Return the start of a trial of one worker."""
    return Start(
        weights=weights,
        seed=spec.seed,
        device=spec.setting.device,
        training=spec.training.record(),
        loss=spec.own_loss,
        augmentation=spec.own_augmentation,
        class_weights=spec.loss_weights,
    )


def _step(task: Task, batch: _Batch, hparams: Hyperparameters, start: Start) -> float:
    """Return the seconds of an epoch of one step."""
    data: Any = batch
    loop = Loop(task, data, hparams, start)
    numbers = iter(range(1, ROUNDS + 2))
    return _seconds(lambda: loop.epoch(next(numbers)))


def _seconds(work: Callable[[], object]) -> float:
    """Return the median duration after one run to warm up; of one run, if that takes long."""
    work()
    took: list[float] = []
    while len(took) < ROUNDS and sum(took) < LONG_S:
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _samples(spec: SweepSpec, count: int) -> tuple[Any, Images, Labels]:
    """Return training samples as trials read them, the same ones as evaluated, and labels."""
    part = parts_of(spec.data, spec.seed, spec.task.classes, spec.targets).splits["train"]
    rows = np.sort(np.random.default_rng(spec.seed).permutation(len(part.ids))[:count])
    some = part.take(rows)
    if isinstance(some, Samples):
        return some.images, some.images, some.labels
    if isinstance(spec.data, CaptionsSpec):
        pairs = _captioned(some, look_of(spec, spec.data.size, train=False))
        return pairs, pairs, some.labels
    assert isinstance(spec.data, ImagesSpec)
    train = Stream(some, look_of(spec, spec.data.side_of_train, train=True))
    evaluated = Stream(some, look_of(spec, spec.data.size, train=False))
    try:
        streams = spec.data.keep == "stream"
        return (train if streams else train[:]), evaluated[:], some.labels
    except EvaluationError as error:
        raise ConfigError(f"--measure: {some.ids[0]} and others: {error.__cause__}.") from error


def _captioned(some: Listing, look: Look) -> Images:
    """Return images with captions as the cache has them, [N, W]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pairs.npy")
        for sample_id, content in zip(some.ids, write_captioned(some, look, path), strict=True):
            if content.problem:
                raise ConfigError(f"--measure: {sample_id} and others: {content.problem}.")
        pairs: Images = np.load(path)
    return pairs


def _estimate(
    spec: SweepSpec, cost: DryRun, trained: tuple[int, float | None], passed: float
) -> Measured:
    """Return the measurements, and what follows from them for the whole sweep.

    Args:
        spec: the sweep.
        cost: what it costs, in samples.
        trained: samples in a step, and its seconds; None where a pass takes its place.
        passed: seconds of a forward pass of an evaluation batch.
    """
    size, step = trained
    each = passed / spec.evaluation_batch
    training = cost.training_samples * (each if step is None else step / size)
    slots = room_here(spec)
    soup = cost.soup_held_out_samples + cost.soup_train_samples + cost.reported_samples
    return Measured(
        device=spec.setting.device,
        threads=spec.threads,
        batch_size=size,
        step_seconds=step,
        pass_samples=spec.evaluation_batch,
        pass_seconds=passed,
        at_a_time=slots,
        sweep_seconds=(training + cost.held_out_samples * each) / slots,
        soup_seconds=soup * each / slots,
    )


def room_here(spec: SweepSpec) -> int:
    """Return how many trials this machine has room for: at least one, at most those of the plan."""
    resources, workers = spec.resources, spec.training.workers
    fits = [len(os.sched_getaffinity(0)) / resources.cpu]
    if resources.gpu:
        fits.append(torch.cuda.device_count() / resources.gpu)
    room = int(min(fits)) // workers
    return max(1, min(room, resources.at_most or room, spec.search.trials))
