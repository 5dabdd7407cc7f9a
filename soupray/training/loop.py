"""The training loop: a model, its weights moving epoch by epoch on the train split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from soupray.checkpoints import Weights
from soupray.data.cache import Data
from soupray.errors import Diverged
from soupray.ports import Task
from soupray.training.augment import rotate_and_shift
from soupray.training.optim import adamw, lr_scale


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Of one training. The names and defaults are those of `soupray.space.Space`."""

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float
    label_smoothing: float
    rotation: float
    shift: float
    warmup: float
    clip_norm: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a training starts: the weights, the seed of all its draws, the device it runs on."""

    weights: Weights
    seed: int
    device: str


class Loop:
    """A training under way. It reads the train split and no other."""

    def __init__(self, task: Task, data: Data, hparams: Hyperparameters, start: Start) -> None:
        self.hparams, self._task = hparams, task
        self.device = torch.device(start.device)
        torch.manual_seed(start.seed)
        self._generator = torch.Generator().manual_seed(start.seed)
        self.model = task.model()
        self.model.load_state_dict(start.weights)
        self.model.to(self.device)
        # Images stay on disk: a train set may be larger than memory.
        self._images, labels = data.samples(data.split("train"))
        self._labels = torch.from_numpy(np.array(labels))
        self._steps_per_epoch = math.ceil(len(labels) / hparams.batch_size)
        self._optimizer = adamw(self.model.parameters(), hparams.lr, hparams.weight_decay)
        self._step = 0

    def weights(self) -> Weights:
        """A copy of the weights as they are now."""
        return {n: t.detach().to("cpu", copy=True) for n, t in self.model.state_dict().items()}

    def epoch(self, number: int) -> float:
        """One pass over the training data; returns the mean loss. Raises Diverged."""
        self.model.train()
        order = torch.randperm(len(self._labels), generator=self._generator)
        total = 0.0
        for rows in order.split(self.hparams.batch_size):
            loss = self._batch(rows)
            if not math.isfinite(loss):
                raise Diverged(f"training loss is {loss} in epoch {number}, step {self._step}")
            total += loss * len(rows)
        return total / len(self._labels)

    def _batch(self, rows: torch.Tensor) -> float:
        h = self.hparams
        scale = lr_scale(self._step, self._steps_per_epoch * h.epochs, h.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = h.lr * scale
        self._step += 1
        samples = torch.from_numpy(self._images[rows.numpy()]).to(self.device)
        if samples.ndim == 4:  # images; texts stay the bytes that they are
            samples = samples.to(torch.float32)
            samples = rotate_and_shift(samples, h.rotation, h.shift, self._generator)
        logits = self.model(self._task.inputs(samples))
        loss = F.cross_entropy(
            logits, self._labels[rows].to(self.device), label_smoothing=h.label_smoothing
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), h.clip_norm)
        self._optimizer.step()
        return loss.item()


def trained(task: Task, data: Data, hparams: Hyperparameters, start: Start) -> Weights:
    """The weights after a whole training. Raises Diverged."""
    loop = Loop(task, data, hparams, start)
    for number in range(1, hparams.epochs + 1):
        loop.epoch(number)
    return loop.weights()
