"""The protocols between the pure middle and the adapters at the edge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from soupray.core.candidates import Candidate, Step, WeightCandidate
from soupray.core.records import CheckpointRef, Pool, Record, Rejected, Scores, Split, Tally
from soupray.core.requests import Request

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

    `order` lists all samples, those that the candidate is expected to get wrong first. Where the
    two largest logits in bfloat16 differ by less than `tau`, the sample is run again in float32;
    None: float32 only.
    """

    order: Callable[[WeightCandidate], tuple[int, ...]]
    tau: float | None


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
