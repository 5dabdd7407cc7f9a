"""The nouns: frozen records that are logged, stored, hashed and sent between processes.

Nothing here holds a tensor of weights, a client or a model. Every record but `Predictions` is
JSON; `digest` is the SHA-256 of a record's canonical JSON (sorted keys), so that equal records
have equal digests on every machine.
"""

from __future__ import annotations

import base64
import hashlib
import math
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

if TYPE_CHECKING:  # it takes half of the time in which `soupray --help` answers
    import numpy as np
    import numpy.typing as npt

R = TypeVar("R")
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "worst_class", "nll"]
Method = Literal["ft", "lp", "imported"]
Role = Literal["train", "held_out", "rank", "test", "shift"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: immutable, and strict when decoded."""


def encode(record: Any) -> bytes:
    """Canonical JSON of a record, or of plain data."""
    return msgspec.json.encode(record, order="sorted")


def decode(data: bytes, kind: type[R]) -> R:
    """The record of type `kind` in JSON `data`; msgspec.ValidationError names the bad field."""
    return msgspec.json.decode(data, type=kind)


def digest(record: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `record`."""
    return hashlib.sha256(encode(record)).hexdigest()


class Split(Record, frozen=True, kw_only=True):
    """A fixed, ordered set of labelled samples.

    `digest` covers (id, content, label) in order, the label map, the corruption and its seed.
    `label_map` lists, for each class of the split, the model's classes that mean it; None where
    they are the same. `classes` counts the split's own.
    """

    name: str
    role: Role
    digest: str
    size: int
    classes: int
    label_map: tuple[tuple[int, ...], ...] | None = None


class CheckpointRef(Record, frozen=True, kw_only=True):
    """Weights of one model in the store, named by their content."""

    sha256: str
    size_bytes: int


class BlobRef(Record, frozen=True, kw_only=True):
    """Arrays in the store that are not weights, named by their content.

    Logits, features, Fisher information and BatchNorm statistics are such.
    """

    sha256: str
    size_bytes: int


class Basis(Record, frozen=True, kw_only=True):
    """What all trials of a sweep share: the splits, theta_0 (`init`) and the `anchor`.

    `notes` say what was left out of the data, and why.
    """

    key: str
    splits: tuple[Split, ...]
    init: CheckpointRef
    anchor: CheckpointRef
    anchor_name: str = "zero_shot"
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """The split called `name`."""
        return next(s for s in self.splits if s.name == name)

    @property
    def reported(self) -> tuple[Split, ...]:
        """Rank, test and shifts: the splits that nothing may be chosen on."""
        return tuple(s for s in self.splits if s.role in ("rank", "test", "shift"))


class Setting(Record, frozen=True, kw_only=True):
    """How a model is evaluated. All of it changes results, so all of it is in every cache key.

    `inputs` is the digest of what makes inputs of samples: sizes, means, tokenizers.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = 250
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    inputs: str = ""


class Training(Record, frozen=True, kw_only=True):
    """How trials compute. All of it changes low bits of weights, so all of it is in their keys.

    `precision`: bf16 is autocast with a fused optimizer; weights stay float32. `micro_batch`:
    samples a forward pass, where a batch does not fit (None: all of it). `checkpointing`: of
    activations, which takes less memory and more time. `workers`: that train one trial together.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int | None = None
    checkpointing: bool = False
    workers: int = 1


class Trial(Record, frozen=True, kw_only=True):
    """One training run with resolved hyperparameters. `key` names it in the store.

    `metric` chooses its best epoch.
    """

    key: str
    index: int
    sweep: str
    method: Method = "ft"
    hparams: dict[str, float | int | str]
    seed: int
    init: str
    data: tuple[str, ...]
    code: str
    setting: Setting
    training: Training = Training()
    # Left out where it is accuracy: records that are older than it stay what they were.
    metric: Metric | msgspec.UnsetType = msgspec.UNSET


class Scores(Record, tag="scores", frozen=True, kw_only=True):
    """How a model did on one split; `right` packs per sample whether it was right.

    `by_class` counts for each class its samples, how often it was answered, and how often rightly.
    """

    split: str
    n: int
    correct: int
    nll: float
    ece: float
    right: str
    by_class: tuple[tuple[int, int, int], ...]

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly."""
        return self.correct / self.n

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.n)

    def right_mask(self) -> npt.NDArray[np.bool_]:
        """Bool [n]: sample i was classified correctly."""
        return unpack_right(self.right, self.n)


def pack_right(right: npt.NDArray[np.bool_]) -> str:
    """`Scores.right` of a bool array [n]: packed bits in base64."""
    import numpy as np

    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_right(packed: str, n: int) -> npt.NDArray[np.bool_]:
    """The bool array [n] that `pack_right` was given."""
    import numpy as np

    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


class Tally(Record, tag="tally", frozen=True, kw_only=True):
    """A whole count without the rest of the scores: all that a decision needs."""

    n: int
    correct: int
    right: str

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly."""
        return self.correct / self.n


class Rejected(Record, tag="rejected", frozen=True, kw_only=True):
    """A candidate given up early: even if right on all samples left, it stays below `bound`."""

    seen: int
    correct: int
    bound: int


class EpochRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What one epoch of a trial measured. No test or shift metric belongs here.

    `value` is the trial's metric, as a number of which more is better, where it is not accuracy.
    """

    epoch: int
    train_loss: float
    held_out_correct: int
    held_out_n: int
    seconds: float
    value: float | None = None

    @property
    def rank(self) -> float:
        """What epochs, and trials under way, are compared by: more is better."""
        return self.held_out_correct / self.held_out_n if self.value is None else self.value


class Ingredient(Record, tag="complete", frozen=True, kw_only=True):
    """A completed trial's model, as its manifest in the store. Its existence means complete."""

    trial: Trial
    checkpoint: CheckpointRef
    tensors: dict[str, str]
    init: str
    best_epoch: int
    history: tuple[EpochRecord, ...]
    held_out: Scores
    logits: BlobRef
    made_with: dict[str, str]
    started: float
    finished: float


class Tombstone(Record, tag="diverged", frozen=True, kw_only=True):
    """A trial that diverged: recorded in place of a manifest, so that it is not trained again."""

    trial: Trial
    reason: str
    history: tuple[EpochRecord, ...]
    started: float
    finished: float


Manifest = Ingredient | Tombstone


class Pool(Record, frozen=True, kw_only=True):
    """The ingredients of a soup, in descending held-out count, ties by trial key."""

    init: CheckpointRef
    anchor: CheckpointRef
    ingredients: tuple[Ingredient, ...]
    anchor_name: str = "zero_shot"

    @property
    def checkpoints(self) -> list[str]:
        """SHA-256 of the ingredients' weights, in the pool's order."""
        return [i.checkpoint.sha256 for i in self.ingredients]


def pool_of(basis: Basis, ingredients: list[Ingredient]) -> Pool:
    """A pool in canonical order, whatever order `ingredients` come in."""
    ranked = sorted(ingredients, key=lambda i: (-i.held_out.correct, i.trial.key))
    return Pool(
        init=basis.init,
        anchor=basis.anchor,
        ingredients=tuple(ranked),
        anchor_name=basis.anchor_name,
    )


class Evaluation(Record, frozen=True, kw_only=True):
    """A model on a split, as the store keeps it: its scores, and its logits (with the labels)."""

    scores: Scores
    logits: BlobRef


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """A model's logits on one split. Arrays, so never JSON; stored as safetensors.

    logits: [N, C] float32, of all of the model's classes; labels: [N] int64, of the split's.
    """

    split: Split
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
