"""The training loop: it trains a model on the train split, epoch by epoch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from msgspec import UNSET

from soupray.core.errors import Diverged, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.ports import Task
from soupray.data.augment import Draws, OwnAugmentation, augmented, draw, with_images
from soupray.data.cache import Data
from soupray.data.label_noise import noise_shares
from soupray.store.weights_file import Weights
from soupray.training.distillation import DistillationLoss, Targets
from soupray.training.losses import TrainingLoss, sample_weights
from soupray.training.optim import (
    LastEpochs,
    MovingAverage,
    adamw,
    lr_scale,
    train_last_blocks,
)
from soupray.training.start import Start

log = logging.getLogger(__name__)

LOOK_EVERY = 50
"""Number of steps between two checks of the loss. Each check waits for the device."""


class Loop:
    """A training that is going on. It reads the train split and no other."""

    def __init__(self, task: Task, data: Data, hparams: Hyperparameters, start: Start) -> None:
        self.hparams, self._task = hparams, task
        self._training, self._group = start.training, start.group
        self.device = torch.device(start.device)
        torch.manual_seed(start.seed)
        self._seed, self._generator = start.seed, torch.Generator().manual_seed(start.seed)
        self.in_training = task.model()
        self.in_training.load_state_dict(start.weights)
        self.in_training.to(self.device)
        if start.training.checkpointing:
            _checkpoint_gradients(self.in_training)
        if hparams.last_blocks:
            train_last_blocks(self.in_training, hparams.last_blocks)
        # Images are read from disk for each batch: a train split may be larger than the memory.
        self._samples, labels = data.samples(data.split("train"))
        self._labels = torch.from_numpy(np.array(labels))
        self.micro_batch = start.training.micro_batch or hparams.batch_size
        self._objective = data.split("train").objective
        self._teacher = start.teacher
        given = (start.loss, start.class_weights)
        plain = TrainingLoss(hparams, self._objective, self._labels, *given)
        self._by = f", by {plain.named}" if plain.named else ""
        self._noise = None
        if hparams.noise:
            self._noise = noise_shares(task.inputs, self._samples, hparams)
        self._loss = DistillationLoss(plain, hparams, self._objective)
        own = start.augmentation
        self._own = None if own is None else OwnAugmentation(*own)
        self._odds = sample_weights(self._labels, hparams.balanced)
        self._used = self._with_statistics(len(labels))
        self._steps_per_epoch = math.ceil(self._used / hparams.batch_size)
        self._optimizer = adamw(
            self.in_training,
            hparams.lr,
            hparams.weight_decay,
            hparams.layer_decay,
            fused=start.training.precision == "bf16",
        )
        self._average = MovingAverage(self.in_training, hparams.ema) if hparams.ema else None
        self._last = LastEpochs(self.in_training, hparams.merge) if hparams.merge else None
        self.step = 0
        self._shared: torch.nn.Module | None = None
        self._sending = False

    @property
    def model(self) -> torch.nn.Module:
        """The current model: an average, if there is one."""
        averaged = self._average or self._last
        return averaged.model if averaged else self.in_training

    def weights(self) -> Weights:
        """A copy of the current model's weights, on the CPU."""
        return {n: t.detach().to("cpu", copy=True) for n, t in self.model.state_dict().items()}

    def epoch(self, number: int) -> float:
        """Train for one epoch: one pass over the train split.

        If the last batch has samples without BatchNorm statistics, the last ones of the epoch's
        random order are left out.

        Args:
            number: of the epoch, from 1, for messages.

        Returns:
            The mean loss over the samples.

        Raises:
            Diverged: the loss is not finite.
            TrialError: one sample alone does not fit into memory.
        """
        self.in_training.train()
        for module in self.in_training.modules():
            if _frozen(module):
                module.eval()  # a BatchNorm layer in a frozen block keeps its statistics
        order = self._order()
        losses: list[torch.Tensor] = []
        seen: list[torch.Tensor] = []
        for rows, samples in self._read(order):
            losses.append(self._batch(rows, samples))
            if len(losses) % LOOK_EVERY == 0 or len(losses) == self._steps_per_epoch:
                first = (len(losses) - 1) // LOOK_EVERY * LOOK_EVERY
                seen.append(self._seen(losses[first:], number))
        if self._last:
            self._last.update(self.in_training)
        sizes = torch.tensor([len(rows) for rows in order.split(self.hparams.batch_size)])
        total = (torch.cat(seen) * sizes.to(self.device)).double().sum()
        return float(total) / self._used

    def _order(self) -> torch.Tensor:
        """The rows of an epoch: all in random order, or drawn with the odds of their classes."""
        if self._odds is None:
            return torch.randperm(len(self._labels), generator=self._generator)[: self._used]
        return torch.multinomial(
            self._odds, self._used, replacement=True, generator=self._generator
        )

    def _with_statistics(self, n: int) -> int:
        """The number of samples, of n, in batches of which a BatchNorm layer has statistics.

        A layer that sees one value per channel has no variance, and torch refuses it. That is a
        layer after the pooling, and a part of a batch (a micro-batch, a worker's share) with one
        sample.

        Raises:
            TrialError: whole batches have such parts.
        """
        size = self.hparams.batch_size
        if not self._has_part_of_one(size) and not self._has_part_of_one(n % size):
            return n
        if not _needs_two(self.in_training, self._task, self._samples, self.device):
            return n
        if n >= size and self._has_part_of_one(size):
            raise TrialError(
                f"batch_size = {size}, micro_batch = {self.micro_batch}, workers = "
                f"{self._group.size}: a BatchNorm layer of this model gets one sample alone, and "
                "has no statistics of it. Choose sizes that leave no part of one sample."
            )
        used = n
        while used % size and self._has_part_of_one(used % size):
            used -= 1
        if not used:
            raise TrialError(
                f"{n} training samples and batch_size = {size}: a BatchNorm layer of this model "
                "gets one sample alone, and has no statistics of it. Add training samples."
            )
        log.warning(
            f"{n - used} of {n} training samples are left out of each epoch, others in each: a "
            "BatchNorm layer has no statistics of one sample alone in the last batch."
        )
        return used

    def _has_part_of_one(self, n: int) -> bool:
        """Whether a worker computes a batch of n samples with a part of one sample."""
        some, more = divmod(n, self._group.size)
        shares = {some + 1 if more else some, some} - {0} | ({1} if not some else set())
        one = 1 % self.micro_batch  # every part has one sample if the micro-batch has one
        return n > 0 and any(share % self.micro_batch == one for share in shares)

    def _seen(self, losses: list[torch.Tensor], number: int) -> torch.Tensor:
        """The mean losses over these batches, of all workers together."""
        values = torch.stack(losses)
        self._group.add_up([values])
        if not bool(torch.isfinite(values).all()):
            first = int((~torch.isfinite(values)).nonzero()[0, 0])
            step = self.step - len(losses) + first + 1
            raise Diverged(
                f"training loss is {float(values[first])} in epoch {number}, step {step}{self._by}"
            )
        return values

    def _read(self, order: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each batch: its rows, and this worker's samples. The next batch is read meanwhile."""
        batches = order.split(self.hparams.batch_size)
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._load, batches[0])
            for rows, after in zip(batches, (*batches[1:], None), strict=True):
                samples = coming.result()
                if after is not None:
                    coming = thread.submit(self._load, after)
                yield rows, samples

    def _load(self, rows: torch.Tensor) -> torch.Tensor:
        samples = torch.from_numpy(self._samples[rows[self.places_of(len(rows))].numpy()])
        return samples.pin_memory() if self.device.type == "cuda" else samples

    def places_of(self, n: int) -> torch.Tensor:
        """This worker's positions in a batch of n samples; with mixup, also their partners."""
        mine = torch.arange(n).tensor_split(self._group.size)[self._group.rank]
        if self._idle(n):  # every worker must have gradients; those of this worker are zeros
            mine = torch.arange(1)
        if not self.hparams.mixup or self._group.size == 1:
            return mine
        return torch.cat([mine, n - 1 - mine])

    def _idle(self, n: int) -> bool:
        """Whether a batch of n samples has none for this worker, as n is below the group's size."""
        return self._group.rank >= n

    def _batch(self, rows: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Do one step of the optimizer. Return this worker's share of the batch's mean loss."""
        h, n = self.hparams, len(rows)
        scale = lr_scale(self.step, self._steps_per_epoch * h.epochs, h.warmup, not h.merge)
        for group in self._optimizer.param_groups:
            group["lr"] = h.lr * scale * group["scale"]
        self.step += 1
        images = samples.ndim == 4  # texts are not augmented
        draws = draw(n, h, self._generator) if images else Draws(None, None, None)
        places = self.places_of(n)
        samples = samples.to(self.device, non_blocking=True)
        if images:
            samples = augmented(samples, draws.take(places), h)
            if self._own is not None:
                samples = self._own(samples, self._seed_of_step())
        inputs = self._task.inputs(samples)
        labels = self._labels[rows[places]].to(self.device)
        if self._objective is not UNSET and self._objective.side:  # masks move with their images
            labels = with_images(labels, self._objective.side, draws.take(places), h)
        taught, noise = (
            None if known is None else known[rows[places]].to(self.device)
            for known in (self._teacher, self._noise)
        )
        # In a trial's first step the memory may run out, and a worker tries again on its own.
        if self.step > 1 and self._shared is None:
            self._shared = self._group.shared(self.in_training)
        loss = self.gradients(inputs, Targets(labels, taught, noise), n)
        if self._shared in (None, self.in_training):
            grads = [p.grad for p in self.in_training.parameters() if p.grad is not None]
            self._group.add_up(grads)
        torch.nn.utils.clip_grad_norm_(self.in_training.parameters(), h.clip_norm)
        self._optimizer.step()
        if self._average:
            self._average.update(self.in_training, self.step)
        return loss

    def _seed_of_step(self) -> int:
        """A seed that depends only on trial, step and worker: the same after a resume."""
        drawn = np.random.SeedSequence((self._seed, self.step, self._group.rank)).generate_state(1)
        return int(drawn[0])

    def gradients(self, inputs: torch.Tensor, targets: Targets, n: int) -> torch.Tensor:
        """Compute gradients of this worker's share of the mean loss over a batch of n samples.

        If the memory is too small, the micro-batch is halved, and the computation starts again. Not
        in retrieval, where the other pairs of a part are a part of the loss.

        Args:
            inputs: this worker's samples.
            targets: what they should become.
            n: samples of all workers together.
        """
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self.accumulate(inputs, targets, n)
            except torch.OutOfMemoryError as error:
                if self.micro_batch == 1:
                    raise TrialError(
                        f"out of memory on {self.device} with one sample at a time. Give the trial "
                        "a larger device, or write training: {checkpointing: true}."
                    ) from error
                if self._objective is not UNSET and self._objective.kind == "retrieval":
                    raise TrialError(
                        f"out of memory on {self.device} with batch_size = "
                        f"{self.hparams.batch_size}: parts of a batch would have other negatives, "
                        "so that it is not divided. Lower batch_size, or write training: "
                        "{checkpointing: true}."
                    ) from error
                if self._sending:  # the other workers have a part of these gradients
                    raise TrialError(
                        f"out of memory on {self.device} while workers exchange gradients. Write "
                        f"training: {{micro_batch: {math.ceil(self.micro_batch / 2)}}}, or less."
                    ) from error
            self.micro_batch = math.ceil(min(self.micro_batch, len(inputs)) / 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def accumulate(self, inputs: torch.Tensor, targets: Targets, n: int) -> torch.Tensor:
        """Compute these gradients and this loss in micro-batches of the present size.

        The device's memory may run out: `gradients` then tries again with half the size.
        """
        h = self.hparams
        partners = None
        if h.mixup:
            # torch has no Beta distribution with a generator. A draw that depends only on seed and
            # step is the same after a resume.
            share = float(np.random.default_rng((self._seed, self.step)).beta(h.mixup, h.mixup))
            size = len(inputs)
            half = size // 2 if self._group.size > 1 else size
            mates = torch.arange(half, size) if self._group.size > 1 else torch.arange(size).flip(0)
            partners = targets.take(mates)
            inputs = share * inputs[:half] + (1 - share) * inputs[mates.to(inputs.device)]
            targets = targets.take(torch.arange(half))
        total = torch.zeros((), device=self.device)
        model = self._shared or self.in_training
        parts = torch.arange(len(inputs)).split(self.micro_batch)
        for i, part in enumerate(parts, 1):
            with nullcontext() if i == len(parts) else self._group.apart(model):
                with self._autocast():
                    logits = model(inputs[part.to(self.device)])
                loss = self._loss(logits, targets.take(part))
                if partners is not None:
                    mixed = self._loss(logits, partners.take(part))
                    loss = share * loss + (1 - share) * mixed
                if len(part) < n or self._idle(n):
                    loss = loss * (0.0 if self._idle(n) else len(part) / n)
                self._sending = i == len(parts) and model is not self.in_training
                loss.backward()
                self._sending = False
            total += loss.detach()
        return total

    def _autocast(self) -> Any:
        on = self._training.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies, on the CPU, of all on which the next epochs depend.

        These are weights, moving average, moments of the optimizer, generators and counters.
        """
        found = {f"model.{n}": t for n, t in self.in_training.state_dict().items()}
        if self._average:
            found |= {f"average.{n}": t for n, t in self._average.model.state_dict().items()}
        if self._last:
            found |= {f"last.{n}": t for n, t in self._last.state().items()}
        for i, (_, moments) in enumerate(self._moments()):
            found |= {f"moments.{i}.{n}": t for n, t in moments.items()}
        found["generator"] = self._generator.get_state()
        found["torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        found["steps"] = torch.tensor([self.step, self.micro_batch])
        return {n: t.detach().to("cpu", copy=True) for n, t in found.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`, with the same results as without an interruption."""
        self.in_training.load_state_dict(under("model.", state))
        if self._average:
            self._average.model.load_state_dict(under("average.", state))
        if self._last:
            self._last.restore(under("last.", state))
        for i, (parameter, _) in enumerate(self._moments()):
            moments = under(f"moments.{i}.", state)
            self._optimizer.state[parameter] = {
                n: t if n == "step" and not self._fused else t.to(parameter.device)
                for n, t in moments.items()
            }
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        self.step, self.micro_batch = state["steps"].tolist()

    @property
    def _fused(self) -> bool:
        return bool(self._optimizer.defaults["fused"])

    def _moments(self) -> Iterator[tuple[torch.nn.Parameter, dict[str, torch.Tensor]]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, self._optimizer.state.get(parameter, {})


def under(prefix: str, state: Weights) -> Weights:
    """The tensors whose names start with `prefix`, under their names without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _needs_two(model: torch.nn.Module, task: Task, samples: Any, device: torch.device) -> bool:
    """Whether the model has a BatchNorm layer that cannot be trained on one sample alone."""
    if not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return False
    trial = copy.deepcopy(model).train()
    for module in trial.modules():
        if _frozen(module):
            module.eval()
    one = task.inputs(torch.from_numpy(np.array(samples[:1])).to(device))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            trial(one)
        except ValueError as error:
            return "more than 1 value per channel" in str(error)
    return False


def _frozen(module: torch.nn.Module) -> bool:
    """Whether the module has parameters, and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _checkpoint_gradients(model: torch.nn.Module) -> None:
    """Let the model recompute the activations inside its blocks.

    Raises:
        TrialError: the model has no such option.
    """
    for module in model.modules():
        for name in ("set_grad_checkpointing", "gradient_checkpointing_enable"):
            if hasattr(module, name):
                getattr(module, name)()
                return
    raise TrialError(
        "training.checkpointing: this model does not offer it (set_grad_checkpointing of open_clip "
        "and timm, gradient_checkpointing_enable of transformers). Remove it from the spec."
    )


def trained(task: Task, data: Data, hparams: Hyperparameters, start: Start) -> Weights:
    """The weights after a whole training, from its last epoch.

    Args:
        task: makes the model and its inputs.
        data: with the train split.
        hparams: the hyperparameters.
        start: weights, seed and device.

    Raises:
        Diverged: the loss is not finite.
    """
    loop = Loop(task, data, hparams, start)
    for number in range(1, hparams.epochs + 1):
        loop.epoch(number)
    return loop.weights()
