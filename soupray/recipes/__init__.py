"""The recipes, one per file, and the functions that check and run them.

A recipe uses the pool and its held-out scores through a `Selection`, and the outcomes of earlier
recipes. It has no access to weights, test data or the store.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from soupray.core.candidates import Outcome
from soupray.core.errors import ConfigError
from soupray.core.ports import Selection
from soupray.recipes.baselines import ANCHOR, BEST_SINGLE, UPDATE_BN
from soupray.recipes.ensembles import ENSEMBLE, GREEDY_ENSEMBLE
from soupray.recipes.fisher import FISHER
from soupray.recipes.greedy import GREEDY
from soupray.recipes.learned import LEARNED, LEARNED_BY_LAYER
from soupray.recipes.lines import LINES
from soupray.recipes.model_stock import MODEL_STOCK
from soupray.recipes.ose import OSE
from soupray.recipes.pruned import PRUNED
from soupray.recipes.recipe import Cost, Earlier, Option, PoolSize, Recipe
from soupray.recipes.replacement import REPLACEMENT
from soupray.recipes.uniform import UNIFORM
from soupray.recipes.vrf import VRF
from soupray.recipes.wise_ft import WISE_FT

Wanted = dict[str, dict[str, Option]]
"""Options by the name of the recipe, as in a spec."""

RECIPES: tuple[Recipe[Any], ...] = (
    ANCHOR,
    BEST_SINGLE,
    UPDATE_BN,
    UNIFORM,
    GREEDY,
    REPLACEMENT,
    PRUNED,
    LEARNED,
    LEARNED_BY_LAYER,
    FISHER,
    MODEL_STOCK,
    WISE_FT,
    LINES,
    ENSEMBLE,
    GREEDY_ENSEMBLE,
    OSE,
    VRF,
)
"""All recipes in the order in which they run: baselines, soups, recipes that need a soup."""

BY_NAME: Mapping[str, Recipe[Any]] = {recipe.name: recipe for recipe in RECIPES}


def check_recipes(recipes: Wanted, source: str) -> None:
    """Raise ConfigError if a recipe or one of its options is unknown.

    Args:
        recipes: options by the name of the recipe.
        source: names the place of the recipes, for the message.
    """
    for name, options in recipes.items():
        if name not in BY_NAME:
            known = ", ".join(BY_NAME)
            close = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{source}: unknown recipe {name!r}. Known recipes: {known}.{hint}")
        BY_NAME[name].read(options, source)


def run_recipes(selection: Selection, wanted: Wanted) -> list[Outcome]:
    """Run recipes in the order of `RECIPES`, so that a recipe can use the soups of earlier ones.

    Args:
        selection: the pool and its held-out scores.
        wanted: options by the name of the recipe.
    """
    outcomes: list[Outcome] = []
    for recipe in RECIPES:
        if recipe.name in wanted:
            soups = tuple(o for o in outcomes if BY_NAME[o.recipe].kind == "soup")
            earlier = Earlier(tuple(outcomes), soups)
            outcomes += recipe.run(selection, earlier, wanted[recipe.name])
    return outcomes


def total_cost(pool: PoolSize, wanted: Wanted) -> Cost:
    """Return the largest total cost of all wanted recipes."""
    costs = [BY_NAME[n].cost(pool, BY_NAME[n].read(o, "recipes")) for n, o in wanted.items()]
    return Cost(*map(sum, zip(*costs, strict=True)))
