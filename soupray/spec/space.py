"""The search space: hyperparameters, and how a uniform number becomes a value of each."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field

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

_LIMITS: dict[str, tuple[float, float]] = {
    "lr": (1e-12, 10),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "weight_decay": (0, 10),
    "label_smoothing": (0, 0.999),
    "rotation": (0, 180),
    "shift": (0, 1),
    "crop": (0.01, 1),
    "flip": (0, 1),
    "randaugment": (0, 30),
    "randaugment_ops": (1, 14),
    "mixup": (0, 100),
    "ema": (0, 0.9999999),
    "layer_decay": (0.01, 1),
    "last_blocks": (0, 10_000),
    "warmup": (0, 1),
    "clip_norm": (1e-12, 1e12),
}


_WHOLE = ("epochs", "batch_size", "randaugment_ops", "last_blocks")

IMAGE_ONLY = {"rotation": 0, "shift": 0, "crop": 1, "flip": 0, "randaugment": 0, "mixup": 0}
"""Hyperparameters that change images, and the value of each that changes nothing."""

_BODY_ONLY = {"layer_decay": 1, "last_blocks": 0}
"""Likewise, of those that tell the blocks of a body apart."""


class Space(SpecModel):
    """The hyperparameters of a trial: a dimension, or a number that all trials share.

    Defaults are those of WiSE-FT (arXiv:2109.01903) where it names one: weight decay 0.1, clip
    norm 1. `warmup` is a share of the steps, at most 500 steps.

    Augmentation, drawn per image: `rotation` in degrees, `shift` as a share of the side, `crop` the
    smallest share of the area that a random crop keeps, `flip` a probability, `randaugment` a
    magnitude of 1 to 30 (0: none) for `randaugment_ops` operations. `mixup` is the alpha of its
    Beta distribution (arXiv:1710.09412). `ema` is the decay of a moving average of the weights,
    which is then the trial's model. `layer_decay` multiplies the learning rate for each block
    further from the head; `last_blocks` trains so many and what follows them (0: everything).
    """

    lr: Dimension | Positive
    epochs: Dimension | Count
    batch_size: Dimension | Count = 32
    weight_decay: Dimension | NonNegative = 0.1
    label_smoothing: Dimension | NonNegative = 0.0
    rotation: Dimension | NonNegative = 0.0
    shift: Dimension | NonNegative = 0.0
    crop: Dimension | Positive = 1.0
    flip: Dimension | NonNegative = 0.0
    randaugment: Dimension | NonNegative = 0.0
    randaugment_ops: Dimension | Count = 1
    mixup: Dimension | NonNegative = 0.0
    ema: Dimension | NonNegative = 0.0
    layer_decay: Dimension | Positive = 1.0
    last_blocks: Dimension | Annotated[int, Field(ge=0)] = 0
    warmup: Dimension | NonNegative = 0.1
    clip_norm: Dimension | Positive = 1.0

    @pydantic.model_validator(mode="after")
    def _within_limits(self) -> Space:
        for name, (low, high) in _LIMITS.items():
            entry = getattr(self, name)
            for value in entry.ends() if isinstance(entry, Dimension) else (entry,):
                if isinstance(value, float) and name in _WHOLE:
                    raise ValueError(f"{name} = {value!r}; use integer, or a choice of integers")
                if isinstance(value, str) or not low <= value <= high:
                    raise ValueError(f"{name} = {value!r}; allowed is {low:g} to {high:g}")
        return self


def refuse(space: Space, names: dict[str, int], why: str) -> None:
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
