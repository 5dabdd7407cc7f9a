"""One recipe a file, and the one table that names them.

A recipe is a function `(selection, earlier, **options) -> list[Outcome]`. It sees the pool and
held-out scores through `selection` and the outcomes of the recipes before it; it never sees a
tensor of weights, a test split or a store.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from soupray.errors import ConfigError
from soupray.records import Outcome

Option = str | int | float
RecipeFunction = Callable[..., list[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A row of the table. `where` is imported on use; `options` maps name -> allowed values."""

    name: str
    summary: str
    paper: str
    cost: str
    where: str
    options: dict[str, tuple[Option, ...]] = field(default_factory=dict)
    baseline: bool = False

    def function(self) -> RecipeFunction:
        """The implementation."""
        module, _, name = self.where.partition(":")
        function: RecipeFunction = getattr(importlib.import_module(module), name)
        return function

    def check(self, options: dict[str, Option], source: str) -> None:
        """Raises ConfigError for an unknown option or a value that is not allowed."""
        for name, value in options.items():
            if name not in self.options:
                allowed = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"{source}: recipe {self.name} has no option {name!r}. Its options: {allowed}."
                )
            if value not in self.options[name]:
                allowed = ", ".join(str(v) for v in self.options[name])
                raise ConfigError(
                    f"{source}: recipe {self.name}: {name} = {value!r}. Allowed: {allowed}."
                )


_MODEL_SOUPS = "Wortsman et al. 2022, arXiv:2203.05482"

TABLE: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="anchor",
            summary="the zero-shot (or other reference) model",
            paper="-",
            cost="1 evaluation",
            where="soupray.recipes.baselines:anchor",
            baseline=True,
        ),
        Recipe(
            name="best_single",
            summary="the ingredient that is best on held-out data",
            paper="-",
            cost="none: scored when trained",
            where="soupray.recipes.baselines:best_single",
            baseline=True,
        ),
        Recipe(
            name="uniform",
            summary="mean of all ingredients",
            paper=_MODEL_SOUPS,
            cost="1 evaluation",
            where="soupray.recipes.uniform:uniform",
        ),
        Recipe(
            name="greedy",
            summary="keep an ingredient if the mean with it does not score lower on held-out data",
            paper=_MODEL_SOUPS + ", recipe 1",
            cost="K - 1 evaluations",
            where="soupray.recipes.greedy:greedy",
            options={"accept": ("ge", "gt")},
        ),
        Recipe(
            name="wise_ft",
            summary="interpolate from the anchor to the best single model and to the best soup",
            paper="Wortsman et al. 2021, arXiv:2109.01903",
            cost="19 evaluations a line",
            where="soupray.recipes.wise_ft:wise_ft",
        ),
    )
}
"""In the order in which they run: baselines first, then soups, then what starts from a soup."""


def check_recipes(recipes: dict[str, dict[str, Option]], source: str) -> None:
    """Raises ConfigError if a recipe or one of its options is unknown."""
    for name, options in recipes.items():
        if name not in TABLE:
            known = ", ".join(TABLE)
            raise ConfigError(f"{source}: unknown recipe {name!r}. Known recipes: {known}.")
        TABLE[name].check(options, source)
