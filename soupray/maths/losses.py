"""The loss that recipes and reports use, with gradients, for each objective."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from msgspec import UNSET, UnsetType

from soupray.core.records import Objective


def loss_sum(
    outputs: torch.Tensor, targets: torch.Tensor, objective: Objective | UnsetType
) -> torch.Tensor:
    """The sum over samples of the loss whose mean is `Scores.nll`, a scalar.

    Cross-entropy; for multi_label the mean over labels of the binary cross-entropy; for regression
    the mean over outputs of the squared error.

    Args:
        outputs: [N, C].
        targets: classes [N], or [N, C].
        objective: what they mean; unset: one class.

    Raises:
        ValueError: it is retrieval, whose loss is no sum over samples.
    """
    if objective is UNSET:
        return F.cross_entropy(outputs, targets, reduction="sum")
    if objective.kind == "retrieval":
        raise ValueError("the loss of a query depends on all documents: it is no sum over samples")
    wanted = targets.to(outputs.dtype)
    if objective.kind == "regression":
        return ((outputs - wanted) ** 2).mean(dim=1).sum()
    each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return each.mean(dim=1).sum()
