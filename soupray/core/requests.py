"""Questions about weights. The answers are numbers or references that a recipe may read."""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, TypeVar

from soupray.core.candidates import Candidate, LayerSoup, WeightCandidate
from soupray.core.records import BlobRef, Record

T = TypeVar("T")


class Request(Record, Generic[T], frozen=True, kw_only=True):
    """A question about weights, with an answer of type T that a recipe may read.

    The first field of every request says which weights: a model, a checkpoint, or several.
    """

    answer: ClassVar[object]
    """The type of the answer, for decoding."""

    on_train: ClassVar[bool] = False
    """The answer is about training data. False: about held-out data."""

    kept: ClassVar[bool] = True
    """The answer is stored, so that the same request is not computed again."""

    @property
    def about(self) -> str:
        """SHA-256 (hex) of the request's checkpoint, or of its first one."""
        first = getattr(self, self.__struct_fields__[0])
        if isinstance(first, str):
            return first
        one = first[0] if isinstance(first, tuple) else first
        sha: str = one if isinstance(one, str) else one.checkpoints[0]
        return sha


class Temperature(Request[float], tag="temperature", frozen=True, kw_only=True):
    """The temperature that minimises NLL on held-out data: a convex problem in one dimension."""

    candidate: Candidate
    answer: ClassVar[object] = float
    kept: ClassVar[bool] = False  # quick: a fit to stored logits


class Margins(Request[tuple[float, ...]], tag="margins", frozen=True, kw_only=True):
    """For each sample: the logit of its class minus the largest other logit.

    Attributes:
        checkpoint: SHA-256 (hex) of the model's weights.
        logits: the model's stored logits.
    """

    checkpoint: str
    logits: BlobRef
    answer: ClassVar[object] = tuple[float, ...]
    kept: ClassVar[bool] = False  # quick: computed from stored logits


class Right(Request[str], tag="right", frozen=True, kw_only=True):
    """Which training samples a model gets right, packed as in `Scores.right`.

    The forward pass uses no augmentation. For training data, no logits are stored: only this.
    """

    model: WeightCandidate
    answer: ClassVar[object] = str
    on_train: ClassVar[bool] = True


class Features(Request[BlobRef], tag="features", frozen=True, kw_only=True):
    """A model's normalised features, float32 [n, D], of some training samples.

    Attributes:
        model: the model.
        rows: marks the n samples, as `pack_right` packs a mask.
    """

    model: WeightCandidate
    rows: str
    answer: ClassVar[object] = BlobRef
    on_train: ClassVar[bool] = True


class Embedding(Request[BlobRef], tag="embedding", frozen=True, kw_only=True):
    """A model's features as they are, float32 [n, D], of some samples of any split.

    Attributes:
        model: the model.
        rows: marks the n samples, as `pack_right` packs a mask.
    """

    model: WeightCandidate
    rows: str
    answer: ClassVar[object] = BlobRef


class Nearby(Record, frozen=True, kw_only=True):
    """The losses of models around a soup.

    Attributes:
        beta: 1 / the temperature that minimises the loss of the soup; all logits are times beta.
        losses: mean cross-entropy in nats, of each point.
    """

    beta: float
    losses: tuple[float, ...]


class Surroundings(Request[Nearby], tag="surroundings", frozen=True, kw_only=True):
    """The losses at theta + s d, for a random direction d.

    In each tensor, d has the length of the difference of the two models there.

    Attributes:
        soup: theta.
        ends: SHA-256 (hex) of the two models that give d its length.
        at: the values of s.
        seed: of the draw of d.
    """

    soup: WeightCandidate
    ends: tuple[str, str]
    at: tuple[float, ...]
    seed: int
    answer: ClassVar[object] = Nearby


class FailureSet(Record, frozen=True, kw_only=True):
    """The zero-shot failure (ZSF) set of VRF.

    Attributes:
        features: normalised features, float32 [size, D], in the store. None: the set is empty.
        size: number of samples.
    """

    features: BlobRef | None
    size: int


class Failures(Request[FailureSet], tag="failures", frozen=True, kw_only=True):
    """The training samples that `fine_tuned` gets right and `reference` gets wrong."""

    fine_tuned: WeightCandidate
    reference: WeightCandidate
    answer: ClassVar[object] = FailureSet
    on_train: ClassVar[bool] = True
    kept: ClassVar[bool] = False  # quick: made of the stored answers to `Right` and `Features`


class Distances(Request[tuple[float, ...]], tag="distances", frozen=True, kw_only=True):
    """For each sample: squared L2 distance to its k-th nearest neighbour in a failure set.

    Attributes:
        fine_tuned: the model whose normalised features are compared.
        failures: `FailureSet.features`.
        k: which neighbour, from 1.
    """

    fine_tuned: WeightCandidate
    failures: BlobRef
    k: int
    answer: ClassVar[object] = tuple[float, ...]


Matrix = tuple[tuple[float, ...], ...]
"""The rows of a matrix."""


class Gram(Request[dict[str, Matrix]], tag="gram", frozen=True, kw_only=True):
    """The inner products of all theta_i - theta_0, a matrix [K, K] for each tensor. Uses no data.

    Attributes:
        checkpoints: SHA-256 (hex) of the K models theta_i.
        origin: SHA-256 (hex) of theta_0.
    """

    checkpoints: tuple[str, ...]
    origin: str
    answer: ClassVar[object] = dict[str, Matrix]


class Threshold(Request[float], tag="threshold", frozen=True, kw_only=True):
    """The magnitude that the largest entries of theta_i - theta_0 reach. Uses no data.

    Entries of all trained tensors are ranked together, as in TIES (arXiv:2306.01708).

    Attributes:
        checkpoint: SHA-256 (hex) of theta_i.
        origin: SHA-256 (hex) of theta_0.
        keep: the share of entries that reach it.
    """

    checkpoint: str
    origin: str
    keep: float
    answer: ClassVar[object] = float


class Slope(Record, frozen=True, kw_only=True):
    """The loss at a point, and its derivatives.

    Attributes:
        loss: mean cross-entropy, in nats.
        coefficients: derivative with respect to each coefficient, a row for each group of tensors.
        beta: derivative with respect to beta.
    """

    loss: float
    coefficients: Matrix
    beta: float


class Gradient(Request[Slope], tag="gradient", frozen=True, kw_only=True):
    """The gradient of mean CE(beta * logits) with respect to a soup's coefficients and beta.

    Attributes:
        soup: the soup.
        beta: factor on the logits.
        rows: positions of the held-out samples. Empty: all samples.
    """

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
    """The largest difference between a logit in bfloat16 and in float32.

    Attributes:
        candidate: the model.
        samples: number of held-out samples, evenly spaced.
        logits: the stored float32 logits. None: they are computed.
    """

    candidate: WeightCandidate
    samples: int
    logits: BlobRef | None = None
    answer: ClassVar[object] = float


class Body(Request[str], tag="body", frozen=True, kw_only=True):
    """A digest of all tensors of a checkpoint except the head's.

    Checkpoints with equal digests give equal features.
    """

    checkpoint: str
    answer: ClassVar[object] = str


class TensorNames(Request[tuple[str, ...]], tag="tensor_names", frozen=True, kw_only=True):
    """Names of the floating-point tensors of a checkpoint, sorted."""

    checkpoint: str
    answer: ClassVar[object] = tuple[str, ...]


class Defect(Record, frozen=True, kw_only=True):
    """A reason why one tensor of a checkpoint cannot be averaged.

    Attributes:
        tensor: its name.
        kind: "not_finite": NaN or infinity. "differs": another shape, dtype or name than in
            theta_0. "integer": an integer buffer with other values than in theta_0.
        problem: the reason in words, to follow the tensor's name.
    """

    tensor: str
    kind: Literal["not_finite", "differs", "integer"]
    problem: str


class Health(Request[tuple[Defect, ...]], tag="health", frozen=True, kw_only=True):
    """The tensors of a checkpoint that cannot be averaged. Empty: the checkpoint is fine.

    Attributes:
        checkpoint: SHA-256 (hex) of the weights.
        origin: SHA-256 (hex) of theta_0, whose tensors they are compared with.
    """

    checkpoint: str
    origin: str
    answer: ClassVar[object] = tuple[Defect, ...]


class FileDigest(Request[str], tag="file_digest", frozen=True, kw_only=True):
    """SHA-256 (hex) of the file of a model's weights, as `soupray rebuild` writes it.

    The data do not matter. The model is the one that was evaluated, with its BatchNorm statistics.
    """

    model: WeightCandidate
    answer: ClassVar[object] = str


class Seen(Record, frozen=True, kw_only=True):
    """A model on augmented samples.

    Attributes:
        n: number of samples.
        accuracy: share of them that is right.
        loss: mean cross-entropy, in nats, without label smoothing.
    """

    n: int
    accuracy: float
    loss: float


class Augmented(Request[Seen], tag="augmented", frozen=True, kw_only=True):
    """A model on augmented images of any split.

    Attributes:
        model: the model.
        augmentation: name and value of hyperparameters that augment, sorted by name.
        rows: positions of the samples. Empty: all samples.
        seed: of the draw of the augmentation.
    """

    model: WeightCandidate
    augmentation: tuple[tuple[str, float], ...]
    rows: tuple[int, ...]
    seed: int
    answer: ClassVar[object] = Seen


class Paths(Request[tuple[Matrix, ...]], tag="paths_of_each", frozen=True, kw_only=True):
    """How far the probabilities of models are from those at the start of a path, |p(t) - p(0)|.

    A path is the line between two samples: between their pixels, or between the embeddings of
    their tokens. The answer has a matrix for each model and, for several, one more for the mean
    of their logits; each has a row of `steps` values for each path.

    Attributes:
        models: the models.
        ends: positions of the two samples of each path.
        steps: points on each path, both ends included, evenly spaced.
    """

    models: tuple[WeightCandidate, ...]
    ends: tuple[tuple[int, int], ...]
    steps: int
    answer: ClassVar[object] = tuple[Matrix, ...]


class Losses(Record, frozen=True, kw_only=True):
    """Mean cross-entropy of a model, in nats.

    Attributes:
        clean: to the labels.
        noisy: to the labels with noise.
    """

    clean: float
    noisy: float


class NoisyLabels(Request[Losses], tag="noisy_labels", frozen=True, kw_only=True):
    """The losses of a model to labels with and without noise, on any split.

    Attributes:
        model: the model.
        noise: name and value of the hyperparameters of the noise, sorted by name.
    """

    model: WeightCandidate
    noise: tuple[tuple[str, float], ...]
    answer: ClassVar[object] = Losses
