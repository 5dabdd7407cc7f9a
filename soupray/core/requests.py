"""Questions about weights whose answers, numbers or references, a recipe may see."""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, TypeVar

from soupray.core.candidates import Candidate, LayerSoup, WeightCandidate
from soupray.core.records import BlobRef, Record

T = TypeVar("T")


class Request(Record, Generic[T], frozen=True, kw_only=True):
    """A question about weights whose answer, of type T, is numbers that a recipe may see.

    The first field says what it is about: a model, a checkpoint, or several.
    """

    answer: ClassVar[object]
    """The type of the answer, for decoding it."""

    on_train: ClassVar[bool] = False
    """Asked of the training data, not of the held-out data."""

    kept: ClassVar[bool] = True
    """Its answer is stored: somebody may ask again."""

    @property
    def about(self) -> str:
        """SHA-256 of the checkpoint that it is about, or of the first of several."""
        first = getattr(self, self.__struct_fields__[0])
        if isinstance(first, str):
            return first
        sha: str = first[0] if isinstance(first, tuple) else first.checkpoints[0]
        return sha


class Temperature(Request[float], tag="temperature", frozen=True, kw_only=True):
    """The temperature that minimises NLL on held-out data (one-dimensional and convex)."""

    candidate: Candidate
    answer: ClassVar[object] = float
    kept: ClassVar[bool] = False  # fitted to the logits, which are stored


class Margins(Request[tuple[float, ...]], tag="margins", frozen=True, kw_only=True):
    """By sample: the logit of its class minus the largest other, from logits that are stored."""

    checkpoint: str
    logits: BlobRef
    answer: ClassVar[object] = tuple[float, ...]
    kept: ClassVar[bool] = False  # read from the logits in no time


class Right(Request[str], tag="right", frozen=True, kw_only=True):
    """Which samples a model gets right, packed as in `Scores.right`. A pass without augmentation.

    Of training data this is all that is kept.
    """

    model: WeightCandidate
    answer: ClassVar[object] = str
    on_train: ClassVar[bool] = True


class Features(Request[BlobRef], tag="features", frozen=True, kw_only=True):
    """A model's features [n, D], normalised, of the samples that `rows` (packed) marks."""

    model: WeightCandidate
    rows: str
    answer: ClassVar[object] = BlobRef
    on_train: ClassVar[bool] = True


class FailureSet(Record, frozen=True, kw_only=True):
    """Normalised features [size, D] of a zero-shot failure (ZSF) set, in the store."""

    features: BlobRef | None
    size: int


class Failures(Request[FailureSet], tag="failures", frozen=True, kw_only=True):
    """The training samples that `fine_tuned` gets right and `reference` wrong."""

    fine_tuned: WeightCandidate
    reference: WeightCandidate
    answer: ClassVar[object] = FailureSet
    on_train: ClassVar[bool] = True
    kept: ClassVar[bool] = False  # it is made of `Right` and `Features`, which are


class Distances(Request[tuple[float, ...]], tag="distances", frozen=True, kw_only=True):
    """Squared L2 distance of each sample to its k-th nearest neighbour in a failure set."""

    fine_tuned: WeightCandidate
    failures: BlobRef
    k: int
    answer: ClassVar[object] = tuple[float, ...]


Matrix = tuple[tuple[float, ...], ...]


class Gram(Request[dict[str, Matrix]], tag="gram", frozen=True, kw_only=True):
    """By tensor: the inner products of all theta_i - theta_0, [K, K]. Uses no data."""

    checkpoints: tuple[str, ...]
    origin: str
    answer: ClassVar[object] = dict[str, Matrix]


class Slope(Record, frozen=True, kw_only=True):
    """Loss at a point, and its derivatives by coefficient (a row for each group) and by beta."""

    loss: float
    coefficients: Matrix
    beta: float


class Gradient(Request[Slope], tag="gradient", frozen=True, kw_only=True):
    """Of mean CE(beta * logits) over `rows` of the held-out data (all, if empty)."""

    soup: LayerSoup
    beta: float
    rows: tuple[int, ...]
    answer: ClassVar[object] = Slope


class Fisher(Request[BlobRef], tag="fisher", frozen=True, kw_only=True):
    """Diagonal Fisher information of a checkpoint over `samples` training samples."""

    checkpoint: str
    samples: int
    answer: ClassVar[object] = BlobRef
    on_train: ClassVar[bool] = True


class Deviation(Request[float], tag="deviation", frozen=True, kw_only=True):
    """The largest difference between a logit in bfloat16 and in float32, on a slice.

    `logits`: those in float32, where they are stored; else they are made.
    """

    candidate: WeightCandidate
    samples: int
    logits: BlobRef | None = None
    answer: ClassVar[object] = float


class Body(Request[str], tag="body", frozen=True, kw_only=True):
    """A digest of all tensors of a checkpoint but its head's: equal ones have the same features."""

    checkpoint: str
    answer: ClassVar[object] = str


class TensorNames(Request[tuple[str, ...]], tag="tensor_names", frozen=True, kw_only=True):
    """Names of the floating-point tensors of a checkpoint, in the model's order."""

    checkpoint: str
    answer: ClassVar[object] = tuple[str, ...]


class Defect(Record, frozen=True, kw_only=True):
    """What is wrong with one tensor of a checkpoint, in words."""

    tensor: str
    kind: Literal["not_finite", "differs", "integer"]
    problem: str


class Health(Request[tuple[Defect, ...]], tag="health", frozen=True, kw_only=True):
    """Whether a checkpoint can be averaged: its tensors against those of `origin`, all finite."""

    checkpoint: str
    origin: str
    answer: ClassVar[object] = tuple[Defect, ...]
