"""The leaderboard: ranked on held-out data, with everything else beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from soupray.core.candidates import (
    Candidate,
    FisherSoup,
    Outcome,
    OutputEnsemble,
    VRFEnsemble,
    WeightCandidate,
)
from soupray.core.records import Basis, Metric, Pool, Record, Scores
from soupray.maths.metrics import clopper_pearson, discordant, mcnemar, value

Reported = Mapping[tuple[Candidate, str], Scores]
"""Scores by (candidate, name of a test or shift split).

Under `test on NAME`: ID test on the classes of that shift, if it has only some.
"""


class Measured(Record, frozen=True, kw_only=True):
    """A score with its exact 95 % interval (Clopper-Pearson)."""

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

    def by(self, metric: Metric) -> float:
        """The metric as a number of which more is better."""
        return -self.nll if metric == "nll" else float(getattr(self, metric))


class Versus(Record, frozen=True, kw_only=True):
    """Against the best single model: on how many samples only one of the two is right.

    `p` is McNemar's exact test, on ID test only: held-out data chose both models, so that a
    p-value there would mean nothing.
    """

    only_this: int
    only_best_single: int
    p: float | None


class Entry(Record, frozen=True, kw_only=True):
    """A row of the leaderboard.

    `test_on_classes`: by shift, ID accuracy on its classes, if it has only some of them: what its
    accuracy is to be compared with.
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
    forward_passes_per_sample: int
    size_bytes: int
    candidate: str


def measured(scores: Scores) -> Measured:
    """The scores as a leaderboard shows them."""
    low, high = clopper_pearson(scores.correct, scores.n)
    return Measured(
        n=scores.n,
        correct=scores.correct,
        accuracy=scores.accuracy,
        low=low,
        high=high,
        standard_error=scores.standard_error,
        nll=scores.nll,
        ece=scores.ece,
        balanced_accuracy=value(scores, "balanced_accuracy"),
        macro_f1=value(scores, "macro_f1"),
        worst_class=value(scores, "worst_class"),
    )


def names_of(pool: Pool) -> dict[str, str]:
    """What a checkpoint is called, by its digest: a trial's key, or the anchor."""
    names = {i.checkpoint.sha256: i.trial.key for i in reversed(pool.ingredients)}
    return {pool.init.sha256: "init", pool.anchor.sha256: pool.anchor_name, **names}


def shift_mean(shifts: Mapping[str, Measured]) -> float:
    """Mean of the per-data-set accuracies, never pooled over samples; 0 without shifts."""
    return sum(m.accuracy for m in shifts.values()) / len(shifts) if shifts else 0.0


def leaderboard(
    outcomes: list[Outcome],
    pool: Pool,
    basis: Basis,
    reported: Reported,
    metric: Metric = "accuracy",
    bodies: Mapping[str, str] = MappingProxyType({}),
) -> list[Entry]:
    """All outcomes, best first: metric on rank (else held-out) data, inference cost, name.

    `bodies`: see `forward_passes`. The order never depends on `reported`. Outcomes that chose the
    same model are all listed: that two recipes agree is a result.
    """
    best = next(o for o in outcomes if o.recipe == "best_single")
    entries = [_entry(o, best, pool, basis, reported, bodies) for o in outcomes]
    return sorted(
        entries, key=lambda e: (-ranked_on(e).by(metric), e.forward_passes_per_sample, e.name)
    )


def ranked_on(entry: Entry) -> Measured:
    """The score that decides an entry's place: on `rank` data if there are any, else held-out."""
    return entry.rank or entry.held_out


def forward_passes(candidate: Candidate, bodies: Mapping[str, str]) -> int:
    """How often a sample goes through a body: members that share one differ in their heads only.

    `bodies`: by checkpoint, the digest of its body. An exact mean of equal tensors is that tensor;
    a quotient of Fisher sums need not be.
    """

    def body(member: WeightCandidate) -> object:
        found = {bodies.get(sha, sha) for sha in member.checkpoints}
        return member if len(found) > 1 or isinstance(member, FisherSoup) else found.pop()

    return len({body(member) for member in candidate.members})


def _entry(
    outcome: Outcome,
    best: Outcome,
    pool: Pool,
    basis: Basis,
    reported: Reported,
    bodies: Mapping[str, str],
) -> Entry:
    candidate, names = outcome.candidate, names_of(pool)
    shifts = {
        split.name: measured(reported[candidate, split.name])
        for split in basis.reported
        if split.role == "shift"
    }
    test = reported[candidate, "test"]
    only_this, only_best = discordant(test, reported[best.candidate, "test"])
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
        test_versus_best_single=Versus(
            only_this=only_this, only_best_single=only_best, p=mcnemar(only_this, only_best)
        ),
        forward_passes_per_sample=forward_passes(candidate, bodies),
        size_bytes=_size(candidate, pool),
        candidate=candidate.digest,
    )


def _size(candidate: Candidate, pool: Pool) -> int:
    """Bytes of the models to keep, and of VRF's failure set."""
    sizes = {i.checkpoint.sha256: i.checkpoint.size_bytes for i in pool.ingredients}
    sizes |= {m.sha256: m.size_bytes for m in (pool.init, pool.anchor)}
    models = sum(sizes[m.checkpoints[0]] for m in candidate.members)
    return models + (candidate.failures.size_bytes if isinstance(candidate, VRFEnsemble) else 0)


def best_soup(entries: list[Entry], outcomes: list[Outcome]) -> Outcome:
    """The highest entry that is one model of two or more checkpoints, else of one."""
    by_name = {o.name: o for o in outcomes}
    models = [
        o
        for o in (by_name[e.name] for e in entries)
        if not isinstance(o.candidate, OutputEnsemble | VRFEnsemble)
    ]
    soups = [o for o in models if len(o.candidate.checkpoints) > 1]
    return (soups or models)[0]


def model_of(outcome: Outcome) -> WeightCandidate:
    """The one model of a soup."""
    assert not isinstance(outcome.candidate, OutputEnsemble | VRFEnsemble)
    return outcome.candidate


def as_csv(entries: list[Entry]) -> str:
    """The leaderboard as a table: one row an entry, accuracies and intervals as shares."""
    shifts = list(entries[0].shifts)
    header = ["rank", "name", "recipe", "ingredients", "rank_accuracy"]
    for name in ("held_out", "test"):
        header += [name, f"{name}_low", f"{name}_high"]
    header += [
        "standard_error",
        "nll",
        "ece",
        "shift_mean",
        *shifts,
        *(f"test_on_classes_of_{name}" for name in entries[0].test_on_classes),
        "p_vs_best_single",
        "forward_passes",
        "size_bytes",
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for rank, entry in enumerate(entries, 1):
        row: list[object] = [rank, entry.name, entry.recipe, len(entry.ingredients)]
        row += [f"{entry.rank.accuracy:.6f}" if entry.rank else ""]
        for m in (entry.held_out, entry.test):
            row += [f"{m.accuracy:.6f}", f"{m.low:.6f}", f"{m.high:.6f}"]
        score = ranked_on(entry)
        row += [f"{v:.6f}" for v in (score.standard_error, score.nll, score.ece)]
        row += [f"{entry.shift_mean:.6f}"]
        row += [f"{entry.shifts[name].accuracy:.6f}" for name in shifts]
        row += [f"{m.accuracy:.6f}" for m in entry.test_on_classes.values()]
        row += [f"{entry.test_versus_best_single.p:.6g}"]
        row += [entry.forward_passes_per_sample, entry.size_bytes]
        writer.writerow(row)
    return out.getvalue()
