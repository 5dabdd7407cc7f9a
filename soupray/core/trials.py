"""Records of trials, their ingredients, and pools of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from soupray.core.names import Sha256, TrialKey
from soupray.core.records import (
    Basis,
    BlobRef,
    CheckpointRef,
    Metric,
    Record,
    Scores,
    Setting,
    digest,
)

Method = Literal["ft", "lp", "imported"]


class Training(Record, frozen=True, kw_only=True):
    """How trials compute. Every field can change the weights, so trial keys have all fields.

    Attributes:
        precision: bf16 means autocast and a fused optimizer. The weights stay float32.
        micro_batch: samples in each forward pass, where a batch is too large for the memory. None:
            the whole batch.
        checkpointing: recompute activations in the backward pass: less memory, more time.
        workers: number of workers that train one trial together.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int | None = None
    checkpointing: bool = False
    workers: int = 1


class Trial(Record, frozen=True, kw_only=True):
    """One training run, with a value for each hyperparameter.

    Attributes:
        key: names the trial in the store.
        index: number of the trial in its sweep, from 0.
        sweep: name of the sweep.
        method: "ft": fine-tuning of the model. "lp": training of the head alone. "imported": a
            checkpoint that was trained elsewhere.
        hparams: hyperparameters by name.
        seed: of all random draws of the training.
        init: SHA-256 (hex) of theta_0.
        data: digests of the train split and the held-out split.
        code: version of the training code.
        setting: how the model is evaluated.
        training: how the trial computes.
        metric: chooses the best epoch.
        loss: name and digest of the code of a loss of the user. Unset: that of the objective.
        augmentation: the same of an augmentation of the user. Unset: there is none.
        teacher: SHA-256 (hex) of the teacher's logits. Unset: there is none.
        class_weights: of the loss, in the order of the classes. Unset: all are 1.
    """

    key: TrialKey
    index: int
    sweep: str
    method: Method = "ft"
    hparams: dict[str, float | int | str]
    seed: int
    init: Sha256
    data: tuple[Sha256, ...]
    code: str
    setting: Setting
    training: Training = Training()
    # Unset means accuracy. The JSON then has no such field, so that old records keep their digests.
    metric: Metric | msgspec.UnsetType = msgspec.UNSET
    loss: tuple[str, Sha256] | msgspec.UnsetType = msgspec.UNSET
    augmentation: tuple[str, Sha256] | msgspec.UnsetType = msgspec.UNSET
    teacher: Sha256 | msgspec.UnsetType = msgspec.UNSET
    class_weights: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET


def key_of(trial: Trial, tensors: Mapping[str, str] | None = None) -> str:
    """The key that a trial has: a digest of all that shapes its weights.

    The name of the sweep and the trial's number in it shape no weights.

    Args:
        trial: the trial; its own `key` is not read.
        tensors: for an imported checkpoint, the SHA-256 (hex) of each tensor by the tensor's name.
    """
    if trial.method == "imported":
        about = ["imported", tensors, trial.init, trial.data, trial.setting, trial.code]
        return digest(about)[:16]
    shaping = {
        "hparams": trial.hparams,
        "seed": trial.seed,
        "method": trial.method,
        "init": trial.init,
        "data": trial.data,
        "code": trial.code,
        "setting": trial.setting,
        "training": trial.training,
    }
    if trial.metric is not msgspec.UNSET:
        shaping["metric"] = trial.metric
    if trial.loss is not msgspec.UNSET:
        shaping["loss"] = trial.loss
    if trial.augmentation is not msgspec.UNSET:
        shaping["augmentation"] = trial.augmentation
    if trial.class_weights is not msgspec.UNSET:
        shaping["class_weights"] = trial.class_weights
    if trial.teacher is not msgspec.UNSET:
        shaping["teacher"] = trial.teacher
    return digest(shaping)[:16]


class EpochRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The measurements of one epoch of a trial. No test or shift metric belongs here.

    Attributes:
        epoch: number of the epoch, from 1.
        train_loss: mean over the training samples.
        held_out_correct: number of held-out samples that are classified correctly; of a graded
            metric the sum of their values, in units.
        held_out_n: the largest `held_out_correct` that there can be: the number of held-out
            samples, for a graded metric in units.
        seconds: duration of the epoch.
        value: the trial's metric, as a number where larger is better. None: the metric is accuracy.
    """

    epoch: int
    train_loss: float
    held_out_correct: int
    held_out_n: int
    seconds: float
    value: float | None = None

    @property
    def rank(self) -> float:
        """The number by which epochs and running trials are compared: larger is better."""
        return self.held_out_correct / self.held_out_n if self.value is None else self.value


class Ingredient(Record, tag="complete", frozen=True, kw_only=True):
    """The model of a completed trial: its manifest in the store.

    The manifest is written last: a trial that has one is complete.

    Attributes:
        trial: the trial that trained it.
        checkpoint: its weights.
        tensors: SHA-256 (hex) of each tensor, by the tensor's name.
        init: SHA-256 (hex) of theta_0.
        best_epoch: the epoch whose weights were kept, from 1.
        history: one record for each epoch.
        held_out: scores of the stored weights on held-out data.
        logits: logits of the stored weights on held-out data.
        made_with: versions of the libraries and the machine, for people.
        started, finished: Unix time in seconds.
        distance: |theta - theta_0|, over what `Gram` measures. None: an older soupray trained it.
    """

    trial: Trial
    checkpoint: CheckpointRef
    tensors: dict[str, Sha256]
    init: Sha256
    best_epoch: int
    history: tuple[EpochRecord, ...]
    held_out: Scores
    logits: BlobRef
    made_with: dict[str, str]
    started: float
    finished: float
    distance: float | None = None


class Tombstone(Record, tag="diverged", frozen=True, kw_only=True):
    """The manifest of a trial that diverged. A trial with a tombstone is not trained again.

    Attributes:
        trial: the trial.
        reason: what happened, in words.
        history: one record for each complete epoch.
        started, finished: Unix time in seconds.
    """

    trial: Trial
    reason: str
    history: tuple[EpochRecord, ...]
    started: float
    finished: float


Manifest = Ingredient | Tombstone


class Freed(Record, frozen=True, kw_only=True):
    """The weights of a trial were let go (`keep` in a spec); its manifest and logits stay.

    It is written before the weights are deleted. It counts as long as the manifest names the same
    weights: a trial that is trained again may get others.

    Attributes:
        trial: key of the trial.
        checkpoint: the weights.
        sweep: name of the sweep that let them go.
        keep: its `keep`, in words.
        at: Unix time in seconds.
    """

    trial: TrialKey
    checkpoint: CheckpointRef
    sweep: str
    keep: str
    at: float


STATISTICS = (".running_mean", ".running_var")
"""Endings of the names of BatchNorm statistics."""


class Pool(Record, frozen=True, kw_only=True):
    """The ingredients of a soup, by descending held-out correct count; ties by trial key.

    Attributes:
        init: theta_0.
        anchor: the weights that soups are compared with.
        ingredients: one for each completed trial.
        anchor_name: the name of the anchor in reports.
    """

    init: CheckpointRef
    anchor: CheckpointRef
    ingredients: tuple[Ingredient, ...]
    anchor_name: str = "zero_shot"

    @property
    def checkpoints(self) -> list[str]:
        """SHA-256 (hex) of each ingredient's weights, in the order of the pool."""
        return [i.checkpoint.sha256 for i in self.ingredients]

    @property
    def moved(self) -> frozenset[str]:
        """SHA-256 (hex) of the checkpoints that have BatchNorm statistics of their own training.

        These are ingredients, and with them theta_0 and the anchor: a soup of them has estimated
        statistics. Empty for models without BatchNorm, and where all ingredients of one theta_0
        have equal statistics, as after linear probes.
        """
        groups: dict[str, list[Ingredient]] = {}
        for ingredient in self.ingredients:
            if any(name.endswith(STATISTICS) for name in ingredient.tensors):
                groups.setdefault(ingredient.init, []).append(ingredient)
        found: set[str] = set()
        for init, group in groups.items():
            kinds = {
                digest({n: d for n, d in i.tensors.items() if n.endswith(STATISTICS)})
                for i in group
            }
            # One ingredient has no other to differ from: only a linear probe keeps theta_0's.
            if len(kinds) > 1 or (len(group) == 1 and group[0].trial.method != "lp"):
                found |= {i.checkpoint.sha256 for i in group}
                found |= (
                    {self.init.sha256, self.anchor.sha256} if init == self.init.sha256 else set()
                )
        return frozenset(found)


def pool_of(basis: Basis, ingredients: list[Ingredient]) -> Pool:
    """A pool of `ingredients` in canonical order, for any order of `ingredients`."""
    ranked = sorted(ingredients, key=lambda i: (-i.held_out.correct, i.trial.key))
    return Pool(
        init=basis.init,
        anchor=basis.anchor,
        ingredients=tuple(ranked),
        anchor_name=basis.anchor_name,
    )
