"""Is a soup smoother than its ingredients? How fast answers change between two inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from soupray.core.arrays import Float64, Labels
from soupray.core.candidates import Candidate, OutputCandidate, WeightCandidate, mean_of
from soupray.core.records import Record
from soupray.core.requests import Paths
from soupray.diagnostics.figures import Axis, curve, dots, figure, grid, spans
from soupray.diagnostics.measure import CannotMeasure, Inputs, Measure, Needed, Shown
from soupray.maths.robustness import RESAMPLES
from soupray.maths.spectra import high_share, mean_interval, power_of
from soupray.reporting.notes import percent
from soupray.reporting.sections import Figure, Table

PAIRS = 200
"""Paths within classes, and as many between classes: as in the paper."""

STEPS = 32
"""Points on each path."""

TEXT_PAIRS, TEXT_STEPS = 50, 16
"""Of texts, because a text costs as much as many small images: a quarter of the paths makes the
intervals twice as wide. On 100 paths of sweeps/wordnet_topics.yaml, 16 points instead of 32 moved
the share of every model down by 0.6 to 1.1 points, and no difference from the ingredients by more
than 0.2."""

CUT = 4
"""Cycles in a path from which a frequency counts as high, of half as many as there are points."""

MOST_TRIALS = 4
"""Trials whose soup and ensemble are compared with them: the best on held-out data."""

AT_ONCE = 50
"""Paths in a request, so that several workers share the work."""

WITHIN, BETWEEN = "within classes", "between classes"
ENSEMBLE, SOUP = "ensemble of these", "soup of these"


class Smoothness(Record, frozen=True, kw_only=True):
    """A model along the paths.

    Attributes:
        name: of the model.
        within: share of high frequencies on paths within classes: mean, and its 95 % interval.
        between: the same, between classes.
        spectra: mean share of each frequency, 1, 2, ... cycles, within and between classes.
    """

    name: str
    within: tuple[float, float, float]
    between: tuple[float, float, float]
    spectra: tuple[tuple[float, ...], tuple[float, ...]]


class Difference(Record, frozen=True, kw_only=True):
    """Share of high frequencies of a mixture minus the mean of its parts, paired by path."""

    name: str
    where: str
    difference: float
    low: float
    high: float


class Frequencies(Record, frozen=True, kw_only=True):
    """Path frequencies of a pool.

    Attributes:
        within: number of paths within classes.
        between: number of paths between classes.
        steps: points on each path.
        models: the models, parts first.
        parts: number of trials that the soup and the ensemble mix.
        differences: of the soup and of the ensemble.
    """

    within: int
    between: int
    steps: int
    models: tuple[Smoothness, ...]
    parts: int
    differences: tuple[Difference, ...]


Ends = tuple[tuple[int, int], ...]


class _Group(NamedTuple):
    """Models that one request answers: their names, with that of their ensemble if it is shown."""

    names: tuple[str, ...]
    models: tuple[WeightCandidate, ...]


class _Asked(NamedTuple):
    """All models in groups, the paths, and the number of points on each."""

    groups: tuple[_Group, ...]
    ends: tuple[Ends, Ends]
    steps: int

    def requests(self, group: _Group) -> list[Paths]:
        """Return the requests of a group: all its paths, within classes first."""
        ends = (*self.ends[0], *self.ends[1])
        return [
            Paths(models=group.models, ends=ends[at : at + AT_ONCE], steps=self.steps)
            for at in range(0, len(ends), AT_ONCE)
        ]


def drawn_paths(labels: Labels, count: int, seed: int) -> tuple[Ends, Ends]:
    """Return pairs of samples within classes and between classes, each pair once.

    Args:
        labels: class of each sample, [N].
        count: number of pairs of each kind; fewer if there are fewer.
        seed: of the draw.
    """
    rng, n = np.random.default_rng(seed), len(labels)
    found: tuple[dict[tuple[int, int], None], dict[tuple[int, int], None]] = ({}, {})
    for _ in range(200 * count):  # a kind may have no pair
        if min(map(len, found)) >= count:
            break
        i, j = sorted(rng.integers(n, size=2).tolist())
        if i != j:
            kind = found[0 if labels[i] == labels[j] else 1]
            if len(kind) < count:
                kind[i, j] = None
    return tuple(found[0]), tuple(found[1])


def measure_frequencies(inputs: Inputs) -> Frequencies:
    """Return how fast the answers of models change along the paths."""
    asked = _asked(inputs)
    if not all(asked.ends):
        raise CannotMeasure(
            f"ID test has no two samples {WITHIN if not asked.ends[0] else BETWEEN}"
        )
    shares: dict[str, Float64] = {}
    models = []
    for group in asked.groups:
        answers = inputs.answers.measure(asked.requests(group), inputs.test)
        for k, name in enumerate(group.names):
            rows = [row for part in answers for row in part[k]]
            power = power_of(np.array(rows, np.float64))
            shares[name] = high_share(power, CUT)
            models.append(_smoothness(name, power, len(asked.ends[0]), inputs.spec.seed))
    parts = [name for name in shares if name.startswith("trial ")]
    return Frequencies(
        within=len(asked.ends[0]),
        between=len(asked.ends[1]),
        steps=asked.steps,
        models=tuple(models),
        parts=len(parts),
        differences=tuple(_differences(shares, parts, len(asked.ends[0]), inputs.spec.seed)),
    )


def _smoothness(name: str, power: Float64, within: int, seed: int) -> Smoothness:
    halves = (power[:within], power[within:])
    means = [mean_interval(high_share(half, CUT), RESAMPLES, seed) for half in halves]
    spectra = [half.sum(axis=0) / max(half.sum(), np.finfo(float).tiny) for half in halves]
    return Smoothness(
        name=name,
        within=means[0],
        between=means[1],
        spectra=(tuple(spectra[0].tolist()), tuple(spectra[1].tolist())),
    )


def _differences(
    shares: dict[str, Float64], parts: Sequence[str], within: int, seed: int
) -> Iterator[Difference]:
    if len(parts) < 2:
        return
    mean = np.mean([shares[name] for name in parts], axis=0)
    for name in (SOUP, ENSEMBLE):
        for where, rows in ((WITHIN, slice(within)), (BETWEEN, slice(within, None))):
            value, low, high = mean_interval((shares[name] - mean)[rows], RESAMPLES, seed)
            yield Difference(name=name, where=where, difference=value, low=low, high=high)


def _asked(inputs: Inputs) -> _Asked:
    best = inputs.pool.ingredients[:MOST_TRIALS]
    trials = tuple(mean_of([one.checkpoint.sha256]) for one in best)
    names = tuple(f"trial {one.trial.key[:8]}" for one in best)
    groups = [_Group(names, trials)]
    if len(best) > 1:
        soup = mean_of([one.checkpoint.sha256 for one in best])
        groups = [_Group((*names, ENSEMBLE), trials), _Group((SOUP,), (soup,))]
    groups.append(_Group((inputs.pool.anchor_name,), (mean_of([inputs.pool.anchor.sha256]),)))
    champion: Candidate = inputs.frozen.models[inputs.frozen.champion]
    if not isinstance(champion, OutputCandidate) and all(champion not in g.models for g in groups):
        groups.append(_Group((inputs.frozen.champion,), (champion,)))
    labels = inputs.answers.predictions(trials[0], inputs.test).labels
    texts = inputs.spec.task.kind == "transformers"
    pairs, steps = (TEXT_PAIRS, TEXT_STEPS) if texts else (PAIRS, STEPS)
    ends = drawn_paths(np.asarray(labels), pairs, inputs.spec.seed)
    return _Asked(tuple(groups), ends, steps)


# ---- How it is read


def _show(made: Frequencies) -> Shown:
    return Shown(tuple(_sentences(made)), (_table(made),), (_figure(made),))


def _sentences(made: Frequencies) -> Iterator[str]:
    for one in made.differences:
        sure = one.low > 0 or one.high < 0
        than = "smoother than" if one.difference < 0 else "rougher than"
        word = than if sure else "neither smoother nor rougher, by more than chance, than"
        yield (
            f"The {one.name[: -len(' of these')]} of the {made.parts} best trials is {word} its "
            f"ingredients {one.where}: {100 * one.difference:+.2f} points of high frequencies "
            f"([{100 * one.low:+.2f}, {100 * one.high:+.2f}], paired by path)."
        )


def _interval(value: tuple[float, float, float]) -> str:
    return f"[{percent(value[1])}, {percent(value[2])}]"


def _table(made: Frequencies) -> Table:
    numbers = ("within", "within 95 %", "between", "between 95 %")
    return Table(
        columns=("model", *numbers),
        numbers=numbers,
        rows=tuple(
            (
                m.name,
                percent(m.within[0]),
                _interval(m.within),
                percent(m.between[0]),
                _interval(m.between),
            )
            for m in made.models
        ),
        least=("between 95 %", "within 95 %"),
        meaning=(
            f"Share of the power of |p(t) - p(0)| at {CUT} to {made.steps // 2} cycles along a "
            f"path of {made.steps} points, in %, mean over {made.within} paths within classes and "
            f"{made.between} between classes, with the bootstrap interval of the mean. 'these': "
            "the trials above them."
        ),
    )


def _figure(made: Frequencies) -> Figure:
    charts = []
    for k, where in enumerate((WITHIN, BETWEEN)):
        decades = [
            {"model": m.name, "cycles": f, "power": float(np.log10(share))}
            for m in made.models
            for f, share in enumerate(m.spectra[k], 1)
            if share > 0
        ]
        x, y = Axis("cycles", "cycles in a path"), Axis("power", "log10 of the share of power")
        lines = curve(decades, x, y, Axis("model", "model", words=True))
        charts.append(lines.properties(width=300, height=280, title=where))
        means = [
            {
                "model": m.name,
                "share": 100 * (m.within, m.between)[k][0],
                "low": 100 * (m.within, m.between)[k][1],
                "high": 100 * (m.within, m.between)[k][2],
            }
            for m in made.models
        ]
        names, high = Axis("model", "", words=True), Axis("share", "high frequencies (%)")
        marks = spans(means, names, high, "low", "high") + dots(means, names, high)
        charts.append(marks.properties(width=300, height=280, title=where))
    title = f"Frequencies along {made.within} and {made.between} paths between samples of ID test"
    return figure("path_frequencies", title, grid(charts, 2), whole=True)


def _needs(inputs: Inputs) -> Needed:
    asked = _asked(inputs)
    requests = [
        (one, inputs.test, len(one.ends) * one.steps * len(one.models))
        for group in asked.groups
        for one in asked.requests(group)
    ]
    first = inputs.trials[inputs.pool.ingredients[0].trial.key]
    return Needed(models=(((first,), inputs.test),), requests=tuple(requests))


FREQUENCIES = Measure(
    name="frequencies",
    title="Path frequencies",
    summary="how fast answers change between two inputs: is a soup smoother than its ingredients?",
    paper="Fridovich-Keil et al. 2021, arXiv:2110.02424",
    about=(
        "Along the line between two samples, a smooth model goes from one answer to the other "
        "once; a rough one goes to and fro. The power spectrum of the distance to the first answer "
        "says how much is fast. In the paper, better models are smoother within a class and "
        "rougher between classes. Images are mixed by pixels, texts by the embeddings of their "
        "tokens."
    ),
    record=Frequencies,
    compute=measure_frequencies,
    show=_show,
    needs=_needs,
    version=3,
)
