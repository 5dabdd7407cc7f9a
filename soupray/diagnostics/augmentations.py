"""Affinity and Diversity of augmentations: which ones make good ingredients?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from soupray.core.candidates import WeightCandidate, mean_of
from soupray.core.hyperparameters import TABLE
from soupray.core.records import Record
from soupray.core.requests import Augmented, Seen
from soupray.core.trials import Ingredient
from soupray.diagnostics.figures import Axis, dots, figure, grid, level
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.associations import association
from soupray.reporting.notes import p_value, percent
from soupray.reporting.sections import Figure, Table
from soupray.spec.space import Dimension

NAMES = ("rotation", "shift", "crop", "flip", "randaugment")
"""Hyperparameters that augment one image at a time, in the order of training. mixup joins two."""

ALONG = {"randaugment": ("randaugment_ops",)}
"""Hyperparameters that say how another one augments."""

OFF = {row.name: row.default for row in TABLE}

MOST_TRAIN = 2000
"""Training samples on which Diversity is measured; evenly spaced where there are more."""

SEED = 0
"""Of the draw of augmentations: all models see the same images of one mixture."""

Values = tuple[tuple[str, float], ...]


class Alone(Record, frozen=True, kw_only=True):
    """An augmentation of the search space alone, at its largest value.

    Attributes:
        name: of the hyperparameter.
        value: the value.
        affinity: accuracy of the reference on augmented held-out data minus that on clean ones.
        ratio: the first over the second (the paper's later definition).
        with_it: trials that use it, without_it: those that do not.
        accuracy: mean held-out accuracies of both groups; None where a group is empty.
        share: of both groups, the share of trials that the greedy soup took; None as well.
    """

    name: str
    value: float
    affinity: float
    ratio: float
    with_it: int
    without_it: int
    accuracy: tuple[float | None, float | None]
    share: tuple[float | None, float | None] | None


class Mixture(Record, frozen=True, kw_only=True):
    """All augmentations of a trial together.

    Attributes:
        trial: its key.
        augmentation: name and value of what it uses.
        affinity: as in `Alone`.
        ratio: as in `Alone`.
        diversity: loss of the trial on its augmented training data over the loss of the reference
            on clean ones, both without label smoothing; None without a reference that was trained.
        accuracy: held-out accuracy of the trial.
        coefficients: what each recipe gave it, by the name of the entry.
    """

    trial: str
    augmentation: dict[str, float]
    affinity: float
    ratio: float
    diversity: float | None
    accuracy: float
    coefficients: dict[str, float]


class Together(Record, frozen=True, kw_only=True):
    """How a number of the trials goes together with another one: Spearman, permutation test."""

    of: str
    what: str
    rho: float
    p: float
    n: int


class Augmentations(Record, frozen=True, kw_only=True):
    """Affinity and Diversity in a pool.

    Attributes:
        reference: the trial without augmentation, or theta_0.
        trained: the reference is a trial.
        n: held-out samples.
        train: training samples on which losses are measured.
        accuracy: of the reference on clean held-out data.
        alone: each augmentation of the search space.
        trials: best on held-out data first.
        together: correlations over the trials.
    """

    reference: str
    trained: bool
    n: int
    train: int
    accuracy: float
    alone: tuple[Alone, ...]
    trials: tuple[Mixture, ...]
    together: tuple[Together, ...]


class _Reference(NamedTuple):
    name: str
    model: WeightCandidate
    trained: bool


def augmentation_of(hparams: Mapping[str, float | int | str]) -> Values:
    """Return name and value of what augments single images, without what is off."""
    found = {n: float(hparams[n]) for n in NAMES if hparams.get(n, OFF[n]) != OFF[n]}
    more = {m: float(hparams[m]) for n in found for m in ALONG.get(n, ()) if m in hparams}
    return tuple(sorted((found | more).items()))


class _Found:
    """What workers answered, and the two numbers that follow."""

    def __init__(self, inputs: Inputs, reference: _Reference) -> None:
        asked = _asked(inputs)
        self._reference, self._rows = reference, _rows(inputs)
        self._held_out, self._train = (
            dict(zip(part, _answers(inputs, part, split), strict=True))
            for part, split in ((asked.held_out, "held_out"), (asked.train, "train"))
        )
        self.clean = self._held_out[_on_held_out(reference.model, ())]

    def affinity(self, values: Values) -> tuple[float, float]:
        """The difference and the ratio of the reference's accuracies; 1 where both are 0."""
        seen = self._held_out[_on_held_out(self._reference.model, values)].accuracy
        ratio = seen / self.clean.accuracy if self.clean.accuracy else 1.0
        return seen - self.clean.accuracy, ratio

    def diversity(self, model: WeightCandidate, values: Values) -> float | None:
        """The ratio of losses on training data; None without a trained reference."""
        if not self._reference.trained:
            return None
        hard = self._train[_on_train(model, values, self._rows)].loss
        easy = self._train[_on_train(self._reference.model, (), self._rows)].loss
        return hard / easy if easy else None


def measure_augmentations(inputs: Inputs) -> Augmentations:
    """Return Affinity and Diversity of each augmentation and of each trial's mixture."""
    reference, coefficients = _reference(inputs), _coefficients(inputs)
    found = _Found(inputs, reference)
    mixtures = []
    for one in inputs.pool.ingredients:
        values = augmentation_of(one.trial.hparams)
        difference, ratio = found.affinity(values)
        mixtures.append(
            Mixture(
                trial=one.trial.key,
                augmentation=dict(values),
                affinity=difference,
                ratio=ratio,
                diversity=found.diversity(_model(one), values),
                accuracy=one.held_out.accuracy,
                coefficients={name: given[one.trial.key] for name, given in coefficients.items()},
            )
        )
    return Augmentations(
        reference=reference.name,
        trained=reference.trained,
        n=found.clean.n,
        train=len(_rows(inputs)) or inputs.basis.split("train").size,
        accuracy=found.clean.accuracy,
        alone=tuple(
            _alone(name, value, found.affinity(_single(inputs, name, value)), mixtures)
            for name, value in _largest(inputs).items()
        ),
        trials=tuple(mixtures),
        together=tuple(_together(mixtures, inputs.spec.seed)),
    )


def _model(one: Ingredient) -> WeightCandidate:
    return mean_of([one.checkpoint.sha256])


def _reference(inputs: Inputs) -> _Reference:
    """Return the best trial without augmentation; theta_0 if there is none."""
    for one in inputs.pool.ingredients:
        if not augmentation_of(one.trial.hparams) and not one.trial.hparams.get("mixup"):
            return _Reference(f"trial {one.trial.key[:8]}", _model(one), True)
    return _Reference("theta_0", mean_of([inputs.pool.init.sha256]), False)


def _largest(inputs: Inputs) -> dict[str, float]:
    """Return each augmentation of the search space with its strongest value."""
    space, found = inputs.spec.search.space, {}
    for name in NAMES:
        entry = getattr(space, name)
        ends = entry.ends() if isinstance(entry, Dimension) else (entry,)
        numbers = [float(v) for v in ends if not isinstance(v, str)]
        strongest = min(numbers) if name == "crop" else max(numbers)
        if strongest != OFF[name]:
            found[name] = strongest
    return found


def _single(inputs: Inputs, name: str, value: float) -> Values:
    more = {}
    for other in ALONG.get(name, ()):
        entry = getattr(inputs.spec.search.space, other)
        more[other] = float(max(entry.ends()) if isinstance(entry, Dimension) else entry)
    return tuple(sorted({name: value, **more}.items()))


class _Asked(NamedTuple):
    held_out: list[Augmented]
    train: list[Augmented]


def _on_held_out(model: WeightCandidate, values: Values) -> Augmented:
    return Augmented(model=model, augmentation=values, rows=(), seed=SEED)


def _on_train(model: WeightCandidate, values: Values, rows: tuple[int, ...]) -> Augmented:
    return Augmented(model=model, augmentation=values, rows=rows, seed=SEED)


def _rows(inputs: Inputs) -> tuple[int, ...]:
    size = inputs.basis.split("train").size
    if size <= MOST_TRAIN:
        return ()
    return tuple(np.unique(np.linspace(0, size - 1, MOST_TRAIN).astype(int)).tolist())


def _asked(inputs: Inputs) -> _Asked:
    """Return what workers must answer, each question once."""
    reference, rows = _reference(inputs), _rows(inputs)
    mixtures = [augmentation_of(one.trial.hparams) for one in inputs.pool.ingredients]
    singles = [_single(inputs, name, value) for name, value in _largest(inputs).items()]
    held_out = [_on_held_out(reference.model, v) for v in ((), *mixtures, *singles)]
    train = []
    if reference.trained:
        train = [_on_train(reference.model, (), rows)]
        train += [
            _on_train(_model(one), values, rows)
            for one, values in zip(inputs.pool.ingredients, mixtures, strict=True)
        ]
    return _Asked(list(dict.fromkeys(held_out)), list(dict.fromkeys(train)))


def _answers(inputs: Inputs, asked: Sequence[Augmented], split: str) -> list[Seen]:
    return inputs.answers.measure(asked, inputs.basis.split(split)) if asked else []


def _coefficients(inputs: Inputs) -> dict[str, dict[str, float]]:
    """Return the coefficient of each trial in the greedy and the learned soup, where they are."""
    keys = {one.checkpoint.sha256: one.trial.key for one in inputs.pool.ingredients}
    found = {}
    for entry in inputs.frozen.entries:
        if entry.name in ("greedy", "learned") and len(entry.coefficients) == len(
            entry.ingredients
        ):
            given = dict(zip(entry.ingredients, entry.coefficients, strict=True))
            found[entry.name] = {key: float(given.get(key, 0)) for key in keys.values()}
    return found


def _alone(
    name: str, value: float, affinity: tuple[float, float], mixtures: Sequence[Mixture]
) -> Alone:
    groups = (
        [m for m in mixtures if name in m.augmentation],
        [m for m in mixtures if name not in m.augmentation],
    )

    def means(values: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
        first, second = (float(np.mean(v)) if v else None for v in values)
        return first, second

    taken = [[float(m.coefficients["greedy"] > 0) for m in g if m.coefficients] for g in groups]
    known = any("greedy" in m.coefficients for m in mixtures)
    return Alone(
        name=name,
        value=value,
        affinity=affinity[0],
        ratio=affinity[1],
        with_it=len(groups[0]),
        without_it=len(groups[1]),
        accuracy=means([[m.accuracy for m in g] for g in groups]),
        share=means(taken) if known else None,
    )


def _together(mixtures: Sequence[Mixture], seed: int) -> Iterator[Together]:
    numbers: dict[str, list[float]] = {"Affinity": [m.affinity for m in mixtures]}
    if all(m.diversity is not None for m in mixtures):
        numbers["Diversity"] = [m.diversity for m in mixtures if m.diversity is not None]
    outcomes = {"held-out accuracy": [m.accuracy for m in mixtures]}
    for name in mixtures[0].coefficients:
        outcomes[f"coefficient in {name}"] = [m.coefficients[name] for m in mixtures]
    for of, xs in numbers.items():
        for what, ys in outcomes.items():
            if found := association(xs, ys, seed):
                yield Together(of=of, what=what, rho=found.rho, p=found.p, n=found.n)


# ---- How it is read


def _show(made: Augmentations) -> Shown:
    tables = [t for t in (_alone_table(made), _trials_table(made), _together_table(made)) if t]
    return Shown(tuple(_sentences(made)), tuple(tables), tuple(_figures(made)))


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _sentences(made: Augmentations) -> Iterator[str]:
    sure = [t for t in made.together if t.p < 0.05]
    if made.together and not sure:
        yield (
            f"With {made.together[0].n} trials, neither Affinity nor Diversity goes together with "
            "accuracy or with coefficients by more than chance (p < .05)."
        )
    for one in sure:
        yield (
            f"{one.of} goes together with {one.what}: Spearman {one.rho:+.2f} "
            f"(p = {p_value(one.p)}, {one.n} trials, {len(made.together)} tests)."
        )
    yield (
        f"The reference is {made.reference}: {percent(made.accuracy)} % on {made.n} clean "
        "held-out samples."
    )
    if not made.trained:
        yield (
            "No trial trains without augmentation, so that theta_0 stands for it, and Diversity, "
            "which compares losses of training, is not measured."
        )


def _or_dash(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _alone_table(made: Augmentations) -> Table | None:
    if not made.alone:
        return None
    numbers = ("at", "Affinity", "ratio", "trials", "accuracy", "without", "taken", "not")
    return Table(
        columns=("augmentation", *numbers),
        numbers=numbers,
        rows=tuple(
            (
                a.name,
                f"{a.value:g}",
                _points(a.affinity),
                f"{a.ratio:.3f}",
                f"{a.with_it} of {a.with_it + a.without_it}",
                *map(_or_dash, a.accuracy),
                *(map(_or_dash, a.share) if a.share else ("-", "-")),
            )
            for a in made.alone
        ),
        least=("ratio", "not", "taken"),
        meaning=(
            "Affinity: held-out accuracy of the reference on images augmented so, minus that on "
            "clean ones, in points; ratio: the first over the second. trials: that use it. "
            "accuracy, without: mean held-out accuracy of the trials with it and of the others, in "
            "%. taken, not: share of both that the greedy soup took, in %."
        ),
    )


def _trials_table(made: Augmentations) -> Table:
    names = list(made.trials[0].coefficients)
    numbers = ("held-out", "Affinity", "Diversity", *names)
    return Table(
        columns=("trial", "augmentation", *numbers),
        numbers=numbers,
        rows=tuple(
            (
                m.trial[:8],
                ", ".join(f"{k} {v:.3g}" for k, v in m.augmentation.items()) or "none",
                percent(m.accuracy),
                _points(m.affinity),
                "-" if m.diversity is None else f"{m.diversity:.2f}",
                *(f"{m.coefficients[name]:.2f}" for name in names),
            )
            for m in made.trials
        ),
        least=("augmentation", *reversed(names)),
        meaning=(
            "Each trial with all its augmentations together. Diversity: loss of the trial on its "
            f"augmented training data (n = {made.train}) over the loss of the reference on clean "
            "ones, without label smoothing. Then its coefficient in soups."
        ),
    )


def _together_table(made: Augmentations) -> Table | None:
    if not made.together:
        return None
    return Table(
        columns=("of", "with", "Spearman", "p"),
        numbers=("Spearman", "p"),
        rows=tuple((t.of, t.what, f"{t.rho:+.2f}", p_value(t.p)) for t in made.together),
        meaning=f"Over {made.together[0].n} trials; p: permutation test, for each row alone.",
    )


def _figures(made: Augmentations) -> Iterator[Figure]:
    if any(m.diversity is None for m in made.trials):
        return
    rows = [
        {
            "trial": m.trial[:8],
            "affinity": 100 * m.affinity,
            "diversity": m.diversity or 0.0,
            "held-out accuracy": 100 * m.accuracy,
            **{f"in {name}": value for name, value in m.coefficients.items()},
        }
        for m in made.trials
    ]
    x, y = Axis("affinity", "Affinity (points)"), Axis("diversity", "Diversity")
    fields = ["held-out accuracy", *(f"in {name}" for name in made.trials[0].coefficients)]
    charts = [
        (level(1.0) + level(0.0, "x") + dots(rows, x, y, Axis(name, name), size=90)).properties(
            width=300, height=260, title=name
        )
        for name in fields
    ]
    title = f"Affinity and Diversity of {len(rows)} trials (reference: {made.reference})"
    chart = grid(charts, 2).resolve_scale(color="independent")
    yield figure("affinity_diversity", title, chart, whole=True)


def _needs(inputs: Inputs) -> Needed:
    asked, held_out, train = _asked(inputs), inputs.held_out, inputs.basis.split("train")
    seen = len(_rows(inputs)) or train.size
    return Needed(
        requests=(
            *((one, held_out, held_out.size) for one in asked.held_out),
            *((one, train, seen) for one in asked.train),
        )
    )


def _cannot(inputs: Inputs) -> str | None:
    if inputs.spec.task.kind == "transformers":
        return "texts are not augmented"
    if inputs.spec.augmentation is not None:
        return "an augmentation of your own is not measured: only those of search.space"
    if not _largest(inputs):
        return "search.space has no augmentation of single images"
    return None


AUGMENTATIONS = Measure(
    name="augmentations",
    title="Affinity and Diversity of augmentations",
    summary="how far augmented data are from the data, how hard they are to learn, and who gains",
    paper="Gontijo-Lopes et al. 2020, arXiv:2002.08973",
    about=(
        "Affinity: how much a model that was trained without augmentation loses on augmented data. "
        "Diversity: how much harder augmented training data are to fit than clean ones. In the "
        "paper, neither alone says whether an augmentation helps; both together do. Whether they "
        "say what makes a good ingredient of a soup is not in the paper."
    ),
    record=Augmentations,
    compute=measure_augmentations,
    show=_show,
    needs=_needs,
    cannot=_cannot,
)
