"""A measure: one object that says what is measured, of what, at which cost, and how it is read.

To add one: a file in this folder with a record of the numbers, a function from `Inputs` to this
record, a function from the record to what is
shown, and one object `NAME = Measure(...)`; the object
goes into `MEASURES`. The verb, the dry run, the store, the report and the figures read the object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from msgspec import UNSET

from soupray.core.arrays import Float32, Mask
from soupray.core.candidates import Candidate, WeightCandidate, mean_of
from soupray.core.errors import SouprayError
from soupray.core.records import Basis, Predictions, Record, Scores, Split
from soupray.core.requests import Request
from soupray.core.trials import Pool
from soupray.diagnostics.annotations import Annotations
from soupray.diagnostics.baseline import Baseline
from soupray.maths.metrics import right_mask
from soupray.recipes.recipe import ONE_CLASS
from soupray.reporting.ranking import Entry
from soupray.reporting.sections import Figure, Gallery, Section, Table
from soupray.spec.sweep_spec import SweepSpec

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class CannotMeasure(SouprayError):
    """A measure does not apply to this pool. It is left out, and the others go on."""


class Answers(Protocol):
    """What a measure reads of models: everything here is a function of frozen choices.

    `StoredEvaluator` is one. There is no way from here to a recipe, a choice or the store.
    """

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        """The scores of each model on `split`."""
        ...

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        """The logits of a model or an ensemble on `split`, with the labels."""
        ...

    def measure(self, requests: Sequence[Request[T]], split: Split) -> list[T]:
        """The answer to each request on `split`."""
        ...

    def features(self, model: WeightCandidate, rows: Mask, split: Split) -> Float32:
        """The features [n, D] of a model on the samples of `split` that `rows` marks."""
        ...


LONGEST = 300
"""Characters of a text that are shown."""


class Picture(Record, frozen=True, kw_only=True):
    """A sample, as people see it.

    Attributes:
        image: a `data:` URL of a PNG; empty for a text.
        text: the text, cut to LONGEST characters; empty for an image.
    """

    image: str = ""
    text: str = ""


class Samples(Protocol):
    """What people can see of a split."""

    def ids(self, split: Split) -> list[str]:
        """The ids of its samples in their source, in order."""
        ...

    def pictures(self, split: Split, rows: Sequence[int]) -> list[Picture]:
        """The samples of these rows."""
        ...


class NoSamples:
    """What people can see where there is no data set, as in tests of measures that need none."""

    def ids(self, split: Split) -> list[str]:
        """Raise CannotMeasure."""
        raise CannotMeasure(f"the samples of {split.name} are not here")

    def pictures(self, split: Split, rows: Sequence[int]) -> list[Picture]:
        """Raise CannotMeasure."""
        raise CannotMeasure(f"the samples of {split.name} are not here")


class Board(NamedTuple):
    """The newest leaderboard: its choices were stored before test and shifts were used.

    Attributes:
        key: of the run of `soup`.
        entries: best first.
        models: the model of each entry, by its name, in the order of `entries`.
        champion: name of the entry to take.
    """

    key: str
    entries: tuple[Entry, ...]
    models: Mapping[str, Candidate]
    champion: str

    def each(self) -> dict[str, Candidate]:
        """Return the models without repetition: of equal models, the first name."""
        first: dict[Candidate, str] = {}
        for name, model in self.models.items():
            first.setdefault(model, name)
        return {name: model for model, name in first.items()}


class Options(NamedTuple):
    """What the user asks of the measures.

    Attributes:
        pairs: largest number of pairs of models that are evaluated; a seeded sample.
        baseline: accuracies of standard models; None: the pool's own trials.
        annotations: what people say of test samples; None: there are only labels.
    """

    pairs: int = 20
    baseline: Baseline | None = None
    annotations: Annotations | None = None


class Needed(NamedTuple):
    """What a measure needs from workers, which the frame computes before the measure runs.

    Attributes:
        models: (models, split): their logits.
        requests: (request, split, number of samples that models see for it).
        unlisted: the same of requests that only the answers to others make known, at most.
        others: the same of the models of other specs, in the order of `Inputs.others`.
    """

    models: tuple[tuple[Sequence[Candidate], Split], ...] = ()
    requests: tuple[tuple[Request[Any], Split, int], ...] = ()
    unlisted: int = 0
    others: tuple[Needed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a measure may see.

    Attributes:
        spec: of the sweep.
        pool: the trials.
        basis: the splits.
        board: the newest leaderboard; None before the first soup. Only measures that are for
            pools without one (`Measure.after_soup`) need to look.
        answers: of the models.
        options: what the user asked for.
        samples: what people can see of the splits.
        slices: names of samples by the name of their slice, from the spec.
        others: the same of other specs whose models are compared with these.
    """

    spec: SweepSpec
    pool: Pool
    basis: Basis
    board: Board | None
    answers: Answers
    options: Options = field(default_factory=Options)
    samples: Samples = field(default_factory=NoSamples)
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[Inputs, ...] = ()

    @property
    def held_out(self) -> Split:
        """The split on which everything was chosen."""
        return self.basis.split("held_out")

    @property
    def test(self) -> Split:
        """ID test."""
        return self.basis.split("test")

    @property
    def shifts(self) -> tuple[Split, ...]:
        """The splits of role shift."""
        return tuple(s for s in self.basis.reported if s.role == "shift")

    @property
    def trials(self) -> dict[str, Candidate]:
        """The single models as trained, by the key of the trial, best on held-out data first."""
        return {i.trial.key: mean_of([i.checkpoint.sha256]) for i in self.pool.ingredients}

    def right(self, models: Sequence[Candidate], split: Split) -> list[Mask]:
        """Return which samples of a split each model gets right.

        With a graded metric its scores do not say it, and its answers do.

        Args:
            models: the models.
            split: the samples.
        """
        return [
            right_mask(self.answers.predictions(model, split))
            if scores.graded
            else scores.right_mask()
            for model, scores in zip(models, self.answers.scores(models, split), strict=True)
        ]

    @property
    def frozen(self) -> Board:
        """The newest leaderboard. Raises CannotMeasure if there is none."""
        if self.board is None:
            raise CannotMeasure("there is no leaderboard yet: run `soupray soup` first")
        return self.board


class Shown(NamedTuple):
    """How the numbers of a measure are read.

    Attributes:
        sentences: what they say.
        tables: the numbers.
        figures: the same numbers as pictures.
        galleries: samples, for the report.
    """

    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measure(Generic[R]):
    """One measure of the models of a sweep.

    Attributes:
        name: names it on the command line, in JSON and in the report.
        title: heading of its section.
        summary: what it says, in one line.
        paper: source.
        record: type of its numbers, which are stored.
        compute: from what exists to the numbers. It may raise CannotMeasure.
        show: from the numbers to sentences, tables and figures.
        about: what is measured, in words, for one who does not know the paper.
        needs: what workers compute first, stored answers included; the dry run counts the others.
        depends: on what the numbers depend besides pool, leaderboard, splits and setting: options
            and the like, as data for a digest.
        cannot: why it does not apply, known without computing; None if it does.
        objectives: what the targets of a pool may be.
        after_soup: it reads the newest leaderboard, and test and shifts.
        least: number of trials that it needs at least.
        version: raised when its numbers change.
    """

    name: str
    title: str
    summary: str
    paper: str
    about: str
    record: type[R]
    compute: Callable[[Inputs], R]
    show: Callable[[R], Shown]
    needs: Callable[[Inputs], Needed] = lambda inputs: Needed()
    depends: Callable[[Inputs], object] = lambda inputs: None
    cannot: Callable[[Inputs], str | None] = lambda inputs: None
    objectives: tuple[str, ...] = (ONE_CLASS,)
    after_soup: bool = True
    least: int = 1
    version: int = 1

    def section(self, numbers: R) -> Section:
        """Return the section of the report, which a terminal prints too."""
        shown = self.show(numbers)
        return Section(
            name=self.name,
            title=self.title,
            about=f"{self.about} Source: {self.paper}.",
            sentences=shown.sentences,
            tables=shown.tables,
            figures=shown.figures,
            galleries=shown.galleries,
        )

    def left_out(self, inputs: Inputs) -> str | None:
        """Return why the measure does not apply to `inputs`, or None if it does."""
        objective = inputs.held_out.objective
        kind = ONE_CLASS if objective is UNSET else objective.kind
        if kind not in self.objectives:
            return f"it is for {' and '.join(self.objectives)}; the targets here are of {kind}"
        if self.after_soup and inputs.board is None:
            return "there is no leaderboard yet: run `soupray soup` first"
        if len(inputs.pool.ingredients) < self.least:
            return (
                f"the pool has {len(inputs.pool.ingredients)} ingredient: there is nothing to "
                "compare it to"
            )
        return self.cannot(inputs)
