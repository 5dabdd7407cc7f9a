"""The search space: hyperparameters, and how a uniform number becomes a value of each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from soupray.core.hyperparameters import TABLE, Hyperparameter

Value = float | int | str


class SpecModel(pydantic.BaseModel):
    """Part of a spec: frozen, strict about types, no unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Dimension(SpecModel):
    """One coordinate of the search space, read off a uniform number u in [0, 1).

    Exactly one of `log_uniform`, `uniform` (half-open ranges), `integer` (both ends included) and
    `choice`. `off: p` makes the value 0 with probability p, as one coordinate: u < p is off.
    """

    log_uniform: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    choice: tuple[Value, ...] | None = None
    off: Annotated[float, Field(ge=0, lt=1)] = 0.0

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
        """The value at coordinate u in [0, 1)."""
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
        """The extreme values, for range checks."""
        values = self.log_uniform or self.uniform or self.integer or self.choice or ()
        return (*values, 0) if self.off else values


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

_ROWS = {row.name: row for row in TABLE}

IMAGE_ONLY = {row.name: row.default for row in TABLE if row.of == "images"}
"""Hyperparameters that change images, and the value of each that changes nothing."""

_BODY_ONLY = {row.name: row.default for row in TABLE if row.of == "body"}
"""Likewise, of those that tell the blocks of a body apart."""


class _Hyperparameters(SpecModel):
    """Fields are those of the table: a dimension, or a number that all trials share."""

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


def _field(row: Hyperparameter) -> Any:
    number: Any = Annotated[int if row.whole else float, Field(ge=row.low)]
    return Dimension | number, ... if row.default is None else row.default


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
    """Raises ValueError if one of `names` has another value than the one that does nothing."""
    for name, off in names.items():
        if getattr(space, name) != off:
            raise ValueError(f"{name} {why}; leave it out")


class Search(SpecModel):
    """How many trials, drawn how, from where; and whether they train `all` weights or the head.

    `random` and `qmc` are known before anything runs; `tpe` follows from what is finished.
    `scheduler`: `asha` stops trials that fall behind; they are no ingredients.
    """

    trials: Annotated[int, Field(ge=0)]  # 0: a pool of imported models only
    sampler: Literal["random", "qmc", "tpe"] = "random"
    scheduler: Literal["fifo", "asha"] = "fifo"
    train: Literal["all", "head"] = "all"
    space: Space

    @pydantic.model_validator(mode="after")
    def _of_what_is_trained(self) -> Search:
        if self.train == "head":
            refuse(self.space, IMAGE_ONLY, "needs the body: train: head sees it once")
            refuse(self.space, _BODY_ONLY, "is about the body, which train: head leaves alone")
        return self
