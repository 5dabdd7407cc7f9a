"""The search space: hyperparameters, and how a uniform number becomes a value of each."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from soupray.core.hyperparameters import LATER, TABLE, Hyperparameter
from soupray.core.plugins import MODULE, installed, is_plugin
from soupray.maths.prefixes import fewest_trials
from soupray.spec.plugged_in import SAMPLER_NAMES, SAMPLERS

Value = float | int | str


class SpecModel(pydantic.BaseModel):
    """Base class for parts of a spec: frozen, strict about types, without unknown keys."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Dimension(SpecModel):
    """How a hyperparameter varies: exactly one of the ranges or the choice, and perhaps `off`."""

    log_uniform: tuple[float, float] | None = None
    """Between two numbers above 0, each power of ten alike; the upper end is left out."""

    uniform: tuple[float, float] | None = None
    """Between two numbers, all alike; the upper end is left out."""

    integer: tuple[int, int] | None = None
    """A whole number; both ends are included."""

    choice: tuple[Value, ...] | None = None
    """One of these values."""

    off: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability that the value is 0 instead."""

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k in ("log_uniform", "uniform", "integer", "choice") if getattr(self, k)]
        if len(kinds) != 1:
            raise ValueError(
                "give exactly one of log_uniform, uniform, integer or a choice that is not empty"
            )
        bounds = self.log_uniform or self.uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the range {list(bounds)} is empty; write [low, high], low < high")
        if self.integer and not self.integer[0] <= self.integer[1]:
            raise ValueError(f"the range {list(self.integer)} is empty; write [low, high]")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"a log_uniform range starts above 0, not at {self.log_uniform[0]}")
        return self

    def at(self, u: float) -> Value:
        """Return the value at coordinate u in [0, 1)."""
        if u < self.off:
            return 0
        u = (u - self.off) / (1 - self.off)
        if self.log_uniform:
            low, high = map(math.log, self.log_uniform)
            return math.exp(low + u * (high - low))
        if self.uniform:
            return self.uniform[0] + u * (self.uniform[1] - self.uniform[0])
        if self.integer:
            return self.integer[0] + int(u * (self.integer[1] - self.integer[0] + 1))
        assert self.choice is not None
        return self.choice[int(u * len(self.choice))]

    def ends(self) -> tuple[Value, ...]:
        """Return all choices, or the ends of the range, for checks of the allowed range."""
        values = self.log_uniform or self.uniform or self.integer or self.choice or ()
        return (*values, 0) if self.off else values


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

_ROWS = {row.name: row for row in TABLE}

IMAGE_ONLY = {row.name: row.default for row in TABLE if row.of == "images"}
"""Hyperparameters that change images, and for each the value that has no effect."""

ONE_CLASS_ONLY = {row.name: row.default for row in TABLE if row.of == "one class"}
CLASSES_ONLY = ONE_CLASS_ONLY | {row.name: row.default for row in TABLE if row.of == "classes"}
NUMBERS_ONLY = {row.name: row.default for row in TABLE if row.of == "numbers"}
MASKS_ONLY = {row.name: row.default for row in TABLE if row.of == "masks"}
PAIRS_ONLY = {row.name: row.default for row in TABLE if row.of == "pairs"}
"""Hyperparameters about one kind of target, and for each the value that has no effect."""

TEACHER_ONLY = {row.name: row.default for row in TABLE if row.of == "teacher"}
"""Hyperparameters that need a teacher, and for each the value that has no effect."""

_IN_LOSS = ("label_smoothing", "focal", "class_weight", "huber", "dice", "temperature")
OF_LOSS = {row.name: row.default for row in TABLE if row.name in _IN_LOSS}
"""Hyperparameters that change soupray's own losses, and the values without effect."""

BODY_ONLY = {row.name: row.default for row in TABLE if row.of == "body"}
"""Hyperparameters that treat blocks of a body differently, and the values without effect."""


class _Hyperparameters(SpecModel):
    """The fields are the hyperparameters: each is a dimension, or one number for all trials."""

    @pydantic.model_validator(mode="after")
    def _within_limits(self) -> Self:
        for name, row in _ROWS.items():
            entry = getattr(self, name)
            for value in entry.ends() if isinstance(entry, Dimension) else (entry,):
                if isinstance(value, float) and row.whole:
                    raise ValueError(f"{name} = {value!r}; use integer, or a choice of integers")
                if isinstance(value, str) or not row.low <= value <= row.high:
                    raise ValueError(
                        f"{name} = {value!r}; allowed is {row.low:g} to {row.high:.7g}"
                    )
        return self

    @pydantic.model_validator(mode="after")
    def _one_average(self) -> Self:
        if all(getattr(self, name) != 0 for name in ("ema", "merge")):
            raise ValueError("ema and merge are two averages of one training; leave one out")
        return self


def _field(row: Hyperparameter) -> Any:
    number: Any = Annotated[int if row.whole else float, Field(ge=row.low)]
    default: Any = ... if row.default is None else row.default
    said = Field(
        default,
        description=row.meaning,
        json_schema_extra={"maximum": row.high},
        exclude_if=(lambda value: value == default) if row.name in LATER else None,
    )
    return Dimension | number, said


if TYPE_CHECKING:

    class Space(_Hyperparameters):
        """The hyperparameters of a trial: see `core.hyperparameters`."""

else:
    Space = pydantic.create_model(
        "Space",
        __base__=_Hyperparameters,
        __module__=__name__,
        __doc__="The hyperparameters of a trial: see `core.hyperparameters`.",
        **{row.name: _field(row) for row in TABLE},
    )


def refuse(space: Space, names: dict[str, float | None], why: str) -> None:
    """Raise ValueError if a hyperparameter in `names` is not at the value that has no effect.

    Args:
        space: the hyperparameters.
        names: for each hyperparameter, the value that has no effect.
        why: the reason, for the message.
    """
    for name, off in names.items():
        if getattr(space, name) != off:
            raise ValueError(f"{name} {why}; leave it out")


class Stop(SpecModel):
    """When a sweep has enough trials: another one is unlikely to improve the soup."""

    gain: Positive = 0.001
    """What a further trial would have to gain: in the loss (the NLL in nats) of the greedy ensemble
    of the trials on held-out data, the mean of their logits, which stands for their soup."""

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The sweep ends when the chance of such a gain is below it. Of K trials the chance is at least
    1 / (K + 2): .05 needs 19 trials."""

    after: Annotated[Count, Field(ge=2)] = 12
    """No sooner than after this many trials of the plan are over."""


def _says_samplers(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which samplers there are, installed ones too."""
    names = [*SAMPLER_NAMES, *map(re.escape, installed(SAMPLERS)), MODULE]
    schema["pattern"] = f"^({'|'.join(names)})$"


class Search(SpecModel):
    """The trials of a sweep."""

    # 0: a pool of imported models only. A plan is made and shown as a whole, so it has an end.
    trials: Annotated[int, Field(ge=0, le=100_000)]
    """Number of trials. A larger number keeps the trials that exist. 0: a pool of imported models
    only."""

    sampler: Annotated[str, Field(json_schema_extra=_says_samplers)] = "random"
    """`random` and `qmc`: all points are known before the sweep. `tpe`: Optuna suggests them from
    the trials that are finished, which crowds the pool around one optimum. `module:name`: a
    function of yours suggests them."""

    code: str | None = None
    """Digest of the code of your own sampler. It is filled in."""

    scheduler: Literal["fifo", "asha"] = "fifo"
    """`fifo`: every trial is trained to its end. `asha`: trials with low scores are stopped early,
    and are then not ingredients."""

    stop: Stop | None = None
    """End the sweep when another trial is unlikely to improve the soup. The trials that run then
    finish; the others are never trained. Left out: all trials are trained."""

    train: Literal["all", "head"] = "all"
    """`all` weights; or those of the `head` alone, on features that are computed once."""

    space: Space
    """The hyperparameters of the trials: each is a range, a choice, or one number for all."""

    @pydantic.field_validator("sampler")
    @classmethod
    def _is_known(cls, sampler: str) -> str:
        if sampler not in SAMPLER_NAMES and not is_plugin(sampler, SAMPLERS):
            names = [*SAMPLER_NAMES, *installed(SAMPLERS)]
            raise ValueError(f"write {', '.join(names)}, or module:name for your own")
        return sampler

    @pydantic.model_serializer(mode="wrap")
    def _without_code(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not there: digests of older specs do not have it."""
        found: dict[str, Any] = dump(self)
        for name in ("code", "stop"):
            if getattr(self, name) is None:
                found.pop(name, None)
        return found

    @pydantic.model_validator(mode="after")
    def _may_stop(self) -> Search:
        if self.stop is None:
            return self
        if self.sampler not in ("random", "qmc") or self.scheduler != "fifo":
            raise ValueError(
                f"stop is for trials that are drawn independently and trained to their end, not for"
                f" sampler: {self.sampler} with scheduler: {self.scheduler}; write sampler: random "
                "and scheduler: fifo, or leave stop out"
            )
        first = max(self.stop.after, fewest_trials(self.stop.probability))
        if first >= self.trials:
            raise ValueError(
                f"stop could never end this sweep: its {self.trials} trials are over before it can "
                f"decide, after {first} (after: {self.stop.after}; probability: "
                f"{self.stop.probability:g} needs {fewest_trials(self.stop.probability)}). Plan "
                "more trials, raise probability, lower after, or leave stop out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _of_what_is_trained(self) -> Search:
        if self.train == "head":
            refuse(self.space, IMAGE_ONLY, "needs the body: train: head sees it once")
            refuse(self.space, BODY_ONLY, "is about the body, which train: head leaves alone")
        return self
