"""Task arithmetic, TIES and DARE: theta_0 plus a scaled merge of task vectors theta_i - theta_0.

All three are for models of different tasks, whose task vectors disturb each other. The models of a
sweep have one task: no gain over greedy and learned soups is known for them. The scale is chosen on
held-out data. It is the factor of a mean here, so that 1 means the same for any number of models;
task arithmetic at 1 is the uniform soup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Candidate, Outcome, weight_soup
from soupray.core.ports import Selection
from soupray.core.requests import Threshold
from soupray.core.task_vectors import DareSoup, TiesSoup
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe
from soupray.recipes.starts import curve

SCALES = tuple(Fraction(k, 4) for k in range(1, 13))
"""The grid .25, .5, ..., 3. Task arithmetic searches up to the sum of all task vectors in steps of
.05 of it, TIES .8 to 3: both papers choose on held-out data."""


class TiesOptions(Options, frozen=True, kw_only=True):
    """Options of ties."""

    keep: Annotated[
        float,
        Meta(
            ge=1e-4,
            le=1,
            description="share of each model's changes that is kept, the largest ones",
        ),
    ] = 0.2


class DareOptions(Options, frozen=True, kw_only=True):
    """Options of dare."""

    drop: Annotated[
        float,
        Meta(ge=0, le=0.999, description="probability that a change of a weight is left out"),
    ] = 0.9
    seed: Annotated[int, Meta(ge=0, le=2**31, description="of the random choice")] = 0


def _task_arithmetic(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """theta_0 + scale * mean(tau_i) (arXiv:2212.04089), as exact fractions."""
    pool, k = selection.pool, len(selection.pool.checkpoints)

    def make(scale: Fraction) -> Candidate:
        n, d = scale.numerator, scale.denominator
        parts = [(pool.init.sha256, (d - n) * k), *((sha, n) for sha in pool.checkpoints)]
        return weight_soup(parts, d * k)

    return _best_scale(selection, "task_arithmetic", make, {})


def _ties(selection: Selection, earlier: Earlier, options: TiesOptions) -> list[Outcome]:
    """Trim, elect signs, and average what agrees (arXiv:2306.01708)."""
    origin, shas = selection.pool.init.sha256, selection.pool.checkpoints
    asked = [Threshold(checkpoint=sha, origin=origin, keep=options.keep) for sha in shas]
    parts = tuple(zip(shas, selection.measure(asked), strict=True))

    def make(scale: Fraction) -> Candidate:
        return TiesSoup(origin=origin, parts=parts, scale=float(scale))

    return _best_scale(selection, "ties", make, {"keep": options.keep})


def _dare(selection: Selection, earlier: Earlier, options: DareOptions) -> list[Outcome]:
    """Drop changes at random, and rescale the others (arXiv:2311.03099)."""
    pool = selection.pool

    def make(scale: Fraction) -> Candidate:
        return DareSoup(
            origin=pool.init.sha256,
            models=tuple(pool.checkpoints),
            drop=options.drop,
            seed=options.seed,
            scale=float(scale),
        )

    used = {"drop": options.drop, "seed": options.seed}
    return _best_scale(selection, "dare", make, used)


def _best_scale(
    selection: Selection,
    name: str,
    make: Callable[[Fraction], Candidate],
    used: Mapping[str, str | int | float],
) -> list[Outcome]:
    """Return the best scale on held-out data; on a tie, that which is nearest to 1."""
    candidates = [make(scale) for scale in SCALES]
    scores = selection.scores(candidates)
    best = max(
        range(len(SCALES)), key=lambda k: (selection.value(scores[k]), -abs(SCALES[k] - 1), -k)
    )
    return [
        Outcome(
            name=name,
            recipe=name,
            options={**used, "scale": float(SCALES[best])},
            candidate=candidates[best],
            held_out=scores[best],
            trace=curve(candidates, scores, best),
        )
    ]


def _cost(pool: object, options: Options) -> Cost:
    return Cost(scored=len(SCALES), models=1, mixtures=len(SCALES))


TASK_ARITHMETIC = Recipe(
    name="task_arithmetic",
    summary="init plus a multiple of the mean change of all ingredients",
    when="Where all trials stopped too early, or went too far: it can go beyond the mean.",
    paper="Ilharco et al. 2022, arXiv:2212.04089",
    kind="soup",
    costs="12",
    uses="held-out counts",
    choose=_task_arithmetic,
    with_all=False,
    cost=_cost,
)

TIES = Recipe(
    name="ties",
    summary="as task_arithmetic, with the large changes only, where their signs agree",
    when="For studies: it is made for models of different tasks. A sweep has one.",
    paper="Yadav et al. 2023, arXiv:2306.01708",
    kind="soup",
    costs="12",
    uses="held-out counts",
    options=TiesOptions,
    choose=_ties,
    with_all=False,
    cost=_cost,
)

DARE = Recipe(
    name="dare",
    summary="as task_arithmetic, with most changes left out at random and the others enlarged",
    when="For studies: it is made for models of different tasks. A sweep has one.",
    paper="Yu et al. 2023, arXiv:2311.03099",
    kind="soup",
    costs="12",
    uses="held-out counts",
    options=DareOptions,
    choose=_dare,
    with_all=False,
    cost=_cost,
)
