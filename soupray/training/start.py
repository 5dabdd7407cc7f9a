"""What a training starts from: hyperparameters, weights, seed, device, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from soupray.core.records import Training
from soupray.store.weights_file import Weights


class Group(Protocol):
    """The workers that train one model together; each has its share of every batch."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the workers."""
        ...


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """They are the sums."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a training starts: the weights, the seed of all its draws, the device it runs on."""

    weights: Weights
    seed: int
    device: str
    training: Training = field(default_factory=Training)
    group: Group = field(default_factory=Alone)
