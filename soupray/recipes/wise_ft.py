"""WiSE-FT (arXiv:2109.01903): theta(a) = (1 - a) anchor + a theta_1, head included.

theta_1 is the best single model, and the best soup if a recipe made one; or what is named. Three
operating points are entered: a = 0.5, the paper's default without any data; the a that is best on
held-out data (ties to the smaller a, which stays closer to the robust anchor); and the smallest a
whose held-out score is within `eps` of the best.
"""

from __future__ import annotations

from fractions import Fraction

from soupray.core.candidates import Candidate, Outcome
from soupray.core.ports import Selection
from soupray.recipes.starts import curve, interpolate, named, starts

ALPHAS = tuple(Fraction(k, 20) for k in range(21))
"""0, .05, ..., 1 as in the paper."""

ROUNDING = 1e-9
"""Shares are floats: less than one sample of any held-out set, more than their rounding."""


def wise_ft(
    selection: Selection,
    earlier: tuple[Outcome, ...],
    *,
    alphas: list[float] | None = None,
    eps: float = 0.01,
    theta_1: str | None = None,
) -> list[Outcome]:
    """Three outcomes for each line, the whole curve in their traces. `theta_1`: see `named`."""
    grid, notes = grid_of(alphas)
    anchor = selection.pool.anchor.sha256
    outcomes = []
    ends = [named(selection, earlier, theta_1)] if theta_1 else starts(selection, earlier)
    for name, end in ends:
        candidates: list[Candidate] = [
            interpolate(anchor, end, a.numerator, a.denominator) for a in grid
        ]
        scores = selection.scores(candidates)
        values = [selection.value(s) for s in scores]
        best = max(range(len(grid)), key=lambda k: (values[k], -k))
        within = next(k for k in range(len(grid)) if values[k] >= values[best] - eps - ROUNDING)
        points = {"half": grid.index(Fraction(1, 2)), "best": best, "within": within}
        for point, k in points.items():
            outcomes.append(
                Outcome(
                    name=f"wise_ft({name}, {point})",
                    recipe="wise_ft",
                    options={"theta_1": name, "point": point, "alpha": float(grid[k])},
                    candidate=candidates[k],
                    held_out=scores[k],
                    trace=curve(candidates, scores, k),
                    notes=notes,
                )
            )
    return outcomes


def grid_of(alphas: list[float] | None) -> tuple[list[Fraction], tuple[str, ...]]:
    """The decimals as exact fractions, sorted; 0, 1/2 and 1 are added if missing, with a note."""
    if alphas is None:
        return list(ALPHAS), ()
    asked = {Fraction(str(a)) for a in alphas}
    missing = sorted({Fraction(0), Fraction(1, 2), Fraction(1)} - asked)
    added = ", ".join(f"{float(a):g}" for a in missing)
    notes = (f"wise_ft: {added} added to the grid of alphas",) if missing else ()
    return sorted(asked | set(missing)), notes
