"""What a recipe declares of itself, for whoever lists, checks, runs, prices or draws recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from soupray.core.candidates import Candidate, Outcome, Step
from soupray.core.errors import ConfigError
from soupray.core.ports import Selection
from soupray.core.records import Ingredient

Option = str | int | float | list[float]
"""An option's value, as a spec has it."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a recipe: name, type, default and allowed values. Without fields: none."""


def allows(words: str) -> msgspec.Meta:
    """The allowed values of an option in words, where its type does not say them all."""
    return msgspec.Meta(extra_json_schema={"description": words})


O = TypeVar("O", bound=Options)  # noqa: E741


class Earlier(NamedTuple):
    """The outcomes of the recipes that ran before, and those of them that `kind` calls soups."""

    outcomes: tuple[Outcome, ...] = ()
    soups: tuple[Outcome, ...] = ()


class PoolSize(NamedTuple):
    """What the cost of a recipe depends on: ingredients, and held-out samples."""

    k: int
    held_out: int


class Cost(NamedTuple):
    """What a recipe costs at most.

    `decided`: candidates that are decided by counts, which early rejection makes cheaper. `scored`:
    candidates that are scored in full. `models`: models that are reported on. Logits are stored of
    the last two. `train_passes`: passes over all training data. `train_samples`: single training
    samples. `files`: further files as large as a model. `mixtures`: soups of several models, each
    of which has BatchNorm statistics of its own.
    """

    decided: int = 0
    scored: int = 0
    models: int = 0
    train_passes: int = 0
    train_samples: int = 0
    files: int = 0
    mixtures: int = 0


class Style(NamedTuple):
    """How the figures show the entries of a recipe.

    `own`: each under its own name, in `colour`; else all of the same `label` together, with open
    markers. Without a marker they are no points.
    """

    label: str
    marker: str
    colour: str
    own: bool = False


TEAL = "#2a9d8f"
SOUP = Style("other soups", "s", TEAL)
ENSEMBLE = Style("ensembles", "^", TEAL)

Kind = Literal["baseline", "soup", "line", "ensemble"]
"""baseline: always run. soup: one model, a mean of ingredients. line: one model, on the way from
another to the best soup. ensemble: outputs of several models are mixed."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[O]):
    """A way to choose coefficients, with everything that is to be known about it.

    Attributes:
        name: of the recipe, in specs; with dashes, the flag of the command line.
        summary: what it does, in half a sentence.
        paper: its source.
        kind: see `Kind`.
        costs: what choosing costs, in words: evaluations of one model on held-out data, of K
            ingredients.
        uses: what the choice looks at, in words.
        passes: forward passes a sample that inference takes, in words.
        options: their type, which checks and documents them.
        choose: the implementation. It sees the pool and held-out scores through the selection, and
            what the recipes before it chose; never a tensor of weights, a test split or a store.
        cost: the cost in numbers, which the dry run and the progress bar ask for.
        reads: bytes of weights that it reads, where that may be very many.
        style: how figures show its entries.
    """

    name: str
    summary: str
    paper: str
    kind: Kind
    costs: str
    choose: Callable[[Selection, Earlier, O], list[Outcome]]
    options: type[O] = Options  # type: ignore[assignment]
    cost: Callable[[PoolSize, O], Cost] = lambda pool, options: Cost()
    uses: str = "nothing"
    passes: str = "1"
    style: Style = SOUP
    reads: Callable[[Sequence[Ingredient], O], int] | None = None

    def run(
        self,
        selection: Selection,
        earlier: Earlier = Earlier(),  # noqa: B008 - immutable
        options: Mapping[str, Option] = MappingProxyType({}),
    ) -> list[Outcome]:
        """What the recipe chooses, with `options` as a spec has them. Raises ConfigError."""
        return self.choose(selection, earlier, self.read(options, "options"))

    def read(self, options: Mapping[str, Option], source: str) -> O:
        """The typed options; `source` names where they are written.

        Raises:
            ConfigError: an unknown option, or a value that is not allowed.
        """
        fields = {field.name: field for field in msgspec.structs.fields(self.options)}
        for name, value in options.items():
            if name not in fields:
                raise ConfigError(
                    f"{source}: recipe {self.name} has no option {name!r}. Its options: "
                    f"{', '.join(fields) or 'none'}."
                )
            try:
                msgspec.convert({name: value}, self.options)
            except msgspec.ValidationError as error:
                raise ConfigError(
                    f"{source}: recipe {self.name}: {name} = {value!r}. "
                    f"Allowed: {self.allowed()[name]}."
                ) from error
        return msgspec.convert(dict(options), self.options)

    def allowed(self) -> dict[str, str]:
        """By option, the values that are allowed, in words."""
        return {f.name: _in_words(f.type) for f in msgspec.structs.fields(self.options)}


def single(
    selection: Selection,
    recipe: str,
    candidate: Candidate,
    options: Mapping[str, str | int | float] = MappingProxyType({}),
    trace: Sequence[Step] = (),
    notes: Sequence[str] = (),
) -> list[Outcome]:
    """The one outcome of a recipe, called as the recipe: a candidate, scored in full."""
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name=recipe,
            recipe=recipe,
            options=dict(options),
            candidate=candidate,
            held_out=scores,
            trace=tuple(trace),
            notes=tuple(notes),
        )
    ]


def _in_words(annotation: Any) -> str:
    described = inspect.type_info(annotation)
    if isinstance(described, inspect.Metadata):
        extra = described.extra_json_schema or {}
        if "description" in extra:
            return str(extra["description"])
        described = described.type
    if isinstance(described, inspect.LiteralType):
        return ", ".join(map(str, described.values))
    assert isinstance(described, inspect.IntType | inspect.FloatType)
    whole = ", whole" if isinstance(described, inspect.IntType) else ""
    return f"{described.ge:g} to {described.le:g}{whole}"
