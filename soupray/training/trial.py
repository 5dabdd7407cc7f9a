"""One trial: from theta_0 to the best epoch on held-out data, which is stored as an ingredient."""

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

from soupray.core.arrays import Logits
from soupray.core.candidates import mean_of
from soupray.core.errors import Diverged
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.ports import Task
from soupray.core.records import UNITS, Predictions, Split
from soupray.core.trials import EpochRecord, Ingredient, Manifest, Tombstone, Trial
from soupray.data.cache import Data
from soupray.data.changes import refuse_changed
from soupray.evaluation.cache import save_logits
from soupray.evaluation.live_model import predict
from soupray.evaluation.local import LocalWorkers
from soupray.maths.metrics import sample_values, score, value
from soupray.maths.weights import distance
from soupray.store.checkpoints import Checkpoints
from soupray.store.manifests import find_trained, put_manifest
from soupray.store.weights_file import Weights, tensor_digests
from soupray.training.loop import Loop, under
from soupray.training.probe import frozen
from soupray.training.resume import Resumer, Saved, common
from soupray.training.start import Alone, Group, Start

Training = Generator[EpochRecord, None, Manifest]


def fine_tune(
    trial: Trial,
    task: Task,
    data: Data,
    checkpoints: Checkpoints,
    group: Group | None = None,
) -> Training:
    """Train a trial, and store its ingredient.

    Args:
        trial: the trial.
        task: makes the model and its inputs.
        data: the splits of the sweep.
        checkpoints: the store of weights and records.
        group: the workers that train the trial together. None: this process alone.

    Yields:
        A record after each epoch.

    Returns:
        The manifest in the store: an ingredient, or a tombstone if the trial diverged. If another
        process stored the same trial first, its manifest: a key has one ingredient. The first
        worker of a group stores the manifest, and the other workers return it.

    Raises:
        TrialError: the model does not fit the hyperparameters, or the memory is too small.
        ConfigError: the data of this machine are not those of the trial.
    """
    known = find_trained(checkpoints.store, trial.key)
    if known is not None:  # stored by a worker that died before it could report the result
        return known
    refuse_changed(data, dict(zip(("train", "held_out"), trial.data, strict=True)))
    started = time.time()
    resumer = Resumer(checkpoints.store, trial.key)
    group = group or Alone()
    run = _Run(trial, task, data, checkpoints, group)
    run.go_on(common(resumer.find(), group, run.loop.device))
    try:
        for epoch in range(len(run.history) + 1, run.hparams.epochs + 1):
            yield run.epoch(epoch)
            if run.is_over():
                break
            if run.first and epoch < run.hparams.epochs and resumer.due():
                resumer.keep(run.state(), run.history, run.best_epoch)
        if not run.first:
            return _adopted(trial, checkpoints)
        made = stored(trial, run.best, task, data, checkpoints)
        manifest = run.ingredient(made, started)
    except Diverged as error:
        manifest = run.tombstone(error, started)
    kept = put_manifest(checkpoints.store, manifest)
    resumer.clear()
    return kept


def _adopted(trial: Trial, checkpoints: Checkpoints) -> Manifest:
    """Wait until the first worker of the group has stored its manifest, and return it."""
    while True:
        found = find_trained(checkpoints.store, trial.key)
        if found is not None:
            return found
        time.sleep(ADOPT_S)


ADOPT_S = 0.5
"""Seconds between two attempts to read the manifest that another worker of the group stores."""


class _Run:
    """A trial that is going on: its loop, its history, and its best weights so far."""

    def __init__(
        self, trial: Trial, task: Task, data: Data, checkpoints: Checkpoints, group: Group
    ) -> None:
        self.trial, self.first = trial, group.rank == 0
        self.history: list[EpochRecord] = []
        self.best: Weights = {}
        self.best_epoch = 0
        self.hparams = Hyperparameters(**trial.hparams)  # type: ignore[arg-type]
        self._init = weights = checkpoints.load(trial.init)
        seen: Any = (task, data)
        if trial.method == "lp":
            # Tasks and data are hashed by identity. mypy does not know that protocols have a hash.
            seen = frozen(task, data, checkpoints, trial.init, trial.setting)  # type: ignore[arg-type]
            weights = seen[0].init()
        start = Start(
            weights=weights,
            seed=trial.seed,
            device=trial.setting.device,
            training=trial.training,
            group=group,
            loss=trial.loss or None,
            augmentation=trial.augmentation or None,
            class_weights=trial.class_weights or None,
            teacher=checkpoints.load_blob(trial.teacher)["logits"] if trial.teacher else None,
        )
        self._seen: tuple[Any, Data] = seen
        self.loop = Loop(seen[0], seen[1], self.hparams, start)

    def weights(self) -> Weights:
        """All weights of the model. Untrained weights equal those of theta_0, bit for bit."""
        return self._init | self.loop.weights()

    def ingredient(self, made: Ingredient, started: float) -> Manifest:
        """The manifest of a trial that ended; `made` has its stored weights and their scores."""
        return msgspec.structs.replace(
            made, best_epoch=self.best_epoch, history=tuple(self.history), started=started
        )

    def tombstone(self, why: Diverged, started: float) -> Manifest:
        """The manifest of a trial that diverged."""
        return Tombstone(
            trial=self.trial,
            reason=str(why),
            history=tuple(self.history),
            started=started,
            finished=time.time(),
        )

    def is_over(self) -> bool:
        """Whether the last epochs, as many as the patience of the trial, were no better."""
        since = len(self.history) - self.best_epoch
        return bool(self.hparams.patience) and since >= self.hparams.patience

    def state(self) -> Weights:
        """Copies of all on which the rest of the trial depends."""
        best = {f"best.{n}": t for n, t in self.best.items()}
        return {f"loop.{n}": t for n, t in self.loop.state().items()} | best

    def go_on(self, found: tuple[Saved, Weights] | None) -> None:
        """Continue from the state of an interrupted attempt, if there is one."""
        if found is None:
            return
        saved, state = found
        self.loop.restore(under("loop.", state))
        self.best = under("best.", state)
        self.best_epoch, self.history = saved.best_epoch, list(saved.history)

    def epoch(self, number: int) -> EpochRecord:
        """Train for one epoch, and evaluate the model on held-out data.

        Raises:
            Diverged: the loss or a logit is not finite.
        """
        started = time.monotonic()
        loss = self.loop.epoch(number)
        task, data = self._seen
        held_out = data.split("held_out")
        images, labels = data.samples(held_out)
        logits, _ = predict(self.loop.model, task, images, self.trial.setting)
        if not np.isfinite(logits).all():
            raise Diverged(f"logits are not finite after epoch {number}")
        metric = self.trial.metric
        said = Predictions(split=held_out, logits=logits, labels=np.asarray(labels))
        values = sample_values(said)
        most = held_out.size * (1 if values.dtype == bool else UNITS)
        record = EpochRecord(
            epoch=number,
            train_loss=loss,
            held_out_correct=int(values.sum(dtype=np.int64)),
            held_out_n=most,
            seconds=time.monotonic() - started,
            value=value(score(said), metric) if metric else None,
        )
        # Of two equally good epochs, the earlier one is kept.
        if not self.best or record.rank > max(e.rank for e in self.history):
            self.best, self.best_epoch = self.weights(), number
        self.history.append(record)
        return record


def stored(
    trial: Trial, weights: Weights, task: Task, data: Data, checkpoints: Checkpoints
) -> Ingredient:
    """Store weights and held-out logits. The scores are those of the stored weights.

    Args:
        trial: the trial.
        weights: all weights of its best epoch.
        task: makes the model and its inputs.
        data: the splits of the sweep.
        checkpoints: the store of weights and records.

    Returns:
        The ingredient, without the best epoch and the history. It is not stored yet.

    Raises:
        Diverged: the model predicts the same class for every sample.
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
        distance=distance(checkpoints.open(ref.sha256), checkpoints.open(trial.init)),
    )


def _refuse_collapse(logits: Logits, split: Split) -> None:
    if split.objective is not msgspec.UNSET:
        if len(logits) > 1 and not np.ptp(logits, axis=0).any():
            raise Diverged("the model collapsed: its outputs are the same for every sample")
        return
    classes = np.unique(logits.argmax(axis=1))
    if len(classes) == 1 and split.classes > 1:
        raise Diverged(f"the model collapsed: it predicts class {classes[0]} for every sample")


def _versions(device: torch.device) -> dict[str, str]:
    """Versions of libraries and machine, for people. They are not part of any key."""
    made_with = {}
    for name in ("soupray", "torch", "open_clip_torch", "timm", "transformers", "numpy"):
        with suppress(PackageNotFoundError):  # an extra that is not installed
            made_with[name] = version(name)
    made_with["python"] = platform.python_version()
    made_with["machine"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    )
    return made_with
