"""WiSE-FT (arXiv:2109.01903): theta(a) = (1 - a) anchor + a theta_1, head included.

theta_1 is the best single model and, if a recipe made one, the best soup; or the model that an
option names. There are three entries for each line: a = 0.5, the paper's default without any data;
the best a on held-out data (the smaller a breaks ties, because it is closer to the robust anchor);
and the smallest a whose held-out score is within `eps` of the best. With `dial` there is a fourth
one: see `recipes/dial.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Candidate, Outcome
from soupray.core.ports import Selection
from soupray.recipes.dial import Curve, DialOption, dialled
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe, Style, allows
from soupray.recipes.starts import LINES, anchor_of, curve, interpolate, named, starts

ALPHAS = tuple(Fraction(k, 20) for k in range(21))
"""The grid 0, .05, ..., 1, as in the paper."""

ROUNDING = 1e-9
"""Tolerance for scores in float64: smaller than one sample of any held-out set."""


LINE_GRID = 5
"""Number of steps of the grid 0, .2, ..., 1 that is evaluated on shifts for the figure."""

DECIMALS = 6
"""Largest number of decimals of an alpha.

With it, products n * theta are exact in float64 for means of up to 500 models
(`candidates.QUANTUM`).
"""


class WiseFtOptions(Options, frozen=True, kw_only=True):
    """Options of wise_ft."""

    alphas: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=1)], ...] | None,
        allows(
            "a list of numbers, each 0 to 1, with 6 decimals at most",
            "the points of the line; left out: 0, .05, ..., 1, as in the paper",
        ),
    ] = None
    eps: Annotated[
        float,
        Meta(
            ge=0, le=1, description="how much less than the best score the point `within` may have"
        ),
    ] = 0.01
    theta_1: Annotated[
        str | None,
        allows(
            "text: the name of a soup of this run, or how a trial's key begins",
            "the end of the line; left out: the best single model, and the best soup",
        ),
    ] = None
    dial: DialOption = None

    def __post_init__(self) -> None:
        """Check what the types cannot express. Raises ValueError, which msgspec reports."""
        if self.alphas is not None and not all(round(a, DECIMALS) == a for a in self.alphas):
            raise ValueError("too many decimals")
        if self.alphas == () or self.theta_1 == "":
            raise ValueError("it is empty")


def _wise_ft(selection: Selection, earlier: Earlier, options: WiseFtOptions) -> list[Outcome]:
    """Return three outcomes for each line, or four; their traces have the whole line."""
    grid, notes = grid_of(options.alphas)
    anchor = anchor_of(selection)
    outcomes = []
    theta_1 = options.theta_1
    ends = [named(selection, earlier, theta_1)] if theta_1 else starts(selection, earlier)
    for name, end in ends:
        candidates: list[Candidate] = [
            interpolate(anchor, end, a.numerator, a.denominator) for a in grid
        ]
        scores = selection.scores(candidates)
        values = [selection.value(s) for s in scores]
        best = max(range(len(grid)), key=lambda k: (values[k], -k))
        within = next(
            k for k in range(len(grid)) if values[k] >= values[best] - options.eps - ROUNDING
        )
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
        if options.dial is not None:
            said: dict[str, str | int | float] = {"theta_1": name, "point": "dial"}
            title, alphas = f"wise_ft({name}, dial)", [float(a) for a in grid]
            line = Curve(title, "wise_ft", said, alphas, candidates, scores)
            outcomes.append(dialled(selection, line, options.dial))
    return outcomes


def grid_of(alphas: Sequence[float] | None) -> tuple[list[Fraction], tuple[str, ...]]:
    """Return the grid of alphas as exact fractions, sorted, and notes for the user.

    0, 1/2 and 1 are added if they are missing.

    Args:
        alphas: decimals between 0 and 1, or None for the grid of the paper.
    """
    if alphas is None:
        return list(ALPHAS), ()
    asked = {Fraction(str(a)) for a in alphas}
    missing = sorted({Fraction(0), Fraction(1, 2), Fraction(1)} - asked)
    added = ", ".join(f"{float(a):g}" for a in missing)
    notes = (f"wise_ft: {added} added to the grid of alphas",) if missing else ()
    return sorted(asked | set(missing)), notes


def _cost(pool: PoolSize, options: WiseFtOptions) -> Cost:
    """Count only the inner points: the end points of a line are scored already.

    On proxy shifts they are not.
    """
    inner = sum(0 < a < 1 for a in options.alphas or ALPHAS)
    lines = 1 if options.theta_1 else LINES
    mixed, models = lines * inner, lines * LINE_GRID
    proxies = pool.proxies * (mixed + lines + 1) if options.dial is not None else 0
    return Cost(scored=mixed + proxies, models=models, mixtures=mixed + models - lines)


WISE_FT = Recipe(
    name="wise_ft",
    summary="interpolate from the anchor to the best single model and to the best soup",
    when="Where the model must hold under distribution shift: it gives up a little, or nothing, on"
    " the task.",
    paper="Wortsman et al. 2021, arXiv:2109.01903",
    kind="line",
    costs="19 a line",
    uses="held-out counts",
    options=WiseFtOptions,
    choose=_wise_ft,
    cost=_cost,
    style=Style("WiSE-FT", "", "#3a86c8"),
)
