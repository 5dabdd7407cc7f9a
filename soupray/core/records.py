"""Immutable records that are logged, stored, hashed and sent between processes.

No record contains a tensor of weights, a client or a model. Every record except `Predictions` can
be written as JSON. `digest` is the SHA-256 of a record's canonical JSON (sorted keys): equal
records have equal digests on every machine.
"""

from __future__ import annotations

import base64
import hashlib
import math
import operator
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, cast

import msgspec

from soupray.core.errors import CheckpointError
from soupray.core.names import RecordKey, Sha256

if TYPE_CHECKING:  # the import of numpy would double the time of `soupray --help`
    from soupray.core.arrays import Float64, Labels, Logits, Mask, Units

R = TypeVar("R")
KnownMetric = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "micro_f1",
    "worst_class",
    "nll",
    "map",
    "mae",
    "r2",
    "spearman",
    "iou",
    "dice",
    "pixel_accuracy",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "mrr",
]
SHARES = ("accuracy", "recall_at_1", "recall_at_5", "recall_at_10")
"""Metrics that are the share of samples that are right: recall at k where k is the objective's."""
Metric = str
"""A known metric, or the name of one of the user, as the spec has it."""
Role = Literal["train", "held_out", "proxy", "rank", "test", "shift"]

PROXY = "proxy."
"""How the names of proxy shifts begin, so that none of them has the name of a reported shift."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base class of all records: immutable. Decoding refuses unknown fields."""


def encode(record: Any) -> bytes:
    """Canonical JSON of a record, or of plain data: UTF-8 with sorted keys."""
    return msgspec.json.encode(record, order="sorted")


def encode_pretty(record: object) -> bytes:
    """Indented JSON with keys in the order of the record."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes, kind: type[R]) -> R:
    """The record of type `kind` in the JSON `data`.

    Raises:
        msgspec.MsgspecError: the data are not JSON, or (ValidationError) not such a record. The
            message names the field. No other exception is raised, whatever the data are.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        raise
    # Text that is not UTF-8, a number of thousands of digits, and JSON that is nested too deep.
    except (ValueError, OverflowError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def digest(record: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `record`."""
    return hashlib.sha256(encode(record)).hexdigest()


class Objective(Record, frozen=True, kw_only=True):
    """What the outputs of a model mean, where they are not the logits of one class of several.

    Attributes:
        kind: "multi_label": a sample has any number of the classes, and output c is the logit of
            class c. "regression": output d is target d itself. "segmentation": a sample has a mask,
            and output p is the logit that its pixel p, row by row, belongs to it. "retrieval": a
            sample is a query and its document. The first half of the outputs is the embedding of
            the query, the second half that of the document; its targets are the numbers of both.
        tolerance: of a regression: a sample is right if no output is further than this from its
            target. 0 for the others: for multi_label a sample is right if all its labels are; for
            segmentation its value is its intersection over union.
        side: of segmentation: height and width of images and masks, in pixels. Unset: masks have
            any shape.
        first: of retrieval: a sample is right if its document is among so many of the split's
            documents that are nearest to its query.
        scale: of retrieval: factor on inner products in the loss of held-out data.
    """

    kind: Literal["multi_label", "regression", "segmentation", "retrieval"]
    tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    side: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET
    first: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET
    scale: Annotated[float, msgspec.Meta(gt=0)] | msgspec.UnsetType = msgspec.UNSET


class Split(Record, frozen=True, kw_only=True):
    """A fixed, ordered set of labelled samples.

    Attributes:
        name: unique in a sweep.
        role: what the split is for: train, held-out, proxy shift, rank, ID test or reported shift.
        digest: SHA-256 (hex) over (id, content, label) of the samples in order, the label map, the
            corruption and its seed.
        size: number of samples.
        classes: number of the split's own classes.
        label_map: for each class of the split, the model's classes that mean it. None where both
            have the same classes.
        objective: what the targets are. Unset: one class of several for each sample.
        metric: name and digest of the code of a metric of the user, which `Scores.others` then has.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]*\Z")]
    role: Role
    digest: Sha256
    size: Annotated[int, msgspec.Meta(ge=1)]
    classes: Annotated[int, msgspec.Meta(ge=1)]
    label_map: tuple[tuple[int, ...], ...] | None = None
    objective: Objective | msgspec.UnsetType = msgspec.UNSET
    metric: tuple[str, Sha256] | msgspec.UnsetType = msgspec.UNSET


if TYPE_CHECKING:  # as NewType, on which mypy 2.4 breaks where the base is a Struct

    class SelectionSplit(Split, frozen=True, kw_only=True):
        """A split that choices may depend on, of role train, held_out or proxy.

        `Basis.selection` returns them. To mypy a reported split is none; at run time both are
        records of `Split`.
        """

    class ReportedSplit(Split, frozen=True, kw_only=True):
        """A split that is reported, of role rank, test or shift: `Basis.reported` returns them."""

else:
    SelectionSplit = ReportedSplit = Split


class CheckpointRef(Record, frozen=True, kw_only=True):
    """Reference to the weights of one model in the store, by the digest of their file."""

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class BlobRef(Record, frozen=True, kw_only=True):
    """Reference to other arrays in the store, by the digest of their file.

    These are logits, features, Fisher information or BatchNorm statistics.
    """

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Teacher(Record, frozen=True, kw_only=True):
    """A model whose outputs on the train split the trials of a sweep learn, too.

    Attributes:
        entry: the model, SWEEP:ENTRY of an earlier leaderboard.
        candidate: digest of the model.
        logits: its logits on the train split, [N, C], with the labels.
        passes: forward passes that it needs for one sample.
        scores: by the digest of a split that was reported: its accuracy, and that of the best
            single model of its sweep.
    """

    entry: str
    candidate: Sha256
    logits: BlobRef
    passes: int
    scores: dict[Sha256, tuple[float, float]]


class Basis(Record, frozen=True, kw_only=True):
    """The data and the weights that all trials of a sweep share.

    Attributes:
        key: names the basis in the store.
        splits: all splits of the data.
        init: theta_0, the weights from which every trial starts.
        anchor: the weights that soups are compared with, for example those of the zero-shot model.
        anchor_name: the name of the anchor in reports.
        notes: what was left out of the data, and why.
        shape: of one sample of test in the data cache: [C, H, W], or [L] for texts. Bases from
            before this field have None.
        teacher: the model that the trials learn from. Unset: there is none.
    """

    key: RecordKey
    splits: tuple[Split, ...]
    init: CheckpointRef
    anchor: CheckpointRef
    anchor_name: str = "zero_shot"
    notes: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    teacher: Teacher | msgspec.UnsetType = msgspec.UNSET

    def split(self, name: str) -> Split:
        """The split with this name. Raises CheckpointError if there is none."""
        found = next((s for s in self.splits if s.name == name), None)
        if found is None:
            raise CheckpointError(f"the basis {self.key} has no split {name!r}.")
        return found

    @property
    def selection(self) -> tuple[SelectionSplit, ...]:
        """What recipes choose on: the held-out split, the train split, then the proxy shifts."""
        proxies = [s for s in self.splits if s.role == "proxy"]
        found = (self.split("held_out"), self.split("train"), *proxies)
        return cast("tuple[SelectionSplit, ...]", found)

    @property
    def reported(self) -> tuple[ReportedSplit, ...]:
        """The splits of role rank, test or shift. No choice may depend on them."""
        found = tuple(s for s in self.splits if s.role in ("rank", "test", "shift"))
        return cast("tuple[ReportedSplit, ...]", found)


class Setting(Record, frozen=True, kw_only=True):
    """How a model is evaluated. Every field can change results, so cache keys have all fields.

    Attributes:
        precision: of the weights and of the forward pass.
        batch_size: samples in each forward pass.
        threads: of the CPU, for each process.
        device: where the model runs.
        inputs: digest of the settings that turn samples into inputs: sizes, means, tokenizers.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = 250
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    inputs: str = ""


UNITS = 10_000
"""The value of a sample, from 0 to 1, is a whole number of units of 1 / UNITS: sums are then exact,
in any order. It is in stored records. A hundredth of a percent is a tenth of what is printed."""


class Scores(Record, tag="scores", frozen=True, kw_only=True):
    """The result of a model on one split.

    A sample is right or wrong. With a graded metric it has a value from 0 to 1 instead, in units of
    1 / UNITS.

    Attributes:
        split: digest of the split.
        n: number of samples.
        correct: number of samples that the model gets right: see `Objective`. Of a graded metric:
            the sum of the values, in units.
        nll: mean loss: negative log-likelihood in nats, for multi_label of each label; for
            regression the squared error of each target, for segmentation of each pixel, for
            retrieval that of each query's document among all.
        ece: expected calibration error; 0 for regression, which has none, and for segmentation and
            retrieval.
        right: which samples are correct, as `pack_right` packs them. Of a graded metric: the value
            of each sample, as `pack_units` packs them.
        by_class: for each class: its samples, the predictions of this class, the correct ones.
            Empty for regression, segmentation and retrieval.
        others: metrics that are no count of samples, by name: of another objective than one class,
            and of the user.
        graded: name of the graded metric. Unset: a sample is right or wrong.
    """

    split: Sha256
    n: Annotated[int, msgspec.Meta(ge=1)]
    correct: int
    nll: float
    ece: float
    right: str
    by_class: tuple[tuple[int, int, int], ...]
    others: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    graded: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Refuse (ValueError) counts that contradict each other."""
        check_counts(self)
        if (
            self.others is not msgspec.UNSET or not self.by_class
        ):  # the record has no counts by class
            return
        there, _, rightly = zip(*self.by_class, strict=True)  # quick: status reads thousands
        if (
            sum(there) != self.n
            or sum(rightly) != self.correct
            or min(rightly) < 0
            or any(map(operator.gt, rightly, there))
        ):
            raise ValueError(
                f"by_class does not add up to n = {self.n} and correct = {self.correct}"
            )

    @property
    def most(self) -> int:
        """The largest `correct` that there can be."""
        return self.n * UNITS if self.graded else self.n

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly; of a graded metric the mean value, 0 to 1."""
        return self.correct / self.most

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy: binomial, or that of a mean."""
        if self.graded:
            return float(self.values().std()) / math.sqrt(self.n)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.n)

    def right_mask(self) -> Mask:
        """For each sample, whether the model gets it right. Raises ValueError if it is graded."""
        if self.graded:
            raise ValueError(f"samples have a value of {self.graded} each, and no yes or no")
        return unpack_right(self.right, self.n)

    def values(self) -> Float64:
        """The value of each sample, 0 to 1, [N]: 0 or 1 if it is not graded."""
        if self.graded:
            graded: Float64 = unpack_units(self.right) / UNITS
            return graded
        return self.right_mask().astype(float)


class _Counts(Protocol):
    """What `check_counts` reads of `Scores`, a `Tally`, or a part of one."""

    @property
    def n(self) -> int: ...
    @property
    def correct(self) -> int: ...
    @property
    def right(self) -> str: ...
    @property
    def graded(self) -> str | msgspec.UnsetType: ...


def check_counts(counts: _Counts) -> None:
    """Raise ValueError unless `right` is a mask, or has values, of n samples with sum `correct`."""
    if not counts.graded:
        check_mask(counts.right, counts.n, counts.correct)
        return
    data = base64.b64decode(counts.right, validate=True)
    if len(data) != 2 * counts.n:
        raise ValueError(f"right does not have the values of n = {counts.n} samples")
    values = struct.unpack(f"<{counts.n}H", data)  # quicker than numpy is to import
    if max(values) > UNITS:
        raise ValueError(f"right has the value {max(values)}; a sample has at most {UNITS}")
    if sum(values) != counts.correct:
        raise ValueError(f"correct = {counts.correct}, but the values in right give {sum(values)}")


def check_mask(packed: str, n: int, correct: int) -> None:
    """Raise ValueError unless `packed` is a mask of n samples with `correct` ones in it."""
    bits = base64.b64decode(packed, validate=True)  # its error is a ValueError
    ones = int.from_bytes(bits).bit_count()
    if len(bits) != -(-n // 8) or (len(bits) and bits[-1] & ((1 << -n % 8) - 1)):
        raise ValueError(f"right is not a mask of n = {n} samples")
    if ones != correct:
        raise ValueError(f"correct = {correct}, but right marks {ones} samples")


def pack_right(right: Mask) -> str:
    """A mask as text: packed bits in base64, the form of `Scores.right`."""
    import numpy as np

    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_right(packed: str, n: int) -> Mask:
    """The mask of n samples that `pack_right` packed."""
    import numpy as np

    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=n).astype(bool)


def pack_units(values: Units) -> str:
    """Values in units as text: uint16, the low byte first, in base64."""
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def unpack_units(packed: str) -> Units:
    """The values that `pack_units` packed, [N]."""
    import numpy as np

    return np.frombuffer(base64.b64decode(packed), dtype="<u2").astype(np.uint16)


class Tally(Record, tag="tally", frozen=True, kw_only=True):
    """The correct count on all samples, without the other scores. A decision needs no more.

    Attributes:
        n: number of samples.
        correct, right, graded: as in `Scores`.
    """

    n: Annotated[int, msgspec.Meta(ge=1)]
    correct: int
    right: str
    graded: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Refuse (ValueError) counts that contradict each other."""
        check_counts(self)

    @property
    def most(self) -> int:
        """The largest `correct` that there can be."""
        return self.n * UNITS if self.graded else self.n

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly; of a graded metric the mean value, 0 to 1."""
        return self.correct / self.most


class Rejected(Record, tag="rejected", frozen=True, kw_only=True):
    """A candidate that was given up early: it cannot reach `bound` on the remaining samples.

    Attributes:
        seen: number of samples that were counted.
        correct: number of those that the model gets right, or the sum of their values in units.
        bound: the correct count that was required, likewise.
    """

    seen: int
    correct: int
    bound: int


class Evaluation(Record, frozen=True, kw_only=True):
    """The stored result of a model on a split: scores, and logits with labels."""

    scores: Scores
    logits: BlobRef


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """A model's logits on one split. The arrays are stored as safetensors, not as JSON.

    Attributes:
        split: the split.
        logits: [N, C], with a column for each class of the model; of masks, for each pixel; of
            retrieval two embeddings, [N, 2 D].
        labels: [N], classes of the split; of other objectives targets [N, C]; of retrieval the
            numbers of query and document, [N, 2].
    """

    split: Split
    logits: Logits
    labels: Labels
