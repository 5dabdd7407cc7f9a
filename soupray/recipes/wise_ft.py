"""WiSE-FT (arXiv:2109.01903): theta(a) = (1 - a) anchor + a theta_1, head included.

theta_1 is the best single model, and the best soup if a recipe made one. Two operating points
are entered: a = 0.5, the paper's default without any data, and the a that is best on held-out
data (ties to the smaller a, which stays closer to the robust anchor).
"""

from __future__ import annotations

from soupray.ports import Selection
from soupray.records import Candidate, Outcome, Scores, Step, WeightSoup, weight_soup

GRID = 20
"""a = 0, .05, ..., 1 as in the paper; end points included."""


def interpolate(anchor: str, theta_1: WeightSoup, numerator: int, grid: int = GRID) -> WeightSoup:
    """(1 - a) anchor + a theta_1 with a = numerator / grid, in exact rationals.

    a = 0 is the anchor and a = 1 is theta_1, as equal records and hence as equal bytes.
    """
    d = theta_1.denominator
    parts = [(anchor, (grid - numerator) * d)]
    parts += [(sha, numerator * n) for sha, n in theta_1.parts]
    return weight_soup(parts, grid * d)


def lines_from(earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """What to interpolate to: the best single model, and the soup best on held-out data."""
    single = [o for o in earlier if o.recipe == "best_single"]
    soups = [o for o in earlier if o.recipe not in ("anchor", "best_single", "wise_ft")]
    best = sorted(soups, key=lambda o: (-o.held_out.correct, o.name))[:1]
    return single + [o for o in best if o.candidate != single[0].candidate]


def wise_ft(selection: Selection, earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """Two outcomes for each line, the whole curve in their traces."""
    outcomes = []
    for theta_1 in lines_from(earlier):
        candidates: list[Candidate] = [
            interpolate(selection.pool.anchor.sha256, theta_1.candidate, k) for k in range(GRID + 1)
        ]
        scores = selection.scores(candidates)
        best = max(range(GRID + 1), key=lambda k: (scores[k].correct, -k))
        outcomes += [
            _entry(theta_1, candidates, scores, GRID // 2, "half"),
            _entry(theta_1, candidates, scores, best, "best"),
        ]
    return outcomes


def _entry(
    theta_1: Outcome, candidates: list[Candidate], scores: list[Scores], k: int, point: str
) -> Outcome:
    trace = tuple(
        Step(candidate=c, result=s, accepted=i == k)
        for i, (c, s) in enumerate(zip(candidates, scores, strict=True))
    )
    return Outcome(
        name=f"wise_ft({theta_1.name}, {point})",
        recipe="wise_ft",
        options={"theta_1": theta_1.name, "point": point, "alpha": k / GRID},
        candidate=candidates[k],
        held_out=scores[k],
        trace=trace,
    )
