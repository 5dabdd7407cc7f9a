"""What a sweep may keep and spend: `keep` and `budget` in a spec."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from soupray.spec.space import Count, Positive, SpecModel


class KeepBest(SpecModel):
    """The best trials by `metric` keep their weights, too."""

    best: Count
    """How many."""


Keep = Literal["all", "ingredients"] | KeepBest


def keep_in_words(keep: Keep) -> str:
    """Return `keep` as messages write it."""
    return keep if isinstance(keep, str) else f"best: {keep.best}"


class Price(SpecModel):
    """Prices in USD, for `usd` and for what is shown."""

    gpu_hour: Annotated[Positive, Field(le=1e6)] | None = None
    """Of a GPU for an hour."""

    cpu_hour: Annotated[Positive, Field(le=1e6)] | None = None
    """Of a core for an hour."""


class Budget(SpecModel):
    """What the trials may cost. No trial starts after it is spent; those that run end."""

    gpu_hours: Annotated[Positive, Field(le=1e9)] | None = None
    """GPU-hours of training: hours of a trial times its GPUs."""

    hours: Annotated[Positive, Field(le=1e9)] | None = None
    """Hours in which trials were trained, however many at a time."""

    usd: Annotated[Positive, Field(le=1e12)] | None = None
    """US dollars, by `price`."""

    price: Price | None = None
    """What `usd` is counted by."""

    @pydantic.model_validator(mode="after")
    def _can_be_counted(self) -> Budget:
        if self.gpu_hours is None and self.hours is None and self.usd is None:
            raise ValueError("the budget has no limit; write gpu_hours, hours or usd")
        return self


def check_budget(budget: Budget | None, gpu: float) -> None:
    """Raise ValueError if a budget could never be spent, or not be counted.

    Args:
        budget: of the spec.
        gpu: GPUs of a worker.
    """
    if budget is None:
        return
    if budget.gpu_hours is not None and not gpu:
        raise ValueError("gpu_hours are never spent with resources.gpu: 0; write hours, or usd")
    price, needed = budget.price or Price(), "gpu_hour" if gpu else "cpu_hour"
    if budget.usd is not None and getattr(price, needed) is None:
        raise ValueError(f"usd needs a price; write price: {{{needed}: ...}}")
