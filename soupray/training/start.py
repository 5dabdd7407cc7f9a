"""The start of a training: weights, seed, device and workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from soupray.core.trials import Training
from soupray.store.weights_file import Weights


class Group(Protocol):
    """The workers that train one model together. Each worker has a share of every batch."""

    @property
    def rank(self) -> int:
        """The number of this worker, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of workers."""
        ...

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the workers."""
        ...

    def shared(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap `model`: a backward pass also adds up the gradients over the workers, as they come.

        All workers call it at the same step. A group that cannot do it returns `model` itself.
        """
        ...

    def apart(self, shared: torch.nn.Module) -> AbstractContextManager[None]:
        """A context in which the passes of a `shared` model add up nothing."""
        ...


class Alone:
    """A group of one worker."""

    rank, size = 0, 1

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Change nothing: the tensors of one worker are the sums."""

    def shared(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` itself."""
        return model

    def apart(self, shared: torch.nn.Module) -> AbstractContextManager[None]:
        """No change."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a training.

    Attributes:
        weights: a full state dict of the model.
        seed: of all random draws.
        device: "cpu" or "cuda".
        training: how the training computes.
        group: the workers.
        loss: name and digest of the code of a loss of the user; None: that of the objective.
        augmentation: the same of an augmentation of the user; None: there is none.
        class_weights: of the loss, in the order of the classes; None: all are 1.
        teacher: logits of a teacher on the train split, [N, C]; None: there is none.
    """

    weights: Weights
    seed: int
    device: str
    training: Training = field(default_factory=Training)
    group: Group = field(default_factory=Alone)
    loss: tuple[str, str] | None = None
    augmentation: tuple[str, str] | None = None
    teacher: torch.Tensor | None = None
    class_weights: tuple[float, ...] | None = None
