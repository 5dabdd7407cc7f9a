"""Compare the leaderboards of two runs of `soup`, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from soupray.core.candidates import Candidate
from soupray.core.records import Record, Scores, Split
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.maths.geometry import paired_difference
from soupray.maths.metrics import discordant, paired_p
from soupray.reporting.ranking import Measured, measured
from soupray.reporting.results import stored_candidates
from soupray.soup.session import open_session
from soupray.spec.sweep_spec import SweepSpec


class Difference(Record, frozen=True, kw_only=True):
    """An entry of two runs on ID test.

    Attributes:
        name: the entry.
        first, second: its scores in each run; None if the run has no such entry.
        same: both runs have the same model.
        difference: accuracy of the second minus that of the first, from -1 to 1.
        standard_error: of the difference, paired by sample.
        p: McNemar's exact test; of a graded metric the permutation test.
    """

    name: str
    first: Measured | None
    second: Measured | None
    same: bool = False
    difference: float | None = None
    standard_error: float | None = None
    p: float | None = None


class Comparison(Record, frozen=True, kw_only=True):
    """Two runs, and their entries in the order of the second one, then of the first one."""

    runs: tuple[str, str]
    entries: tuple[Difference, ...]


def compare(spec: SweepSpec, home: Path, keys: tuple[str, str]) -> Comparison:
    """Compare two runs on ID test. Everything was evaluated when they ran.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        keys: of the runs, or their first characters.

    Raises:
        NotFound: there is no such run.
    """
    with open_session([spec], home, None, partial=True) as session:
        (one, first), (two, second) = (stored_candidates(session.store, spec, k) for k in keys)
        test = session.basis.split("test")
        found = compared(first, second, session.evaluator, test)
    return Comparison(runs=(one, two), entries=found)


def compared(
    first: Mapping[str, Candidate],
    second: Mapping[str, Candidate],
    evaluator: StoredEvaluator,
    split: Split,
) -> tuple[Difference, ...]:
    """Return the entries of both runs.

    Args:
        first: models of the first run by the name of the entry, in the order of the leaderboard.
        second: those of the second run.
        evaluator: has their scores.
        split: on which they are compared.
    """

    def scores(run: Mapping[str, Candidate], name: str) -> Scores | None:
        return evaluator.scores([run[name]], split)[0] if name in run else None

    def one(name: str) -> Difference:
        a, b = scores(first, name), scores(second, name)
        both = tuple(None if s is None else measured(s) for s in (a, b))
        if a is None or b is None:
            return Difference(name=name, first=both[0], second=both[1])
        difference, error = paired(a, b)
        return Difference(
            name=name,
            first=both[0],
            second=both[1],
            same=first[name] == second[name],
            difference=difference,
            standard_error=error,
            p=paired_p(b, a),
        )

    return tuple(one(name) for name in dict.fromkeys([*second, *first]))


def paired(a: Scores, b: Scores) -> tuple[float, float]:
    """Return the accuracy of `b` minus that of `a` on the same samples, and its standard error."""
    if a.graded:
        return paired_difference(b.values(), a.values())
    only_b, only_a = discordant(b, a)
    return (only_b - only_a) / a.n, paired_error(only_a, only_b, a.n)


def paired_error(only_a: int, only_b: int, n: int) -> float:
    """Return the standard error of the difference of two accuracies on the same samples.

    The differences by sample are -1, 0 or 1; their variance is that of the sample.

    Args:
        only_a: samples that only the first model gets right.
        only_b: samples that only the second model gets right.
        n: all samples.
    """
    mean = (only_b - only_a) / n
    return math.sqrt(max(0.0, (only_a + only_b) / n - mean * mean) / n)
