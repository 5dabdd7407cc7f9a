"""Protocols between the code without side effects and the adapters: store, data, models, MLflow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from soupray.core.candidates import Candidate, Step, WeightCandidate
from soupray.core.names import Quotable, Sha256
from soupray.core.records import CheckpointRef, Record, Rejected, Scores, Split, Tally
from soupray.core.requests import Request
from soupray.core.trials import Pool

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
UNKNOWN = "unknown"
"""The licence of weights whose metadata name none."""
Accept = Literal["ge", "gt"]


class Reached(Record, frozen=True, kw_only=True):
    """Answer of `first_reaching`.

    Attributes:
        results: a result for each candidate that was tried, in order.
        hit: the candidate of the last result reached the bound; no earlier candidate did.
    """

    results: tuple[Scores | Tally | Rejected, ...]
    hit: bool

    def steps(self, candidates: Sequence[Candidate]) -> list[Step]:
        """The steps of a recipe's trace: one for each result.

        Args:
            candidates: those that `first_reaching` was called with.
        """
        last = len(self.results) - 1
        return [
            Step(candidate=candidates[i], result=result, accepted=self.hit and i == last)
            for i, result in enumerate(self.results)
        ]


class Hints(NamedTuple):
    """Hints that make a decision faster. They do not change the decision.

    Attributes:
        order: a candidate's samples in the order of evaluation. The samples that the candidate
            probably gets wrong come first.
        tau: a sample runs in bfloat16 first. If its two largest logits differ by less than tau, it
            runs again in float32. None: all samples run in float32 only.
    """

    order: Callable[[WeightCandidate], tuple[int, ...]]
    tau: float | None


class Evaluator(Protocol):
    """Scores candidates on a split. No other port handles the weights of a candidate."""

    def fill(self, candidates: Sequence[Candidate], splits: Sequence[Split]) -> None:
        """Evaluate candidates on several splits, where no result is stored; each is loaded once."""
        ...

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """The scores of each candidate, in the order of `candidates`, from float32 logits."""
        ...

    def first_reaching(
        self,
        candidates: Sequence[Candidate],
        split: Split,
        bound: int,
        accept: Accept,
        hints: Hints | None = None,
    ) -> Reached:
        """Find the first candidate, in the given order, whose correct count reaches `bound`.

        Args:
            candidates: the candidates, in order.
            split: the samples that are counted.
            bound: a number of samples; of a graded metric a sum of values, in units.
            accept: "ge": the count must be at least `bound`. "gt": it must be larger.
            hints: an order of the samples and a margin, which save time.

        Returns:
            The results of all candidates up to the first hit. They are equal to the results of a
            plain loop, for any number of workers. A candidate that can no longer reach the bound
            may be `Rejected` before all samples are counted.
        """
        ...

    def measure(self, requests: Sequence[Request[T]], split: Split) -> list[T]:
        """The answer to each request on `split`, in the order of `requests`."""
        ...

    def save(self, candidate: WeightCandidate) -> CheckpointRef:
        """Store the candidate's weights as one checkpoint, and return its reference."""
        ...


class Selection(Protocol):
    """What a recipe may use: the pool, and held-out data only through scores and measures.

    Proxy shifts are changed copies of the held-out data, and never of a kind that is reported.
    """

    @property
    def pool(self) -> Pool:
        """The ingredients, the best on held-out data first."""
        ...

    def scores(self, candidates: Sequence[Candidate]) -> list[Scores]:
        """The held-out scores of each candidate, in the order of `candidates`."""
        ...

    def proxy_scores(self, candidates: Sequence[Candidate]) -> list[dict[str, Scores]]:
        """The scores of each candidate on each proxy shift, by its name in the spec."""
        ...

    def excess(self, results: Sequence[Scores], confidence: float) -> list[float]:
        """The most by which the loss of each model may exceed that of the best of them.

        See `maths.excess.excess_bounds`.

        Args:
            results: held-out scores of several models.
            confidence: the probability with which all bounds hold together.
        """
        ...

    def value(self, result: Scores | Tally | Rejected) -> float:
        """The selection metric of a result, as a number where larger is better."""
        ...

    def first_reaching(
        self, candidates: Sequence[Candidate], bound: float, accept: Accept
    ) -> Reached:
        """Find the first candidate, in the given order, whose value reaches `bound`.

        Args:
            candidates: the candidates, in order.
            bound: a value as `value` returns it.
            accept: "ge": the value must be at least `bound`. "gt": it must be larger.

        Returns:
            The results of all candidates up to the first hit, as `Evaluator.first_reaching` does.
        """
        ...

    def measure(self, requests: Sequence[Request[T]]) -> list[T]:
        """The answer to each request, in the order of `requests`.

        A request with `on_train` is about training data, every other one about held-out data.
        """
        ...


class Origin(Record, frozen=True, kw_only=True):
    """The pre-trained weights of a task, and their licence. It is read, never guessed.

    Attributes:
        name: as the spec writes it.
        hub: the name of the model on the hub of Hugging Face; None: it is not from there, or it is
            not known.
        licence: as the metadata of the weights name it, or UNKNOWN.
        read_from: the metadata; empty for UNKNOWN.
    """

    name: str
    hub: str | None = None
    licence: str = UNKNOWN
    read_from: str = ""


class Task(Protocol):
    """An architecture, its initial weights, and the way from samples to model inputs."""

    def model(self) -> torch.nn.Module:
        """A new module. The values of its weights are not defined.

        The module has two methods: `features(inputs)` returns the penultimate layer, [N, D], and
        `head(features)` returns logits, [N, C]. `forward` applies one after the other.
        """
        ...

    def init(self) -> dict[str, torch.Tensor]:
        """Initial weights, with the head: a full state dict of `model()`.

        They are theta_0, or the start of theta_0's training. Weights that are not pre-trained are
        drawn from torch's global generator.
        """
        ...

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Model inputs for samples of the data cache.

        Args:
            samples: images [N, C, H, W] with values from 0 to 255, or texts [N, L] uint8.

        Returns:
            float32 images, or int64 token ids, in the shape that the model reads.
        """
        ...

    def adopt(
        self, weights: dict[str, torch.Tensor], where: str, named: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Convert a checkpoint of other software to a state dict of `model()`.

        Args:
            weights: a checkpoint of the same architecture, with the names of its own library.
            where: the file that error messages name.
            named: names of the classes of the checkpoint's head, in the order of its rows. The rows
                of the result are in the order of the task's classes. None: they are in that order.

        Raises:
            IncompatibleWeights: a tensor does not fit, or the classes are others. The message names
                `where` and the first such tensor, or the classes.
        """
        ...

    def write_files(self, folder: Path) -> None:
        """Write the files without which `model()` and `inputs` do not work.

        These are no weights. `tasks.reads_from` returns the spec that reads them. A task that needs
        none writes nothing.

        Args:
            folder: where the files go; it need not exist.
        """
        ...

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> str:
        """Write a folder that the model's library loads: weights, config, class names, inputs.

        Args:
            weights: a full state dict of `model()`.
            folder: where the files go.

        Returns:
            A Python expression that loads the model from `folder`.
        """
        ...

    def example(self) -> str:
        """Python code that classifies one input with the library alone.

        It reads an exported folder, which is the current one, and prints the name of a class.
        """
        ...

    def origin(self) -> Origin | None:
        """The pre-trained weights with which `init` starts. None: all its weights are drawn."""
        ...


class Seen(NamedTuple):
    """A point of a search that was suggested, and what became of it.

    Attributes:
        point: one number in [0, 1) for each dimension.
        score: the metric on held-out data, of which more is better (the negative of an NLL); the
            worst value if the trial diverged; None if it runs, was stopped or failed.
    """

    point: tuple[float, ...]
    score: float | None


class Sampler(Protocol):
    """Suggests the next point of a search from those before it. It keeps no state."""

    def __call__(
        self, seen: Sequence[Seen], dimensions: Sequence[str], seed: int
    ) -> Sequence[float]:
        """Return one number in [0, 1) for each dimension.

        Args:
            seen: all points before this one, in order.
            dimensions: the hyperparameters that vary.
            seed: another one for each point.
        """
        ...


CURRENT = "soupray.current"
"""Tag of a run: "no" for an entry of an earlier leaderboard than the newest, else "yes"."""


class TrackedRun(Record, frozen=True, kw_only=True):
    """One run of the experiment tracker, with all that it shows.

    Attributes:
        key: names the run: a second write with this key completes the same run.
        kind: a sweep, a trial of it, or an entry of its leaderboard.
        name: the name that people see.
        parent: the key of the run above it, or None.
        params, tags, metrics: as MLflow shows them.
        curves: (step, value) pairs by metric.
        started, finished: Unix time in seconds. `finished` is None while the run goes on.
        failed: the run ended without a result.
        note: what the page of the run says above all else, in Markdown.
        links: (text, key) of runs that the note names at its end.
    """

    key: Quotable
    kind: Literal["sweep", "trial", "entry"]
    name: str
    parent: Quotable | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, tuple[tuple[int, float], ...]]
    started: float
    finished: float | None
    failed: bool = False
    note: str = ""
    links: tuple[tuple[str, Quotable], ...] = ()


class Registered(Record, frozen=True, kw_only=True):
    """The champion of a leaderboard, for a registry of models.

    Attributes:
        model: name of the registered model.
        entry: key of the leaderboard entry.
        candidate: digest of the candidate.
        weights: address of the weights; None for an ensemble, which has several models.
        sha256: of the weights, hex; None for an ensemble.
        size_bytes: of all models that inference needs.
        recipe: address of the recipe file in the store; None in records of older versions.
        description: the verdict, for people; empty in records of older versions.
    """

    model: Quotable
    entry: Quotable
    candidate: Sha256
    weights: str | None
    sha256: Sha256 | None
    size_bytes: int
    recipe: str | None = None
    description: str = ""


class Deployable(NamedTuple):
    """The champion as a registry keeps it: files from which it can be loaded, and what it reads.

    Attributes:
        write: writes the model folder at a path.
        reads: name of the one column of its inputs.
        example: a value of this column.
        answers: the columns of its predictions, with the type of each.
        params: what may be asked of it, with the values that are taken otherwise.
        requirements: what pip has to install.
        facts: what else to note about the model, as JSON can have it.
    """

    write: Callable[[Path], None]
    reads: Literal["image", "text"]
    example: bytes | str
    answers: dict[str, type]
    params: dict[str, int | bool]
    requirements: list[str]
    facts: dict[str, object]


class Tracker(Protocol):
    """An index of the results in the store. It can be deleted and written again."""

    def write(self, runs: Sequence[TrackedRun]) -> None:
        """Create or complete `runs`, parents first. A second call with equal runs has no effect."""
        ...

    def attach(self, key: str, files: Sequence[Path]) -> None:
        """Attach local files to the run with this key, under their own names."""
        ...

    def keep(self, kind: str, keys: Collection[str]) -> None:
        """Remove the runs of this `TrackedRun.kind` whose key is not in `keys`."""
        ...

    def register(self, champion: Registered, model: Deployable) -> None:
        """Make `champion` the champion of its registered model.

        A new version is created only if this candidate has no version yet.
        """
        ...
