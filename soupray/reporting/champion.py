"""Which entry of a leaderboard to take: the cheapest of those that the data cannot tell apart."""

from __future__ import annotations

from soupray.core.candidates import Candidate, Outcome, OutputCandidate, WeightCandidate
from soupray.core.records import Metric, Record, Scores
from soupray.maths.metrics import COUNTED, paired_p
from soupray.reporting.ranking import Entry, Reported, ranked_on

LEVEL = 0.05
"""Two entries are told apart if chance alone makes such a difference less often than this, among
all comparisons with the first entry (Bonferroni's correction)."""


class Champion(Record, frozen=True, kw_only=True):
    """The entry to take, and why.

    Attributes:
        name: the champion: the cheapest of the entries that the data cannot tell from the first.
        first: the entry that ranks first.
        equals: these entries, in the order of the leaderboard; the first one is among them.
        samples: number of samples on which entries are compared: those that rank them.
    """

    name: str
    first: str
    equals: tuple[str, ...]
    samples: int


def champion(
    entries: list[Entry], outcomes: list[Outcome], reported: Reported, metric: Metric = "accuracy"
) -> Champion:
    """Choose the entry to take; see docs/decisions/0009.

    An entry is told from the first one by McNemar's exact test on the samples that rank the
    leaderboard, with Bonferroni's correction for the number of different models. The cheapest of
    the others has the lowest `cost`; of those with the same cost, one model goes before outputs
    that are mixed, which other libraries cannot load; then the highest place decides. With a graded
    metric the test is the permutation test. For metrics that are neither counts nor graded (NLL,
    MAE) there is none, and only entries with the first one's model are its equals.

    Args:
        entries: the leaderboard, best first.
        outcomes: what the recipes chose.
        reported: scores by (model, name of the split).
        metric: the metric that ranks the entries.
    """
    by_name = {o.name: o for o in outcomes}

    def ranked(entry: Entry) -> Scores:
        outcome = by_name[entry.name]
        return reported.get((outcome.candidate, "rank"), outcome.held_out)

    first, *others = entries
    compared = len({e.candidate for e in entries}) - 1

    def is_equal(entry: Entry) -> bool:
        if entry.candidate == first.candidate:
            return True
        if metric not in (*COUNTED, ranked(first).graded):
            return False
        return paired_p(ranked(first), ranked(entry)) * compared >= LEVEL

    equals = [first, *(entry for entry in others if is_equal(entry))]

    def simplicity(entry: Entry) -> tuple[tuple[int, float], bool]:
        return cost(entry), one_model(by_name[entry.name].candidate) is None

    cheapest = min(equals, key=simplicity)
    return Champion(
        name=cheapest.name,
        first=first.name,
        equals=tuple(e.name for e in equals),
        samples=ranked_on(first).n,
    )


def cost(entry: Entry) -> tuple[int, float]:
    """Return what an entry costs at inference: forward passes a sample, bytes to two digits.

    The headers of files make some bytes of difference, which nobody pays for.
    """
    return entry.forward_passes_per_sample, float(f"{entry.size_bytes:.1e}")


def one_model(candidate: Candidate) -> WeightCandidate | None:
    """Return the candidate if it is one model, or None if it is an ensemble."""
    return None if isinstance(candidate, OutputCandidate) else candidate
