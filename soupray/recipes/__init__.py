"""One recipe a file, and the one table that names them.

A recipe is a function `(selection, earlier, **options) -> list[Outcome]`. It sees the pool and
held-out scores through `selection` and the outcomes of the recipes before it; it never sees a
tensor of weights, a test split or a store.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from soupray.core.candidates import Outcome
from soupray.core.errors import ConfigError

Option = str | int | float | list[float]
RecipeFunction = Callable[..., list[Outcome]]


@dataclass(frozen=True)
class Within:
    """Numbers from `low` to `high`, whole ones if these are."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        whole = isinstance(self.low, int)
        return self.low <= value <= self.high and not (whole and value != int(value))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', whole' if isinstance(self.low, int) else ''}"


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return ", ".join(self.words)


@dataclass(frozen=True)
class ListOf:
    """A list of numbers that have at most so many decimals."""

    each: Within
    decimals: int

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, list)
            and len(value) > 0
            and all(v in self.each and round(v, self.decimals) == v for v in value)
        )

    def __str__(self) -> str:
        return f"a list of numbers, each {self.each}, with {self.decimals} decimals at most"


@dataclass(frozen=True)
class Name:
    """Text that the recipe looks up; `what` says where."""

    what: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value != ""

    def __str__(self) -> str:
        return self.what


Allowed = Within | OneOf | ListOf | Name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A row of the table. `where` is imported on use; `options` maps name -> allowed values.

    `cost` is what choosing costs, in evaluations of a model on held-out data with K ingredients;
    `passes` what inference costs, in forward passes a sample; `uses` what the choice looks at.
    """

    name: str
    summary: str
    paper: str
    cost: str
    uses: str
    where: str
    passes: str = "1"
    options: dict[str, Allowed] = field(default_factory=dict)
    baseline: bool = False

    @property
    def ensemble(self) -> bool:
        """It mixes outputs, not weights."""
        return self.passes != "1"

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
                raise ConfigError(
                    f"{source}: recipe {self.name}: {name} = {value!r}. "
                    f"Allowed: {self.options[name]}."
                )


_MODEL_SOUPS = "Wortsman et al. 2022, arXiv:2203.05482"
_WISE_FT = "Wortsman et al. 2021, arXiv:2109.01903"
_ACCEPT = OneOf(("ge", "gt"))
_SPACE = OneOf(("logits", "probabilities"))
_LEARNED: dict[str, Allowed] = {
    "lr": Within(1e-5, 10.0),
    "epochs": Within(1, 1000),
    "batch_size": Within(1, 10**6),
}

TABLE: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="anchor",
            summary="the zero-shot (or other reference) model",
            paper="-",
            cost="1",
            uses="nothing",
            where="soupray.recipes.baselines:anchor",
            baseline=True,
        ),
        Recipe(
            name="best_single",
            summary="the ingredient that is best on held-out data",
            paper="-",
            cost="0: scored when trained",
            uses="held-out counts",
            where="soupray.recipes.baselines:best_single",
            baseline=True,
        ),
        Recipe(
            name="uniform",
            summary="mean of all ingredients",
            paper=_MODEL_SOUPS,
            cost="1",
            uses="nothing",
            where="soupray.recipes.uniform:uniform",
        ),
        Recipe(
            name="greedy",
            summary="keep an ingredient if the mean with it does not score lower on held-out data",
            paper=_MODEL_SOUPS + ", recipe 1",
            cost="K - 1",
            uses="held-out counts",
            where="soupray.recipes.greedy:greedy",
            options={
                "accept": _ACCEPT,
                "order": OneOf(("held_out", "random")),
                "seed": Within(0, 2**31),
            },
        ),
        Recipe(
            name="replacement",
            summary="greedy, and an ingredient may be added more than once",
            paper=_MODEL_SOUPS,
            cost="up to passes K",
            uses="held-out counts",
            where="soupray.recipes.replacement:replacement",
            options={"passes": Within(1, 100)},
        ),
        Recipe(
            name="pruned",
            summary="start from all, drop an ingredient if that does not hurt",
            paper="arXiv:2301.10092",
            cost="K",
            uses="held-out counts",
            where="soupray.recipes.pruned:pruned",
        ),
        Recipe(
            name="learned",
            summary="coefficients by gradient descent on held-out loss",
            paper=_MODEL_SOUPS + ", appendix",
            cost="epochs, forward and backward",
            uses="held-out loss",
            where="soupray.recipes.learned:learned",
            options=_LEARNED,
        ),
        Recipe(
            name="learned_by_layer",
            summary="the same, with coefficients of its own for each tensor",
            paper=_MODEL_SOUPS + ", appendix",
            cost="epochs, forward and backward",
            uses="held-out loss",
            where="soupray.recipes.learned:learned_by_layer",
            options=_LEARNED,
        ),
        Recipe(
            name="fisher",
            summary="mean weighted by each ingredient's diagonal Fisher information",
            paper="Matena and Raffel 2021, arXiv:2111.09832",
            cost="samples K gradients",
            uses="training inputs",
            where="soupray.recipes.fisher:fisher",
            options={"samples": Within(1, 10**6)},
        ),
        Recipe(
            name="model_stock",
            summary="between init and mean, by the angles among the ingredients",
            paper="Jang et al. 2024, arXiv:2403.19522",
            cost="1",
            uses="nothing",
            where="soupray.recipes.model_stock:model_stock",
        ),
        Recipe(
            name="wise_ft",
            summary="interpolate from the anchor to the best single model and to the best soup",
            paper=_WISE_FT,
            cost="19 a line",
            uses="held-out counts",
            where="soupray.recipes.wise_ft:wise_ft",
            # Mixed with a mean of up to 500, products n * theta are exact in float64 (`QUANTUM`).
            options={
                "alphas": ListOf(Within(0.0, 1.0), decimals=6),
                "eps": Within(0.0, 1.0),
                "theta_1": Name(
                    "text: the name of a soup of this run, or how a trial's key begins"
                ),
            },
        ),
        Recipe(
            name="lines",
            summary="interpolate by depth, shallow layers closer to the init",
            paper="Wang et al. 2024, arXiv:2410.17146",
            cost="10 a line",
            uses="held-out counts",
            where="soupray.recipes.lines:lines",
        ),
        Recipe(
            name="ensemble",
            summary="mean of the outputs of all ingredients",
            paper=_MODEL_SOUPS,
            cost="0: from stored logits",
            uses="nothing",
            passes="K",
            where="soupray.recipes.ensembles:ensemble",
            options={"space": _SPACE},
        ),
        Recipe(
            name="greedy_ensemble",
            summary="greedy over outputs instead of weights",
            paper=_MODEL_SOUPS,
            cost="0: from stored logits",
            uses="held-out counts",
            passes="up to K",
            where="soupray.recipes.ensembles:greedy_ensemble",
            options={"space": _SPACE, "accept": _ACCEPT},
        ),
        Recipe(
            name="ose",
            summary="mix the outputs of anchor and fine-tuned model, one alpha for all samples",
            paper=_WISE_FT,
            cost="0: from stored logits",
            uses="held-out counts and NLL",
            passes="2",
            where="soupray.recipes.ose:ose",
        ),
        Recipe(
            name="vrf",
            summary="mix them sample by sample, by the distance to the zero-shot failure set",
            paper="Zhu et al. 2024, arXiv:2411.06966",
            cost="1, and 2 passes over train",
            uses="training answers, held-out counts and NLL",
            passes="2",
            where="soupray.recipes.vrf:vrf",
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
