"""The description of a recipe, used to list, check, run and draw recipes and estimate costs."""

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
from soupray.core.trials import Ingredient

Option = str | int | float | list[float] | dict[str, float]
"""The value of an option in a spec."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class for the options of a recipe: name, type, default and description of each."""


def allows(words: str, description: str) -> msgspec.Meta:
    """Return what an option is, if its type does not show all of it.

    Args:
        words: the allowed values.
        description: what the option means.
    """
    return msgspec.Meta(description=description, extra={"allowed": words})


O = TypeVar("O", bound=Options)  # noqa: E741


class Earlier(NamedTuple):
    """The outcomes of the recipes that ran before, and those of recipes of the kind `soup`."""

    outcomes: tuple[Outcome, ...] = ()
    soups: tuple[Outcome, ...] = ()


class PoolSize(NamedTuple):
    """What determines the cost of a recipe: numbers of ingredients (k), held-out samples, proxies.

    `proxies`: proxy shifts; each is as large as the held-out data.
    """

    k: int
    held_out: int
    proxies: int = 0


class Cost(NamedTuple):
    """The largest cost of a recipe.

    `decided`: candidates that are only compared with a bound; early rejection makes them cheaper.
    `scored`: candidates that are scored on all held-out samples, and once more for each proxy shift
    on which they are. `models`: models that are reported
    on test and shift data. Logits of `scored` and `models` are stored. `train_passes`: passes over
    all training data. `train_samples`: single training samples. `files`: further files as large as
    a model. `mixtures`: models whose BatchNorm statistics are estimated: soups of several models,
    and single models of `update_bn`.
    """

    decided: int = 0
    scored: int = 0
    models: int = 0
    train_passes: int = 0
    train_samples: int = 0
    files: int = 0
    mixtures: int = 0


class Style(NamedTuple):
    """How figures show the entries of a recipe.

    `own`: each entry has its own label and uses `colour`; otherwise all entries share `label` and
    have open markers. Entries without a marker are not drawn as points.
    """

    label: str
    marker: str
    colour: str
    own: bool = False


INK, TEAL = "#1a1a2e", "#2a9d8f"
SOUP = Style("other soups", "s", TEAL)
ENSEMBLE = Style("ensembles", "^", TEAL)

ONE_CLASS, MULTI_LABEL, REGRESSION = "one_class", "multi_label", "regression"
SEGMENTATION, RETRIEVAL = "segmentation", "retrieval"
"""Objectives: see `core.records.Objective`."""

Kind = Literal["baseline", "soup", "line", "ensemble"]
"""The kind of a recipe.

baseline: always runs. soup: one model, a mean of ingredients. line: one model on the line from a
reference model to a fine-tuned model. ensemble: the outputs of several models are mixed.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[O]):
    """A method that chooses coefficients of a soup or ensemble, with its description.

    Attributes:
        name: name in specs; with dashes, the flag of the command line.
        summary: short description for users.
        when: when to use it, in a sentence or two.
        paper: source of the method.
        kind: see `Kind`.
        costs: cost of the choice in words: passes of one model over the held-out data, with K
            ingredients.
        uses: data that the choice uses, in words.
        passes: forward passes per sample at inference, in words.
        options: type of the options, which checks and documents them.
        choose: the implementation. It uses the pool and held-out scores through the selection, and
            the outcomes of earlier recipes; it has no access to weights, test data or the store.
        cost: the cost in numbers, for the dry run and the progress bar.
        reads: bytes of weights that the recipe reads; None unless this may be a very large number.
        style: how figures show the entries.
        objectives: what the targets of a pool may be.
        with_all: whether `--all` runs it. If not, a flag or the spec asks for it: it has a high
            cost or much freedom, and no gain over the others is known for trials of one task.
        complete: returns the options of a spec with those that are recorded although the spec does
            not give them, because their default has changed.
    """

    name: str
    summary: str
    when: str
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
    objectives: tuple[str, ...] = (ONE_CLASS, MULTI_LABEL, REGRESSION, SEGMENTATION, RETRIEVAL)
    with_all: bool = True
    complete: Callable[[Mapping[str, Option]], dict[str, Option]] = dict

    def run(
        self,
        selection: Selection,
        earlier: Earlier = Earlier(),  # noqa: B008 - immutable
        options: Mapping[str, Option] = MappingProxyType({}),
    ) -> list[Outcome]:
        """Choose with this recipe. Raises ConfigError.

        Args:
            selection: the pool and its held-out scores.
            earlier: outcomes of the recipes that ran before.
            options: options as in a spec.
        """
        return self.choose(selection, earlier, self.read(options, "options"))

    def read(self, options: Mapping[str, Option], source: str) -> O:
        """Return the typed options.

        Args:
            options: options as in a spec.
            source: names the place of the options, for the message.

        Raises:
            ConfigError: an option is unknown, or its value is not allowed.
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
        """Return the allowed values of each option in words."""
        return {f.name: _in_words(f.type) for f in msgspec.structs.fields(self.options)}


def single(
    selection: Selection,
    recipe: str,
    candidate: Candidate,
    options: Mapping[str, str | int | float] = MappingProxyType({}),
    trace: Sequence[Step] = (),
    notes: Sequence[str] = (),
) -> list[Outcome]:
    """Score one candidate on all held-out samples and return it as the only outcome of a recipe.

    Args:
        selection: the pool and its held-out scores.
        recipe: name of the recipe and of the outcome.
        candidate: the model.
        options: options to record.
        trace: the steps of the choice.
        notes: warnings for the user.
    """
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
        if described.extra and "allowed" in described.extra:
            return str(described.extra["allowed"])
        described = described.type
    if isinstance(described, inspect.UnionType):  # with None, which means: not given
        (described,) = [t for t in described.types if not isinstance(t, inspect.NoneType)]
        described = described.type if isinstance(described, inspect.Metadata) else described
    if isinstance(described, inspect.LiteralType):
        return ", ".join(map(str, described.values))
    assert isinstance(described, inspect.IntType | inspect.FloatType)
    whole = ", whole" if isinstance(described, inspect.IntType) else ""
    return f"{described.ge:g} to {described.le:g}{whole}"
