"""The leaderboard: entries ranked by held-out data, with their test and shift scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from soupray.core.candidates import (
    Candidate,
    FisherSoup,
    Outcome,
    OutputEnsemble,
    VRFEnsemble,
    WeightCandidate,
)
from soupray.core.errors import NotFound
from soupray.core.records import Basis, Metric, Pool, Record, Scores
from soupray.maths.metrics import clopper_pearson, discordant, mcnemar, value
from soupray.search.state import find_basis
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import find_record

LEADERBOARD = "leaderboard.json"

Reported = Mapping[tuple[Candidate, str], Scores]
"""Scores by (candidate, name of a split that is reported).

The name `test on NAME` means ID test on the classes of the shift NAME, if it has only some.
"""


class Measured(Record, frozen=True, kw_only=True):
    """Scores of a model, with the exact 95 % interval of the accuracy (Clopper-Pearson)."""

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
        """Return the metric as a number where higher is better: the NLL is negated."""
        return -self.nll if metric == "nll" else float(getattr(self, metric))


class Versus(Record, frozen=True, kw_only=True):
    """Comparison with the best single model: number of samples that only one of the two gets right.

    `p` is the p-value of McNemar's exact test. It is given for ID test only: both models were
    chosen on held-out data, so a p-value on held-out data would be meaningless.
    """

    only_this: int
    only_best_single: int
    p: float | None


class Entry(Record, frozen=True, kw_only=True):
    """A row of the leaderboard.

    `test_on_classes`: for each shift that has only some classes, the ID accuracy on these classes.
    The accuracy on the shift has to be compared with this value.
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
    """Return the scores in the form of the leaderboard."""
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

    The order is: metric on rank data (or held-out data without a rank split), inference cost, name.
    It never depends on test or shift scores. Outcomes with the same model are all listed, because
    it is a result that two recipes agree.

    Args:
        outcomes: what the recipes chose, with `best_single` among them.
        pool: the ingredients.
        basis: the splits.
        reported: scores by (model, name of the split).
        metric: the metric that ranks the entries.
        bodies: for each checkpoint, the digest of its body; see `forward_passes`.
    """
    best = next(o for o in outcomes if o.recipe == "best_single")
    entries = [_entry(o, best, pool, basis, reported, bodies) for o in outcomes]
    return sorted(
        entries, key=lambda e: (-ranked_on(e).by(metric), e.forward_passes_per_sample, e.name)
    )


def stored_leaderboard(spec: SweepSpec, home: Path) -> tuple[list[Entry], Basis]:
    """Return the leaderboard of the last soup, and the basis. Raises NotFound if there is none.

    Args:
        spec: the spec of the sweep.
        home: folder for the state of this machine.
    """
    store = find_place(spec, home).open_store()
    basis = find_basis(store, spec)
    path = layout.results_file(spec.name, LEADERBOARD)
    entries = find_record(store, path, Annotated[list[Entry], Meta(min_length=1)])
    if basis is None or entries is None:
        raise NotFound(f"no leaderboard of {spec.name} in {store.url}: run `soupray soup` first.")
    return entries, basis


def ranked_on(entry: Entry) -> Measured:
    """Return the scores that rank an entry: on the split `rank` if there is one, else held-out."""
    return entry.rank or entry.held_out


def forward_passes(candidate: Candidate, bodies: Mapping[str, str]) -> int:
    """Return how many forward passes through a body one sample takes.

    Members with equal bodies differ only in their heads and share a forward pass. An exact mean of
    equal tensors is the same tensor, but a quotient of Fisher sums may differ.

    Args:
        candidate: the model.
        bodies: for each checkpoint, the digest of its body.
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
    """Return the bytes of the models that inference needs, and of the failure set of VRF."""
    sizes = {i.checkpoint.sha256: i.checkpoint.size_bytes for i in pool.ingredients}
    sizes |= {m.sha256: m.size_bytes for m in (pool.init, pool.anchor)}
    models = sum(sizes[m.checkpoints[0]] for m in candidate.members)
    return models + (candidate.failures.size_bytes if isinstance(candidate, VRFEnsemble) else 0)


def best_soup(entries: list[Entry], outcomes: list[Outcome]) -> Outcome:
    """Return the best outcome that is one model of several checkpoints, else of one checkpoint.

    Args:
        entries: the leaderboard, best first.
        outcomes: what the recipes chose.
    """
    by_name = {o.name: o for o in outcomes}
    models = [
        o
        for o in (by_name[e.name] for e in entries)
        if not isinstance(o.candidate, OutputEnsemble | VRFEnsemble)
    ]
    soups = [o for o in models if len(o.candidate.checkpoints) > 1]
    return (soups or models)[0]


def model_of(outcome: Outcome) -> WeightCandidate:
    """Return the model of an outcome that is not an ensemble."""
    assert not isinstance(outcome.candidate, OutputEnsemble | VRFEnsemble)
    return outcome.candidate


def as_csv(entries: list[Entry]) -> str:
    """Return the leaderboard as CSV: one row per entry; accuracies and intervals from 0 to 1."""
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
