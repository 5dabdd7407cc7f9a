"""Uniform soup: the mean of all ingredients (Model soups, arXiv:2203.05482). Uses no data."""

from __future__ import annotations

from soupray.core.candidates import Outcome, mean_of
from soupray.core.ports import Selection
from soupray.recipes.recipe import TEAL, Cost, Earlier, Options, Recipe, Style, single


def _uniform(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the mean of all ingredients; its held-out score is used only for the ranking."""
    return single(selection, "uniform", mean_of(selection.pool.checkpoints))


UNIFORM = Recipe(
    name="uniform",
    summary="mean of all ingredients",
    when="The quickest test of whether a pool averages well. All trials count, the weak ones too.",
    paper="Wortsman et al. 2022, arXiv:2203.05482",
    kind="soup",
    costs="1",
    choose=_uniform,
    cost=lambda pool, options: Cost(scored=1, models=1, mixtures=1),
    style=Style("uniform", "s", TEAL, own=True),
)
