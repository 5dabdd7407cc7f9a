"""The contract of a recipe, on pools of linear models with the real store and evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from msgspec import UNSET, UnsetType

from soupray.core.candidates import Outcome
from soupray.core.records import Objective
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.metrics import score
from soupray.recipes import broken_contract
from soupray.recipes.baselines import ANCHOR, BEST_SINGLE
from soupray.recipes.recipe import Cost, Earlier, Option, PoolSize, Recipe
from soupray.recipes.uniform import UNIFORM
from soupray.testing.linear import Toy, toy, truth

Models = Callable[[], list[torch.Tensor] | int]

POOLS: Mapping[str, Models] = {
    "six": lambda: 6,
    "one": lambda: 1,
    "two": lambda: 2,
    "equal": lambda: [truth() * 1.1] * 4,
    "nothing learnt": lambda: [truth() * 0.3] * 3,  # every trial is theta_0
    "a bad one": lambda: [truth(), truth() * 1.1, -4 * truth()],
}
"""Pools on which a recipe has to work, by name: their weights, or the number of random ones."""

OBJECTIVES = (
    Objective(kind="multi_label"),
    Objective(kind="regression", tolerance=0.5),
    Objective(kind="segmentation"),
    Objective(kind="retrieval", first=1, scale=1.0),
)
"""Objectives of further pools, on which a recipe has to work if `Recipe.objectives` has them."""


def check_recipe(
    recipe: Recipe[Any], folder: Path, options: Mapping[str, Option] = MappingProxyType({})
) -> dict[str, list[Outcome]]:
    """Check that a recipe keeps its contract on small pools, and return what it chose.

    It gets the pool, held-out scores, and the outcomes of `anchor`, `best_single` and `uniform`. It
    has to return outcomes of its own name, of models of this pool, with the scores of exactly these
    models on held-out data; the same ones in a second run; and coefficients that sum to one. There
    is a pool for each objective that it is for.

    Args:
        recipe: the recipe.
        folder: an empty folder for the data of the pools.
        options: options as in a spec.

    Returns:
        The outcomes by the name of the pool.

    Raises:
        AssertionError: the contract is broken; the message says how, and on which pool.
    """
    found = {}
    pools: list[tuple[str, Models, Objective | UnsetType]] = [
        (name, models, UNSET) for name, models in POOLS.items()
    ]
    pools += [(o.kind, lambda: 6, o) for o in OBJECTIVES if o.kind in recipe.objectives]
    for number, (name, models, objective) in enumerate(pools):
        world = toy(folder / str(number), models(), objective=objective)
        earlier = _earlier(world, recipe.name)
        first, second = (recipe.run(_selection(world), earlier, dict(options)) for _ in range(2))
        on = f"recipe {recipe.name} on the pool {name!r}"
        problem = broken_contract(recipe, first, world.pool, earlier)
        assert not problem, f"{on}: {problem}"
        assert first == second, f"{on}: a second run chose otherwise"
        for outcome in first:
            _check_outcome(world, outcome, f"{on}, outcome {outcome.name!r}")
        found[name] = first
    size = PoolSize(k=6, held_out=90)
    cost = recipe.cost(size, recipe.read(dict(options), "options"))
    assert isinstance(cost, Cost), f"recipe {recipe.name}: its cost is no Cost"
    assert min(cost) >= 0, f"recipe {recipe.name}: its cost {cost} is negative"
    return found


def _selection(world: Toy) -> HeldOutSelection:
    """What a recipe gets, with the metric that the scores of the pool are about."""
    return world.selection(metric=world.pool.ingredients[0].held_out.graded or "accuracy")


def _earlier(world: Toy, but: str) -> Earlier:
    selection = _selection(world)
    before: list[Outcome] = []
    for one in (ANCHOR, BEST_SINGLE, UNIFORM):
        if one.name != but:
            before += one.run(selection, Earlier(tuple(before)), {})
    return Earlier(tuple(before), tuple(o for o in before if o.recipe == UNIFORM.name))


def _check_outcome(world: Toy, outcome: Outcome, where: str) -> None:
    held_out = world.basis.split("held_out")
    predictions = world.evaluator.predictions(outcome.candidate, held_out)
    assert outcome.held_out.right == score(predictions).right, f"{where}: these are other scores"
    if outcome.candidate.coefficients:  # else they differ from sample to sample
        total = float(np.sum(outcome.candidate.coefficients))
        assert abs(total - 1) < 1e-6, f"{where}: the coefficients sum to {total:g}, not to 1"
