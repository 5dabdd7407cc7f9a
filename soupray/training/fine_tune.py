"""One trial: theta_0 -> the best held-out epoch, stored and scored as soups will be."""

from __future__ import annotations

import platform
import time
from collections.abc import Generator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np
import torch

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
from soupray.training.loop import Hyperparameters, Loop, Start
from soupray.training.probe import frozen

Training = Generator[EpochRecord, None, Manifest]


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
                best = run.weights()
                best_epoch = epoch
            history.append(record)
            yield record
        assert best is not None
        made = stored(trial, best, task, data, checkpoints)
        manifest = msgspec.structs.replace(
            made, best_epoch=best_epoch, history=tuple(history), started=started
        )
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
    """The state of a trial."""

    def __init__(self, trial: Trial, task: Task, data: Data, checkpoints: Checkpoints) -> None:
        self.trial = trial
        self.hparams = Hyperparameters(**trial.hparams)  # type: ignore[arg-type]
        self._init = weights = checkpoints.load(trial.init)
        seen: Any = (task, data)
        if trial.method == "lp":
            # Tasks and data are told apart by identity, which mypy does not take for a hash.
            seen = frozen(task, data, checkpoints, trial.init, trial.setting)  # type: ignore[arg-type]
            weights = seen[0].init()
        start = Start(weights=weights, seed=trial.seed, device=trial.setting.device)
        self._seen: tuple[Any, Data] = seen
        self.loop = Loop(seen[0], seen[1], self.hparams, start)

    def weights(self) -> Weights:
        """All weights of the model; those that are not trained are theta_0's, bit for bit."""
        return self._init | self.loop.weights()

    def epoch(self, number: int) -> EpochRecord:
        """One pass over the training data, then one over the held-out data. Raises Diverged."""
        started = time.monotonic()
        loss = self.loop.epoch(number)
        task, data = self._seen
        held_out = data.split("held_out")
        images, labels = data.samples(held_out)
        logits, _ = predict(self.loop.model, task, images, self.trial.setting)
        if not np.isfinite(logits).all():
            raise Diverged(f"logits are not finite after epoch {number}")
        return EpochRecord(
            epoch=number,
            train_loss=loss,
            held_out_correct=int((logits.argmax(axis=1) == labels).sum()),
            held_out_n=held_out.size,
            seconds=time.monotonic() - started,
        )


def stored(
    trial: Trial, weights: Weights, task: Task, data: Data, checkpoints: Checkpoints
) -> Ingredient:
    """Weights and held-out logits into the store; the score is of the bytes as stored.

    Raises:
        Diverged: the model answers one class to everything.
    """
    started = time.time()
    ref = checkpoints.save(weights, {"init": trial.init})
    workers = LocalWorkers(task, data, checkpoints, trial.setting)
    held_out = data.split("held_out")
    predictions = workers.predictions(mean_of([ref.sha256]), held_out)
    _refuse_collapse(predictions.logits, held_out)
    logits = save_logits(checkpoints, predictions)
    return Ingredient(
        trial=trial,
        checkpoint=ref,
        tensors=tensor_digests(weights),
        init=trial.init,
        best_epoch=0,
        history=(),
        held_out=score(predictions),
        logits=logits,
        made_with=_versions(torch.device(trial.setting.device)),
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
    made_with = {}
    for name in ("soupray", "torch", "open_clip_torch", "timm", "transformers", "numpy"):
        with suppress(PackageNotFoundError):  # an extra that is not installed
            made_with[name] = version(name)
    made_with["python"] = platform.python_version()
    made_with["machine"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    )
    return made_with
