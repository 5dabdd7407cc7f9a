"""What the ensemble of several models is the mean of: outputs, or similarities in retrieval."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from soupray.core.arrays import Float64, Labels, Logits
from soupray.core.records import Objective
from soupray.maths.metrics import sample_losses
from soupray.maths.objectives import scale_of
from soupray.maths.retrieval import gallery_losses, similarities


class Terms(NamedTuple):
    """What the ensemble of several models is the mean of, and what such a mean loses.

    Attributes:
        of: from a model's outputs [N, C] to its terms: the outputs themselves, or in retrieval the
            similarities of each query to each document, [N, G].
        losses: from terms, or a mean of terms, to the loss of each sample, [N].
    """

    of: Callable[[Logits], Logits | Float64]
    losses: Callable[[Float64], Float64]

    def loss(self, terms: Float64) -> float:
        """The mean loss of terms."""
        return float(self.losses(terms).mean())


def terms_of(targets: Labels, objective: Objective | UnsetType) -> Terms:
    """Return how the ensemble of several models is made from their outputs.

    Args:
        targets: classes [N], or targets [N, C].
        objective: what they mean; unset: one class.
    """
    if objective is not UNSET and objective.kind == "retrieval":
        scale = scale_of(objective)
        return Terms(
            lambda outputs: similarities(outputs, targets),
            lambda similar: gallery_losses(similar, targets, scale),
        )
    return Terms(
        lambda outputs: outputs,
        lambda outputs: sample_losses(outputs, targets, objective),
    )
