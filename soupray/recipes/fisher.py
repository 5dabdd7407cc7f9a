"""Fisher-weighted average (Matena and Raffel, arXiv:2111.09832).

theta_j = sum_i F_ij theta_ij / sum_i F_ij: a model has more weight where its Fisher information is
larger. The diagonal Fisher information of each ingredient is estimated on training samples, with
one gradient per sample.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import FisherSoup, Outcome
from soupray.core.ports import Selection
from soupray.core.requests import Fisher
from soupray.recipes.recipe import ONE_CLASS, Cost, Earlier, Options, PoolSize, Recipe, single


class FisherOptions(Options, frozen=True, kw_only=True):
    """Options of fisher."""

    samples: Annotated[
        int, Meta(ge=1, le=10**6, description="training samples for each ingredient")
    ] = 100


def _fisher(selection: Selection, earlier: Earlier, options: FisherOptions) -> list[Outcome]:
    """Return the Fisher-weighted mean of all ingredients."""
    pool, samples = selection.pool.checkpoints, options.samples
    known = selection.measure([Fisher(checkpoint=sha, samples=samples) for sha in pool])
    soup = FisherSoup(parts=tuple((sha, f.sha256, 1) for sha, f in zip(pool, known, strict=True)))
    return single(selection, "fisher", soup, {"samples": samples})


def _cost(pool: PoolSize, options: FisherOptions) -> Cost:
    samples = pool.k * options.samples
    return Cost(scored=1, models=1, train_samples=samples, files=pool.k, mixtures=1)


FISHER = Recipe(
    name="fisher",
    summary="mean weighted by each ingredient's diagonal Fisher information",
    when="Where trials are sure of different weights: those of which a trial is sure count more.",
    paper="Matena and Raffel 2021, arXiv:2111.09832",
    kind="soup",
    costs="samples K gradients",
    uses="training inputs",
    options=FisherOptions,
    objectives=(ONE_CLASS,),  # class probabilities
    choose=_fisher,
    cost=_cost,
)
