"""The leaderboard: entries ranked by held-out data, with their test and shift scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from soupray.core.candidates import (
    Candidate,
    Dial,
    FisherSoup,
    Outcome,
    VRFEnsemble,
    WeightCandidate,
    is_estimated,
)
from soupray.core.records import Basis, Metric, Record, Scores
from soupray.core.trials import Pool
from soupray.maths.metrics import (
    discordant,
    interval,
    mean_paired_difference,
    paired_difference,
    paired_p,
    value,
)
from soupray.recipes.baselines import BEST_UPDATED

Reported = Mapping[tuple[Candidate, str], Scores]
"""Scores by (candidate, name of a split that is reported).

The name `test on NAME` means ID test on the classes of the shift NAME, if it has only some.
"""


class Measured(Record, frozen=True, kw_only=True):
    """Scores of a model, with the exact 95 % interval of the accuracy (Clopper-Pearson).

    `others`: metrics of objectives beyond one class, by name; metrics of classes are then 0 where
    there are none. `graded`: the metric that gives each sample a value. `accuracy` is then its
    mean, with an interval by the bootstrap, and `correct` the sum of the values, in units.
    """

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    standard_error: float
    nll: float
    ece: float
    balanced_accuracy: float
    macro_f1: float
    worst_class: float
    others: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    graded: str | msgspec.UnsetType = msgspec.UNSET

    def by(self, metric: Metric) -> float:
        """Return the metric as a number where higher is better: NLL and MAE are negated."""
        if metric in ("nll", "mae"):
            return -self.read(metric)
        return self.read(metric)

    def read(self, metric: Metric) -> float:
        """Return the metric as people read it."""
        if metric == self.graded:
            return self.accuracy
        if self.others is not msgspec.UNSET and metric in self.others:
            return self.others[metric]
        return float(getattr(self, metric))


class Versus(Record, frozen=True, kw_only=True):
    """Comparison with a best single model: number of samples that only one of the two gets right.

    Of a graded metric: number of samples at which one has the larger value. `p` is the p-value of
    McNemar's exact test, or of the permutation test (`paired_p`). It is given for ID test only:
    both models were chosen on held-out data, so a p-value on held-out data would be meaningless.
    """

    only_this: int
    only_best_single: int
    p: float | None


class Gain(Record, frozen=True, kw_only=True):
    """Accuracy minus that of `best_single` on the same samples, with the paired 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_chance(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


class Calibrated(Record, frozen=True, kw_only=True):
    """What temperature scaling does to an entry (Guo et al., arXiv:1706.04599).

    The probabilities are softmax(logits / T). The most probable class stays the same, and so does
    the accuracy.

    Attributes:
        temperature: T, fitted to the entry's NLL on held-out data. 1 if the entry is right on all
            of these: then every smaller T is better, and the data say nothing about its errors.
        test_nll: NLL on ID test with T.
        test_ece: expected calibration error on ID test with T.
    """

    temperature: float
    test_nll: float
    test_ece: float


class Entry(Record, frozen=True, kw_only=True):
    """A row of the leaderboard.

    `test_on_classes`: for each shift that has only some classes, the ID accuracy on these classes.
    The accuracy on the shift has to be compared with this value. `test_versus_updated`: comparison
    with the best single model that has estimated BatchNorm statistics, if `update_bn` ran.
    `test_gain`, `shift_gain` (of the mean over the shifts; unset without shifts) and `calibrated`
    are unset in leaderboards of older versions. `thresholds`, of multi_label alone: the logit of
    each class above which F1 on held-out data is largest. `dial`: the curve that a dial chose from.
    """

    name: str
    recipe: str
    options: dict[str, str | int | float]
    ingredients: list[str]
    coefficients: list[float]
    held_out: Measured
    rank: Measured | None
    test: Measured
    shifts: dict[str, Measured]
    shift_mean: float
    test_on_classes: dict[str, Measured] = msgspec.field(default_factory=dict)
    held_out_versus_best_single: Versus
    test_versus_best_single: Versus
    test_versus_updated: Versus | msgspec.UnsetType = msgspec.UNSET
    forward_passes_per_sample: int
    size_bytes: int
    candidate: str
    calibrated: Calibrated | msgspec.UnsetType = msgspec.UNSET
    thresholds: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    test_gain: Gain | msgspec.UnsetType = msgspec.UNSET
    shift_gain: Gain | msgspec.UnsetType = msgspec.UNSET
    dial: Dial | msgspec.UnsetType = msgspec.UNSET


def measured(scores: Scores) -> Measured:
    """Return the scores in the form of the leaderboard."""
    low, high = interval(scores)
    return Measured(
        n=scores.n,
        correct=scores.correct,
        accuracy=scores.accuracy,
        low=low,
        high=high,
        standard_error=scores.standard_error,
        nll=scores.nll,
        ece=scores.ece,
        balanced_accuracy=value(scores, "balanced_accuracy") if scores.by_class else 0.0,
        macro_f1=value(scores, "macro_f1") if scores.by_class else 0.0,
        worst_class=value(scores, "worst_class") if scores.by_class else 0.0,
        others=_others(scores),
        graded=scores.graded,
    )


def measure_of(scores: Scores | Measured) -> str:
    """Return what tables and figures show: accuracy, recall, or the name of the graded metric."""
    if scores.others is not msgspec.UNSET and "mrr" in scores.others:  # only of retrieval
        return "recall"
    return (scores.graded or "accuracy").rpartition(":")[2]


def _others(scores: Scores) -> dict[str, float] | msgspec.UnsetType:
    if scores.others is msgspec.UNSET:
        return msgspec.UNSET
    f1 = {"micro_f1": value(scores, "micro_f1")} if "map" in scores.others else {}
    return scores.others | f1


def names_of(pool: Pool) -> dict[str, str]:
    """Return the name of each checkpoint by digest: a trial's key, `init`, or the anchor's name."""
    names = {i.checkpoint.sha256: i.trial.key for i in reversed(pool.ingredients)}
    return {pool.init.sha256: "init", pool.anchor.sha256: pool.anchor_name, **names}


def shift_mean(shifts: Mapping[str, Measured]) -> float:
    """Return the mean of the accuracies of the shifts, each with equal weight; 0 without shifts."""
    return sum(m.accuracy for m in shifts.values()) / len(shifts) if shifts else 0.0


def leaderboard(
    outcomes: list[Outcome],
    pool: Pool,
    basis: Basis,
    reported: Reported,
    metric: Metric = "accuracy",
    bodies: Mapping[str, str] = MappingProxyType({}),
) -> list[Entry]:
    """Return all outcomes as entries, best first.

    The order is: metric on rank data (or held-out data without a rank split), forward passes, NLL
    on the same data, name. It never depends on test or shift scores. Outcomes with the same model
    are all listed, because it is a result that two recipes agree.

    Args:
        outcomes: what the recipes chose, with `best_single` among them.
        pool: the ingredients.
        basis: the splits.
        reported: scores by (model, name of the split).
        metric: the metric that ranks the entries.
        bodies: for each checkpoint, the digest of its body; see `forward_passes`.
    """
    best = next(o for o in outcomes if o.recipe == "best_single")
    singles = (best, next((o for o in outcomes if o.name == BEST_UPDATED), None))
    entries = [_entry(o, singles, pool, basis, reported, bodies) for o in outcomes]

    def order(e: Entry) -> tuple[float, int, float, str]:
        score = ranked_on(e)
        return -score.by(metric), e.forward_passes_per_sample, score.nll, e.name

    return sorted(entries, key=order)


def ranked_on(entry: Entry) -> Measured:
    """Return the scores that rank an entry: on the split `rank` if there is one, else held-out."""
    return entry.rank or entry.held_out


class SameModel(NamedTuple):
    """Entries of one model: the place of the first of them, their names, and the first entry."""

    place: int
    names: list[str]
    entry: Entry


def same_models(entries: list[Entry]) -> list[SameModel]:
    """Return the models of a leaderboard, each once, in its order."""
    found: dict[str, SameModel] = {}
    for place, entry in enumerate(entries, 1):
        found.setdefault(entry.candidate, SameModel(place, [], entry)).names.append(entry.name)
    return list(found.values())


class Explained(Record, frozen=True, kw_only=True):
    """What estimated BatchNorm statistics alone do to the best single model.

    `before`, `after`: the entries best_single and best_single(bn). `above_before`: entries of
    several models that score higher than the first one. `above_after`: those of them that score
    higher than both.
    """

    before: Entry
    after: Entry
    above_before: tuple[Entry, ...]
    above_after: tuple[Entry, ...]


def explained(entries: list[Entry], metric: Metric) -> Explained | None:
    """Return what the statistics explain, best entries first. None: `update_bn` did not run.

    Args:
        entries: the leaderboard.
        metric: the metric that ranks the entries.
    """
    by_name = {e.name: e for e in entries}
    if BEST_UPDATED not in by_name:
        return None
    before, after = by_name["best_single"], by_name[BEST_UPDATED]

    def above(entry: Entry, others: Sequence[Entry]) -> tuple[Entry, ...]:
        least = ranked_on(entry).by(metric)
        return tuple(e for e in others if ranked_on(e).by(metric) > least)

    gained = above(before, [e for e in entries if len(e.ingredients) > 1])
    still = above(after, gained)
    return Explained(before=before, after=after, above_before=gained, above_after=still)


def forward_passes(candidate: Candidate, bodies: Mapping[str, str]) -> int:
    """Return how many forward passes through a body one sample takes.

    Members with equal bodies differ only in their heads and share a forward pass. An exact mean of
    equal tensors is the same tensor, but a quotient of Fisher sums may differ. Estimated BatchNorm
    statistics make another body.

    Args:
        candidate: the model.
        bodies: for each checkpoint, the digest of its body.
    """

    def body(member: WeightCandidate) -> object:
        found = {bodies.get(sha, sha) for sha in member.checkpoints}
        other = len(found) > 1 or isinstance(member, FisherSoup) or is_estimated(member)
        return member if other else found.pop()

    return len({body(member) for member in candidate.members})


def _entry(
    outcome: Outcome,
    singles: tuple[Outcome, Outcome | None],
    pool: Pool,
    basis: Basis,
    reported: Reported,
    bodies: Mapping[str, str],
) -> Entry:
    candidate, names, (best, updated) = outcome.candidate, names_of(pool), singles
    shifts = {
        split.name: measured(reported[candidate, split.name])
        for split in basis.reported
        if split.role == "shift"
    }
    test = reported[candidate, "test"]
    pairs = [(reported[candidate, name], reported[best.candidate, name]) for name in shifts]
    held_this, held_best = discordant(outcome.held_out, best.held_out)
    return Entry(
        name=outcome.name,
        recipe=outcome.recipe,
        options=outcome.options,
        ingredients=[names[sha] for sha in candidate.checkpoints],
        coefficients=list(candidate.coefficients),
        held_out=measured(outcome.held_out),
        rank=measured(ranked) if (ranked := reported.get((candidate, "rank"))) else None,
        test=measured(test),
        shifts=shifts,
        shift_mean=shift_mean(shifts),
        test_on_classes={
            name: measured(scores)
            for name in shifts
            if (scores := reported.get((candidate, f"test on {name}")))
        },
        held_out_versus_best_single=Versus(only_this=held_this, only_best_single=held_best, p=None),
        test_versus_best_single=_versus(test, reported[best.candidate, "test"]),
        test_versus_updated=_versus(test, reported[updated.candidate, "test"])
        if updated
        else msgspec.UNSET,
        forward_passes_per_sample=forward_passes(candidate, bodies),
        size_bytes=_size(candidate, pool),
        candidate=candidate.digest,
        test_gain=_gain(paired_difference(test, reported[best.candidate, "test"])),
        shift_gain=_gain(mean_paired_difference(pairs)) if pairs else msgspec.UNSET,
        dial=outcome.dial,
    )


def _gain(found: tuple[float, float, float]) -> Gain:
    difference, low, high = found
    return Gain(difference=difference, low=low, high=high)


def _versus(test: Scores, single: Scores) -> Versus:
    """Compare a model with a best single model on ID test."""
    only_this, only_best = discordant(test, single)
    return Versus(only_this=only_this, only_best_single=only_best, p=paired_p(test, single))


def _size(candidate: Candidate, pool: Pool) -> int:
    """Return the bytes of the models that inference needs, and of the failure set of VRF."""
    sizes = {i.checkpoint.sha256: i.checkpoint.size_bytes for i in pool.ingredients}
    sizes |= {m.sha256: m.size_bytes for m in (pool.init, pool.anchor)}
    models = sum(sizes[m.checkpoints[0]] for m in candidate.members)
    return models + (candidate.failures.size_bytes if isinstance(candidate, VRFEnsemble) else 0)


CALIBRATION = ("test_nll", "test_ece", "temperature", "calibrated_test_nll", "calibrated_test_ece")
"""Columns of leaderboard.csv, in the order in which `as_table` returns their values."""

Cell = str | int | float | None


def as_table(entries: list[Entry]) -> tuple[list[str], list[list[Cell]]]:
    """Return the leaderboard as a table: columns, and one row per entry.

    Accuracies and intervals are from 0 to 1. A value that does not exist is None.

    Args:
        entries: the leaderboard, best first.
    """
    shifts = list(entries[0].shifts)
    columns = ["rank", "name", "recipe", "ingredients", "rank_accuracy"]
    for name in ("held_out", "test"):
        columns += [name, f"{name}_low", f"{name}_high"]
    columns += [
        "standard_error",
        "nll",
        "ece",
        "shift_mean",
        *shifts,
        *(f"test_on_classes_of_{name}" for name in entries[0].test_on_classes),
        "p_vs_best_single",
        *(["p_vs_best_single(bn)"] if entries[0].test_versus_updated else []),
        "forward_passes",
        "size_bytes",
        *(CALIBRATION if entries[0].calibrated else ()),
    ]
    rows = []
    for rank, entry in enumerate(entries, 1):
        row: list[Cell] = [rank, entry.name, entry.recipe, len(entry.ingredients)]
        row += [entry.rank.accuracy if entry.rank else None]
        for m in (entry.held_out, entry.test):
            row += [m.accuracy, m.low, m.high]
        score = ranked_on(entry)
        row += [score.standard_error, score.nll, score.ece, entry.shift_mean]
        row += [entry.shifts[name].accuracy for name in shifts]
        row += [m.accuracy for m in entry.test_on_classes.values()]
        row += [entry.test_versus_best_single.p]
        if entry.test_versus_updated:
            row += [entry.test_versus_updated.p]
        row += [entry.forward_passes_per_sample, entry.size_bytes]
        if after := entry.calibrated:
            row += [entry.test.nll, entry.test.ece]
            row += [after.temperature, after.test_nll, after.test_ece]
        rows.append(row)
    return columns, rows


def as_csv(entries: list[Entry]) -> str:
    """Return the leaderboard as CSV: the table of `as_table`, with six digits."""
    columns, rows = as_table(entries)

    def text(column: str, value: Cell) -> Cell:
        if isinstance(value, float):
            return f"{value:.6g}" if column.startswith("p_vs_") else f"{value:.6f}"
        return value

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([text(*cell) for cell in zip(columns, row, strict=True)])
    return out.getvalue()
