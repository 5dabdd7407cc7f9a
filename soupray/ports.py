"""The protocols between the pure middle and the adapters at the edge."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from soupray.candidates import Candidate, LayerSoup, Step, WeightCandidate
from soupray.records import CheckpointRef, Pool, Record, Rejected, Scores, Split, Tally

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Accept = Literal["ge", "gt"]


class Reached(Record, frozen=True, kw_only=True):
    """Answer of `first_reaching`: results in order, the last one reached the bound if `hit`."""

    results: tuple[Scores | Tally | Rejected, ...]
    hit: bool

    def steps(self, candidates: Sequence[Candidate]) -> list[Step]:
        """The trace of this answer about `candidates`."""
        last = len(self.results) - 1
        return [
            Step(candidate=candidates[i], result=result, accepted=self.hit and i == last)
            for i, result in enumerate(self.results)
        ]


class Hints(NamedTuple):
    """What makes a decision cheap without changing it.

    `order` lists the samples, those that earlier models got wrong first. Where the two largest
    logits in bfloat16 differ by less than `tau`, the sample is run again in float32; None: float32
    only.
    """

    order: tuple[int, ...]
    tau: float | None


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


class Right(Request[str], tag="right", frozen=True, kw_only=True):
    """Which samples a model gets right, packed as in `Scores.right`. A pass without augmentation.

    Of training data this is all that is kept.
    """

    model: WeightCandidate
    answer: ClassVar[object] = str
    on_train: ClassVar[bool] = True


class Features(Request[CheckpointRef], tag="features", frozen=True, kw_only=True):
    """A model's features [n, D], normalised, of the samples that `rows` (packed) marks."""

    model: WeightCandidate
    rows: str
    answer: ClassVar[object] = CheckpointRef
    on_train: ClassVar[bool] = True


class FailureSet(Record, frozen=True, kw_only=True):
    """Normalised features [size, D] of a zero-shot failure (ZSF) set, in the store."""

    features: CheckpointRef | None
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
    failures: CheckpointRef
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
    kept: ClassVar[bool] = False


class Fisher(Request[CheckpointRef], tag="fisher", frozen=True, kw_only=True):
    """Diagonal Fisher information of a checkpoint over `samples` training samples."""

    checkpoint: str
    samples: int
    answer: ClassVar[object] = CheckpointRef
    on_train: ClassVar[bool] = True


class Deviation(Request[float], tag="deviation", frozen=True, kw_only=True):
    """The largest difference between a logit in bfloat16 and in float32, on a slice."""

    candidate: WeightCandidate
    samples: int
    answer: ClassVar[object] = float


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


class Evaluator(Protocol):
    """Scores candidates on a split. Only an evaluator ever holds weights."""

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """Scores of each candidate, in order, from float32 logits."""
        ...

    def first_reaching(
        self,
        candidates: Sequence[Candidate],
        split: Split,
        bound: int,
        accept: Accept,
        hints: Hints | None = None,
    ) -> Reached:
        """The first candidate *in order* whose correct count is >= `bound` (`gt`: > `bound`).

        Returns the results of all candidates up to and including it, equal to those of a plain
        loop whatever runs where; candidates that cannot reach the bound may be `Rejected`.
        """
        ...

    def measure(self, requests: Sequence[Request[T]], split: Split) -> list[T]:
        """Answers to `requests` on `split`, in order."""
        ...

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """The candidate's weights as one checkpoint in the store."""
        ...


class Selection(Protocol):
    """All that a recipe may see: the pool, and held-out data through scores and measures."""

    @property
    def pool(self) -> Pool:
        """The ingredients, best held-out first."""
        ...

    def scores(self, candidates: Sequence[Candidate]) -> list[Scores]:
        """Held-out scores of each candidate, in order."""
        ...

    def value(self, result: Scores | Tally | Rejected) -> float:
        """The metric that is selected by, as a number of which more is better."""
        ...

    def first_reaching(
        self, candidates: Sequence[Candidate], bound: float, accept: Accept
    ) -> Reached:
        """The first candidate in order whose value is >= `bound` (`gt`: > `bound`)."""
        ...

    def measure(self, requests: Sequence[Request[T]]) -> list[T]:
        """See `Evaluator.measure`, on held-out data or, where the request says so, on train."""
        ...


class Task(Protocol):
    """What is learnt: an architecture, its initial weights, and how samples become inputs."""

    def model(self) -> torch.nn.Module:
        """A new module with unspecified weights.

        It has `features(inputs) -> [N, D]` (penultimate) and `head(features) -> [N, C]`, and its
        forward is the one after the other: inputs to logits.
        """
        ...

    def init(self) -> dict[str, torch.Tensor]:
        """Initial weights, head included: a full state dict of `model()`.

        They are theta_0, or what its training starts from. What is not pre-trained is drawn from
        torch's global generator.
        """
        ...

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Model inputs, float32 or token ids, of raw samples as the data cache holds them."""
        ...

    def adopt(self, weights: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
        """Somebody else's checkpoint of the same architecture, as a state dict of `model()`.

        Raises IncompatibleWeights, which names `where` and the first tensor that does not fit.
        """
        ...

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> str:
        """Write a state dict of `model()` as the library stores it; returns how it is loaded."""
        ...


class TrackedRun(Record, frozen=True, kw_only=True):
    """One row of the experiment tracker, with everything on it."""

    key: str
    kind: Literal["sweep", "trial", "entry"]
    name: str
    parent: str | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, tuple[tuple[int, float], ...]]
    started: float
    finished: float | None
    failed: bool = False


class Champion(Record, frozen=True, kw_only=True):
    """The best soup, for a registry of models: where its weights are, and what made them."""

    model: str
    entry: str
    candidate: str
    weights: str
    sha256: str
    size_bytes: int


class Tracker(Protocol):
    """An index of what the store holds; it can be deleted and written again."""

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Create or complete `runs`, parents first. Idempotent by `TrackedRun.key`."""
        ...

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Attach local files to the run with this key, under their own names."""
        ...

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Remove the runs of this `TrackedRun.kind` whose key is not among `keys`."""
        ...

    def register(self, champion: Champion) -> None:
        """Make it the model's champion; a new version only if this candidate has none yet."""
        ...
