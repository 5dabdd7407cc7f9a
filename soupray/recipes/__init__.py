"""The recipes, one per file, and the functions that check and run them.

A recipe uses the pool and its held-out scores through a `Selection`, and the outcomes of earlier
recipes. It has no access to weights, test data or the store.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from soupray.core.candidates import Outcome
from soupray.core.errors import (
    ConfigError,
    EvaluationError,
    SouprayError,
    WeightsGone,
    one_line,
)
from soupray.core.plugins import installed, is_plugin, load, raised, refuse_signature
from soupray.core.ports import Selection
from soupray.core.records import decode, encode
from soupray.core.trials import Pool
from soupray.recipes.baselines import ANCHOR, BEST_SINGLE, UPDATE_BN
from soupray.recipes.cma_es import CMA_ES
from soupray.recipes.dawin import DAWIN
from soupray.recipes.ensembles import ENSEMBLE, GREEDY_ENSEMBLE
from soupray.recipes.fisher import FISHER
from soupray.recipes.greedy import GREEDY
from soupray.recipes.learned import LEARNED, LEARNED_BY_LAYER
from soupray.recipes.lines import LINES
from soupray.recipes.model_stock import MODEL_STOCK
from soupray.recipes.ose import OSE
from soupray.recipes.proxy import PROXY
from soupray.recipes.pruned import PRUNED
from soupray.recipes.recipe import Cost, Earlier, Kind, Option, Options, PoolSize, Recipe
from soupray.recipes.replacement import REPLACEMENT
from soupray.recipes.signed import LEARNED_SIGNED
from soupray.recipes.similar import GREEDY_SIMILAR
from soupray.recipes.slerp import SLERP
from soupray.recipes.soce import SOCE
from soupray.recipes.task_vectors import DARE, TASK_ARITHMETIC, TIES
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
    PROXY,
    GREEDY_SIMILAR,
    SLERP,
    SOCE,
    LEARNED,
    LEARNED_BY_LAYER,
    LEARNED_SIGNED,
    CMA_ES,
    FISHER,
    MODEL_STOCK,
    TASK_ARITHMETIC,
    TIES,
    DARE,
    WISE_FT,
    LINES,
    ENSEMBLE,
    GREEDY_ENSEMBLE,
    OSE,
    VRF,
    DAWIN,
)
"""All recipes in the order in which they run: baselines, soups, recipes that need a soup."""

BY_NAME: Mapping[str, Recipe[Any]] = {recipe.name: recipe for recipe in RECIPES}


GROUP = "soupray.recipes"
"""Entry points of recipes that are not soupray's own."""

ORDER: tuple[Kind, ...] = ("baseline", "soup", "line", "ensemble")
"""Kinds in the order in which they run: lines and ensembles may start from a soup."""


def check_recipes(recipes: Wanted, source: str) -> None:
    """Raise ConfigError if a recipe or one of its options is unknown.

    A plug-in is only checked to have the form of one: `rank` and `status` need none of its code.

    Args:
        recipes: options by the name of the recipe.
        source: names the place of the recipes, for the message.
    """
    for name, options in recipes.items():
        if name in BY_NAME:
            BY_NAME[name].read(options, source)
        elif not is_plugin(name, GROUP):
            known = [*BY_NAME, *installed(GROUP)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{source}: unknown recipe {name!r}. Known recipes: {', '.join(known)}; or "
                f"module:name for your own.{hint}"
            )


def check_objective(name: str, objective: str) -> None:
    """Raise ConfigError if a recipe is not for an objective.

    Args:
        name: of the recipe.
        objective: one_class, multi_label or regression.
    """
    allowed = find_recipe(name).objectives
    if objective not in allowed:
        offered = ", ".join(recipe.name for recipe in RECIPES if objective in recipe.objectives)
        raise ConfigError(
            f"{name} is for {', '.join(allowed)}; the targets of this spec are of {objective}. "
            f"Choose among {offered}, or all."
        )


def load_recipes(wanted: Wanted) -> None:
    """Raise ConfigError if a recipe is not there, or if one of its options is not allowed.

    Args:
        wanted: options by the name of the recipe.
    """
    for name, options in wanted.items():
        find_recipe(name).read(options, "recipes")


def find_recipe(name: str) -> Recipe[Any]:
    """Return the recipe with this name, which may be a plug-in.

    Args:
        name: as in a spec.

    Raises:
        ConfigError: there is no such recipe, or what is there is none.
    """
    if name in BY_NAME:
        return BY_NAME[name]
    found = load(GROUP, name)
    recipe, where = found.value, f"recipe {name!r} ({found.origin})"
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{where} is {type(recipe).__name__}, not a soupray.recipes.recipe.Recipe object."
        )
    named = isinstance(recipe.name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", recipe.name)
    if not named or recipe.name in BY_NAME:
        raise ConfigError(
            f"{where} has the name {recipe.name!r}. Allowed: lower-case letters, digits and _, and "
            f"none of {', '.join(BY_NAME)}."
        )
    if recipe.kind not in ORDER:
        raise ConfigError(f"{where} has the kind {recipe.kind!r}. Allowed: {', '.join(ORDER)}.")
    options = recipe.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise ConfigError(
            f"{where} has the options {options!r}. Allowed: a subclass of "
            "soupray.recipes.recipe.Options."
        )
    refuse_signature(recipe.choose, f"{where}: choose", ("selection", "earlier", "options"))
    refuse_signature(recipe.cost, f"{where}: cost", ("pool", "options"))
    return recipe


def code_of(wanted: Wanted) -> list[str]:
    """Return the digests of the code of all plug-ins among these recipes.

    Args:
        wanted: options by the name of the recipe.
    """
    return [load(GROUP, name).digest for name in sorted(wanted) if name not in BY_NAME]


def run_recipes(selection: Selection, wanted: Wanted) -> list[Outcome]:
    """Run recipes: baselines, soups, and those that can use the soups of earlier ones.

    Args:
        selection: the pool and its held-out scores.
        wanted: options by the name of the recipe.

    Raises:
        ConfigError: two recipes have the same name.
        EvaluationError: a plug-in raised an error, or returned what is no outcome.
        WeightsGone: a recipe needs weights that were let go.
    """
    found = {name: find_recipe(name) for name in sorted(wanted, key=_place)}
    kinds = {recipe.name: recipe.kind for recipe in found.values()}
    if len(kinds) < len(found):
        raise ConfigError(f"two of the recipes {', '.join(found)} have the same name.")
    outcomes: list[Outcome] = []
    for name, recipe in found.items():
        soups = tuple(o for o in outcomes if kinds[o.recipe] == "soup")
        earlier = Earlier(tuple(outcomes), soups)
        try:
            if name in BY_NAME:
                outcomes += recipe.run(selection, earlier, wanted[name])
            else:
                outcomes += _run_plugin(name, recipe, (selection, earlier, wanted[name]))
        except WeightsGone as error:
            raise WeightsGone(f"{name}: {error}") from error
    return outcomes


def _place(name: str) -> tuple[int, int, str]:
    own = [recipe.name for recipe in RECIPES]
    at = own.index(name) if name in own else len(own)
    return ORDER.index(find_recipe(name).kind), at, name


def _run_plugin(
    name: str, recipe: Recipe[Any], given: tuple[Selection, Earlier, dict[str, Option]]
) -> list[Outcome]:
    """Run a recipe that may do anything. What was evaluated for it is stored in any case."""
    where = f"recipe {name!r} ({load(GROUP, name).origin})"
    before = _trials_of(given[0].pool)
    try:
        made = recipe.run(*given)
    except SouprayError:
        raise
    except Exception as error:
        raise EvaluationError(
            f"{where} raised {raised(error)}. Without it: take it out of the spec. Nothing that is "
            "stored is lost."
        ) from error
    selection, earlier, _ = given
    if _trials_of(selection.pool) != before:
        raise EvaluationError(
            f"{where} changed the hyperparameters of trials in the pool. Copy what it changes: "
            "dict(trial.hparams)."
        )
    if problem := broken_contract(recipe, made, selection.pool, earlier):
        raise EvaluationError(f"{where}: {problem}.")
    return made


def _trials_of(pool: Pool) -> dict[str, dict[str, Any]]:
    """What a recipe could change of a pool: all else of it cannot be changed."""
    return {i.trial.key: dict(i.trial.hparams) for i in pool.ingredients}


def broken_contract(recipe: Recipe[Any], made: Any, pool: Pool, earlier: Earlier) -> str:
    """Return what is wrong with the outcomes of a recipe; empty if nothing is.

    Args:
        recipe: the recipe.
        made: what it returned.
        pool: the ingredients that it was given.
        earlier: the outcomes that it was given.
    """
    if not isinstance(made, list) or not all(isinstance(o, Outcome) for o in made):
        return f"it returned {type(made).__name__}, not a list of Outcome"
    known = {*pool.checkpoints, pool.anchor.sha256, pool.init.sha256}
    names = [o.name for o in (*earlier.outcomes, *made)]
    for one in made:
        try:
            stored = decode(encode(one), Outcome)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            return f"its outcome {str(one.name)[:40]!r} cannot be stored: {one_line(error)}"
        if stored != one:  # NaN, or numbers of other kinds
            return f"its outcome {one.name!r} is another one when it is stored and read"
        if one.recipe != recipe.name:
            return f"its outcome {one.name!r} is of recipe {one.recipe!r}, not {recipe.name!r}"
        if names.count(one.name) > 1:
            return f"there are two outcomes of the name {one.name!r}"
        if not set(one.candidate.checkpoints) <= known:
            return f"its outcome {one.name!r} has weights that are not in the pool"
        if one.held_out.split != pool.ingredients[0].held_out.split:
            return f"the scores of its outcome {one.name!r} are not of the held-out data"
    return ""


def total_cost(pool: PoolSize, wanted: Wanted) -> Cost:
    """Return the largest total cost of all wanted recipes."""
    costs = [_cost(name, find_recipe(name), pool, wanted[name]) for name in wanted]
    return Cost(*map(sum, zip(*costs, strict=True)))


def _cost(name: str, recipe: Recipe[Any], pool: PoolSize, options: dict[str, Option]) -> Cost:
    """The cost of a recipe, which may be a plug-in that raises. Raises ConfigError."""
    read = recipe.read(options, "recipes")
    if name in BY_NAME:
        return recipe.cost(pool, read)
    where = f"recipe {name!r} ({load(GROUP, name).origin}): cost"
    try:
        cost = recipe.cost(pool, read)
    except Exception as error:
        raise ConfigError(f"{where} raised {raised(error)}.") from error
    if not isinstance(cost, Cost) or not all(isinstance(n, int) and n >= 0 for n in cost):
        raise ConfigError(
            f"{where} returned {cost!r}. Return a soupray.recipes.recipe.Cost of whole numbers "
            "from 0."
        )
    return cost
