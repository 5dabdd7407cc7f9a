"""The protocols between the pure middle and the adapters at the edge."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from soupray.records import (
    Candidate,
    CheckpointRef,
    Pool,
    Predictions,
    Record,
    Rejected,
    Scores,
    Split,
)

if TYPE_CHECKING:
    import torch

Accept = Literal["ge", "gt"]


class Reached(Record, frozen=True, kw_only=True):
    """Answer of `first_reaching`: results in order, the last one reached the bound if `hit`."""

    results: tuple[Scores | Rejected, ...]
    hit: bool


class Evaluator(Protocol):
    """Scores candidates on a split. Only an evaluator ever holds weights."""

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """Scores of each candidate, in order."""
        ...

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """Logits of one candidate on every sample of `split`."""
        ...

    def first_reaching(
        self, candidates: Sequence[Candidate], split: Split, bound: int, accept: Accept
    ) -> Reached:
        """The first candidate *in order* whose correct count is >= `bound` (`gt`: > `bound`).

        Returns the results of all candidates up to and including it, equal to those of a plain
        loop whatever runs where; candidates that cannot reach the bound may be `Rejected`.
        """
        ...

    def save(self, candidate: Candidate) -> CheckpointRef:
        """The candidate's weights as one checkpoint in the store."""
        ...


class Selection(Protocol):
    """All that a recipe may see: the pool, and scores on held-out data. No split is named."""

    @property
    def pool(self) -> Pool:
        """The ingredients, best held-out first."""
        ...

    def scores(self, candidates: Sequence[Candidate]) -> list[Scores]:
        """Held-out scores of each candidate, in order."""
        ...

    def first_reaching(
        self, candidates: Sequence[Candidate], bound: int, accept: Accept
    ) -> Reached:
        """See `Evaluator.first_reaching`, on held-out data."""
        ...


class Task(Protocol):
    """What is learnt: an architecture, its initial weights, and how samples become inputs."""

    def model(self) -> torch.nn.Module:
        """A new module with unspecified weights, whose forward maps inputs to logits [N, C]."""
        ...

    def init(self) -> dict[str, torch.Tensor]:
        """theta_0, head included: a full state dict of `model()`."""
        ...

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Model inputs, float32, of raw samples as the data cache holds them."""
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
