"""How the models of several specs differ on the same samples, within each spec and across."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import structs

from soupray.core.arrays import Float32, Float64, Logits, Mask
from soupray.core.candidates import Candidate, OutputCandidate, mean_of
from soupray.core.records import Predictions, Record
from soupray.diagnostics.additions import Addition, adding, best_first, within
from soupray.diagnostics.inconsistency import feature_rows
from soupray.diagnostics.matching import Match, matched
from soupray.diagnostics.measure import Inputs
from soupray.diagnostics.specialisation import Two, compare
from soupray.maths.disagreement import cka, paired_mean, prediction_divergence
from soupray.maths.geometry import error_inconsistency, kappa
from soupray.maths.metrics import right_mask
from soupray.maths.outputs import fit_temperature

MOST_TRIALS = 8
"""Trials of each spec that are compared: the best on held-out data. All pairs of them are."""

Interval = tuple[float, float, float]
"""A mean over samples, and its 95 % interval (normal)."""


class Family(Record, frozen=True, kw_only=True):
    """The models of one spec that are compared.

    Attributes:
        spec: its name.
        model: kind and name of the network.
        models: number of them.
        shared: trials that are left out, because a spec before it has the same checkpoint.
        accuracy: mean on ID test.
        best: the largest on ID test.
    """

    spec: str
    model: str
    models: int
    shared: int
    accuracy: float
    best: float


class Group(Record, frozen=True, kw_only=True):
    """All pairs of models within one spec, or across two; means over the pairs.

    Attributes:
        specs: of the first and of the second model; equal within one spec.
        pairs: number of pairs.
        inconsistency: share of samples that exactly one of the two gets right.
        kappa_complement: 1 - Cohen's kappa; None where chance alone explains all agreements.
        divergence: symmetric KL divergence of calibrated predictions, in nats.
        cka_complement: 1 - CKA of features; None without two networks with features.
        gain: accuracy of the ensemble minus the mean of the two.
        over_better: accuracy of the ensemble minus that of the better one.
        conversion: of samples that exactly one gets right, those that the ensemble does.
    """

    specs: tuple[str, str]
    pairs: int
    inconsistency: Interval
    kappa_complement: float | None
    divergence: float
    cka_complement: float | None
    gain: Interval
    over_better: Interval
    conversion: float | None


class Contrast(Record, frozen=True, kw_only=True):
    """Pairs across two specs minus pairs within each of them, on the same samples.

    Attributes:
        specs: the two.
        inconsistency: the difference, paired by sample.
        gain: the same.
        over_better: the same.
    """

    specs: tuple[str, str]
    inconsistency: Interval
    gain: Interval
    over_better: Interval


class Point(Record, frozen=True, kw_only=True):
    """A pair of models: their names, error inconsistency, and gain over the mean of the two."""

    specs: tuple[str, str]
    models: tuple[str, str]
    inconsistency: float
    gain: float


class Offer(Record, frozen=True, kw_only=True):
    """What the trials of one spec would add to the champion of the first, on held-out data."""

    spec: str
    trials: tuple[Addition, ...]


class Families(Record, frozen=True, kw_only=True):
    """The models of several specs on the same samples.

    Attributes:
        n: samples of ID test.
        held_out: held-out samples.
        families: in the order of the specs.
        groups: within each spec of two models or more, then across two specs.
        contrasts: across two specs against within each.
        points: all pairs.
        champion: the entry to take of the first spec.
        accuracy: its accuracy on held-out data.
        offers: trials that might join its ensemble, of the first spec and of the others.
        champions: the champion beside the best model of each other spec.
    """

    n: int
    held_out: int
    families: tuple[Family, ...]
    groups: tuple[Group, ...]
    contrasts: tuple[Contrast, ...]
    points: tuple[Point, ...]
    champion: str
    accuracy: float
    offers: tuple[Offer, ...]
    champions: tuple[Two, ...]


class _Model(NamedTuple):
    """A model on ID test of the first spec; logits are over their temperature, [N, C]."""

    spec: str
    name: str
    test: Predictions
    right: Mask
    features: Float32 | None

    @property
    def logits(self) -> Logits:
        return self.test.logits


class _Series(NamedTuple):
    """Means over pairs for each sample, [N]."""

    inconsistency: Float64
    gain: Float64
    over_better: Float64


class Compared(NamedTuple):
    """The models of one spec that are compared, by name, and how many trials it shares."""

    models: dict[str, Candidate]
    shared: int


def compared(inputs: Inputs) -> list[Compared]:
    """Return the models of each spec: the champion if there is one, and the best trials.

    Models of checkpoints that an earlier spec has are left out.

    Args:
        inputs: of the first spec, with the others.
    """
    known: set[str] = set()
    found = []
    for of in (inputs, *inputs.others):
        named = {}
        if of.board is not None:
            named[of.board.champion] = of.board.models[of.board.champion]
        best = of.pool.ingredients[:MOST_TRIALS]
        for one in best:
            model = mean_of([one.checkpoint.sha256])
            if model not in named.values():
                named[f"trial {one.trial.key[:8]}"] = model
        new = {name: m for name, m in named.items() if not known & set(m.checkpoints)}
        found.append(Compared(new, sum(one.checkpoint.sha256 in known for one in best)))
        known |= {one.checkpoint.sha256 for one in of.pool.ingredients}
    return found


def their_rows(ours: Inputs, match: Match) -> Mask:
    """Return the samples of a test split of another spec whose features are compared."""
    rows = np.zeros(len(match.rows), bool)
    rows[match.rows[feature_rows(ours)]] = True
    return rows


class _Aligned:
    """Answers of the models of one spec, as the first spec has samples and classes."""

    def __init__(self, ours: Inputs, theirs: Inputs) -> None:
        """Match the two specs by name.

        Args:
            ours: the first spec.
            theirs: the spec; it may be the first one.
        """
        self._theirs = theirs
        self._matches = {name: matched(ours, theirs, name) for name in ("held_out", "test")}
        first = next(iter(ours.trials.values()))
        self._ours = {
            split.name: ours.answers.predictions(first, split)
            for split in (ours.held_out, ours.test)
        }
        self._chosen = feature_rows(ours)
        self._rows = their_rows(ours, self._matches["test"])

    def predictions(self, model: Candidate, split: str) -> Predictions:
        """Return predictions with logits over the model's temperature, fitted on held-out data."""
        answers, basis = self._theirs.answers, self._theirs.basis
        held_out = answers.predictions(model, self._theirs.held_out)
        temperature = fit_temperature(held_out.logits, held_out.labels)
        found = answers.predictions(model, basis.split(split))
        fitting: Match = self._matches[split]
        aligned = fitting.aligned(found, self._ours[split])
        return structs.replace(aligned, logits=aligned.logits / np.float32(temperature))

    def features(self, model: Candidate) -> Float32 | None:
        """Return features of evenly spaced test samples in our order, [n, D]; None of several."""
        if isinstance(model, OutputCandidate):
            return None
        found = self._theirs.answers.features(model, self._rows, self._theirs.test)
        order = np.argsort(np.argsort(self._matches["test"].rows[self._chosen]))
        return np.asarray(found[order])


def measure_families(inputs: Inputs) -> Families:
    """Return how the models of several specs differ, and what they give together."""
    pools = (inputs, *inputs.others)
    aligned = [_Aligned(inputs, pool) for pool in pools]
    chosen = compared(inputs)
    models = [
        [_model(pool.spec.name, name, model, answers) for name, model in some.models.items()]
        for pool, some, answers in zip(pools, chosen, aligned, strict=True)
    ]
    groups, series, drawn = [], {}, []
    for i, j in _kinds(len(pools)):
        pairs = [*itertools.combinations(models[i], 2)] if i == j else _across(models, i, j)
        if pairs:
            group, series[i, j], some = _group(pairs)
            groups.append(group)
            drawn += some
    names = [pool.spec.name for pool in pools]
    board = inputs.frozen
    own = aligned[0].predictions(board.models[board.champion], "held_out")
    return Families(
        n=inputs.test.size,
        held_out=inputs.held_out.size,
        families=tuple(map(_family, pools, chosen, models)),
        groups=tuple(groups),
        contrasts=tuple(_contrasts(series, names)),
        points=tuple(drawn),
        champion=board.champion,
        accuracy=float(right_mask(own).mean()),
        offers=tuple(_offers(inputs, aligned, own)),
        champions=tuple(_champions(inputs, models)),
    )


def _kinds(count: int) -> list[tuple[int, int]]:
    """Return the pairs of specs: each with itself, then two."""
    return [(k, k) for k in range(count)] + [*itertools.combinations(range(count), 2)]


def _across(models: Sequence[Sequence[_Model]], i: int, j: int) -> list[tuple[_Model, _Model]]:
    return [*itertools.product(models[i], models[j])]


def _model(spec: str, name: str, model: Candidate, answers: _Aligned) -> _Model:
    test = answers.predictions(model, "test")
    return _Model(spec, name, test, right_mask(test), answers.features(model))


def _family(pool: Inputs, chosen: Compared, models: Sequence[_Model]) -> Family:
    accuracies = [float(one.right.mean()) for one in models]
    return Family(
        spec=pool.spec.name,
        model=f"{pool.spec.task.kind} {pool.spec.task.model}",
        models=len(models),
        shared=chosen.shared,
        accuracy=float(np.mean(accuracies)) if accuracies else 0.0,
        best=max(accuracies, default=0.0),
    )


def _group(pairs: Sequence[tuple[_Model, _Model]]) -> tuple[Group, _Series, list[Point]]:
    """Return the numbers of pairs, their means for each sample, and each pair as a point."""
    total = np.zeros((3, len(pairs[0][0].right)))
    drawn, converted = [], 0
    for a, b in pairs:
        joint = right_mask(structs.replace(a.test, logits=a.logits + b.logits))
        differ, better = a.right != b.right, max(a, b, key=lambda one: int(one.right.sum()))
        rows = (differ, joint - (a.right.astype(float) + b.right) / 2, joint * 1.0 - better.right)
        total += np.array(rows)
        converted += int((joint & differ).sum())
        drawn.append(
            Point(
                specs=(a.spec, b.spec),
                models=(a.name, b.name),
                inconsistency=error_inconsistency(a.right, b.right),
                gain=float(rows[1].mean()),
            )
        )
    series = _Series(*(total / len(pairs)))
    differing = int(total[0].sum())
    group = Group(
        specs=drawn[0].specs,
        pairs=len(pairs),
        inconsistency=paired_mean(series.inconsistency),
        kappa_complement=_mean([_complement(kappa(a.right, b.right)) for a, b in pairs]),
        divergence=float(np.mean([prediction_divergence(a.logits, b.logits) for a, b in pairs])),
        cka_complement=_mean([_features_apart(a, b) for a, b in pairs]),
        gain=paired_mean(series.gain),
        over_better=paired_mean(series.over_better),
        conversion=converted / differing if differing else None,
    )
    return group, series, drawn


def _features_apart(a: _Model, b: _Model) -> float | None:
    if a.features is None or b.features is None:
        return None
    return _complement(cka(a.features, b.features))


def _complement(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _contrasts(
    series: Mapping[tuple[int, int], _Series], names: Sequence[str]
) -> Iterator[Contrast]:
    for (i, j), across in series.items():
        own = [series[k, k] for k in (i, j) if (k, k) in series]
        if i != j and own:
            apart = [paired_mean(a - np.mean(b, axis=0))
                     for a, b in zip(across, zip(*own, strict=True), strict=True)]  # fmt: skip
            yield Contrast(
                specs=(names[i], names[j]),
                inconsistency=apart[0],
                gain=apart[1],
                over_better=apart[2],
            )


def _offers(inputs: Inputs, aligned: Sequence[_Aligned], own: Predictions) -> Iterator[Offer]:
    champion = inputs.frozen.models[inputs.frozen.champion]
    add = adding(own, len(champion.members))
    for of, answers in zip((inputs, *inputs.others), aligned, strict=True):
        found = [
            add(key, answers.predictions(model, "held_out"), within(model, champion))
            for key, model in of.trials.items()
        ]
        yield Offer(spec=of.spec.name, trials=best_first(found))


def _champions(inputs: Inputs, models: Sequence[Sequence[_Model]]) -> Iterator[Two]:
    """The champion beside that of each other spec, or beside its best trial on held-out data."""
    (first, *_), *others = models
    for other in (some[0] for some in others if some):
        two = [(f"{one.spec}: {one.name}", one.test) for one in (first, other)]
        why = "the entry to take of each spec, or else its best trial on held-out data"
        yield compare((two[0], two[1]), inputs.spec.task.classes, why)
