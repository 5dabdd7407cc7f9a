"""One trial: theta_0 -> the best held-out epoch, stored and scored as soups will be."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Generator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F

from soupray.candidates import mean_of
from soupray.checkpoints import Checkpoints, Weights, create_record, find_record, tensor_digests
from soupray.data.cache import Data
from soupray.errors import Diverged
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.network import predict
from soupray.evaluation.pool import manifest_path
from soupray.evaluation.shelf import save_logits
from soupray.maths.metrics import score
from soupray.ports import Task
from soupray.records import (
    EpochRecord,
    Ingredient,
    Manifest,
    Split,
    Tombstone,
    Trial,
)
from soupray.training.augment import rotate_and_shift
from soupray.training.optim import adamw, lr_scale

Training = Generator[EpochRecord, None, Manifest]


@dataclass(frozen=True)
class Hyperparameters:
    """A trial's `hparams`, typed. The names and defaults are those of `soupray.space.Space`."""

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float
    label_smoothing: float
    rotation: float
    shift: float
    warmup: float
    clip_norm: float


def fine_tune(trial: Trial, task: Task, data: Data, checkpoints: Checkpoints) -> Training:
    """Train `trial`, yielding a record after each epoch; returns the manifest that counts.

    A trial that diverges returns a tombstone. If another process stored the same trial first, its
    record is adopted: there is one ingredient for a key, whoever made it.
    """
    known: Manifest | None = find_record(checkpoints.store, manifest_path(trial.key), Manifest)
    if known is not None:  # stored by a worker that died before it could say so
        return known
    started = time.time()
    history: list[EpochRecord] = []
    run = _Run(trial, task, data, checkpoints)
    manifest: Manifest
    try:
        best: Weights | None = None
        for epoch in range(1, run.hparams.epochs + 1):
            record = run.epoch(epoch)
            # Ties go to the earlier epoch.
            if best is None or record.held_out_correct > max(e.held_out_correct for e in history):
                best = {n: t.detach().to("cpu", copy=True) for n, t in run.state().items()}
                best_epoch = epoch
            history.append(record)
            yield record
        assert best is not None
        manifest = _store(run, best, best_epoch, tuple(history), started)
    except Diverged as error:
        manifest = Tombstone(
            trial=trial,
            reason=str(error),
            history=tuple(history),
            started=started,
            finished=time.time(),
        )
    return create_record(checkpoints.store, manifest_path(trial.key), manifest, Manifest)


class _Run:
    """The state of a training run."""

    def __init__(self, trial: Trial, task: Task, data: Data, checkpoints: Checkpoints) -> None:
        self.trial, self.task, self.data, self.checkpoints = trial, task, data, checkpoints
        self.hparams = Hyperparameters(**trial.hparams)  # type: ignore[arg-type]
        self.device = torch.device(trial.setting.device)
        torch.manual_seed(trial.seed)
        self._generator = torch.Generator().manual_seed(trial.seed)
        self.model = task.model()
        self.model.load_state_dict(checkpoints.load(trial.init))
        self.model.to(self.device)
        images, labels = data.samples(data.split("train"))
        self._images, self._labels = (
            torch.from_numpy(np.array(images)),
            torch.from_numpy(np.array(labels)),
        )
        self._steps_per_epoch = math.ceil(len(labels) / self.hparams.batch_size)
        self._optimizer = adamw(self.model.parameters(), self.hparams.lr, self.hparams.weight_decay)
        self._step = 0

    def state(self) -> Weights:
        """The live weights."""
        return self.model.state_dict()

    def epoch(self, number: int) -> EpochRecord:
        """One pass over the training data, then one over the held-out data. Raises Diverged."""
        started = time.monotonic()
        loss = self._train_one_epoch(number)
        held_out = self.data.split("held_out")
        images, labels = self.data.samples(held_out)
        logits, _ = predict(self.model, self.task, images, self.trial.setting)
        if not np.isfinite(logits).all():
            raise Diverged(f"logits are not finite after epoch {number}")
        return EpochRecord(
            epoch=number,
            train_loss=loss,
            held_out_correct=int((logits.argmax(axis=1) == labels).sum()),
            held_out_n=held_out.size,
            seconds=time.monotonic() - started,
        )

    def _train_one_epoch(self, number: int) -> float:
        self.model.train()
        order = torch.randperm(len(self._labels), generator=self._generator)
        total = 0.0
        for rows in order.split(self.hparams.batch_size):
            loss = self._train_one_batch(rows)
            if not math.isfinite(loss):
                raise Diverged(f"training loss is {loss} in epoch {number}, step {self._step}")
            total += loss * len(rows)
        return total / len(self._labels)

    def _train_one_batch(self, rows: torch.Tensor) -> float:
        h = self.hparams
        scale = lr_scale(self._step, self._steps_per_epoch * h.epochs, h.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = h.lr * scale
        self._step += 1
        images = self._images[rows].to(self.device).to(torch.float32)
        images = rotate_and_shift(images, h.rotation, h.shift, self._generator)
        logits = self.model(self.task.inputs(images))
        loss = F.cross_entropy(
            logits, self._labels[rows].to(self.device), label_smoothing=h.label_smoothing
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), h.clip_norm)
        self._optimizer.step()
        return loss.item()


def _store(
    run: _Run, best: Weights, best_epoch: int, history: tuple[EpochRecord, ...], started: float
) -> Ingredient:
    """Weights and held-out logits into the store; the score is of the bytes as stored."""
    trial, checkpoints = run.trial, run.checkpoints
    ref = checkpoints.save(best, {"init": trial.init})
    workers = LocalWorkers(run.task, run.data, checkpoints, trial.setting)
    held_out = run.data.split("held_out")
    predictions = workers.predictions(mean_of([ref.sha256]), held_out)
    _refuse_collapse(predictions.logits, held_out)
    logits = save_logits(checkpoints, predictions)
    return Ingredient(
        trial=trial,
        checkpoint=ref,
        tensors=tensor_digests(best),
        init=trial.init,
        best_epoch=best_epoch,
        history=history,
        held_out=score(predictions),
        logits=logits,
        made_with=_versions(run.device),
        started=started,
        finished=time.time(),
    )


def _refuse_collapse(
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], split: Split
) -> None:
    classes = np.unique(logits.argmax(axis=1))
    if len(classes) == 1 and split.classes > 1:
        raise Diverged(f"the model collapsed: it answers class {classes[0]} to everything")


def _versions(device: torch.device) -> dict[str, str]:
    """Not part of any key: what a person wants to know when two machines disagree."""
    packages = ("soupray", "torch", "open_clip_torch", "numpy")
    made_with = {name: version(name) for name in packages}
    made_with["python"] = platform.python_version()
    made_with["machine"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    )
    return made_with
