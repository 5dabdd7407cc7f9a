"""The loss to the labels of samples, and to what a teacher says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from msgspec import UNSET, UnsetType

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Objective
from soupray.data.label_noise import noisy_losses
from soupray.training.losses import TrainingLoss


class Targets(NamedTuple):
    """What the outputs for some samples should become.

    Attributes:
        labels: classes [N], or [N, C].
        teacher: logits of the teacher, [N, C]; None if there is none. It saw each sample once,
            without augmentation.
        noise: share of each label that goes to all classes alike, [N]; None: no share does.
    """

    labels: torch.Tensor
    teacher: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> Targets:
        """Return those of the samples at the positions `rows`."""
        at = rows.to(self.labels.device)
        return Targets(*(None if part is None else part[at] for part in self))  # type: ignore[arg-type]


class DistillationLoss:
    """The mean loss of a batch: that of its labels, mixed with that to the teacher's outputs.

    With the share d of `Hyperparameters.distillation` it is (1 - d) L + d D, where L is the loss
    of the objective and D is `divergence`. Without a teacher it is L.
    """

    def __init__(
        self, loss: TrainingLoss, hparams: Hyperparameters, objective: Objective | UnsetType
    ) -> None:
        """Keep the settings.

        Args:
            loss: of outputs and labels.
            hparams: the hyperparameters of the trial.
            objective: what outputs mean.
        """
        self._loss, self._share = loss, hparams.distillation
        self._temperature, self._objective = hparams.distillation_temperature, objective

    def __call__(self, outputs: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The mean loss over samples, float32, a scalar.

        Args:
            outputs: of the model, [N, C].
            targets: of the same samples.
        """
        if targets.noise is not None:
            loss = noisy_losses(outputs.float(), targets.labels, targets.noise).mean()
        else:
            loss = self._loss(outputs, targets.labels)
        if targets.teacher is None or not self._share:
            return loss
        said = targets.teacher.float()
        to_teacher = divergence(outputs.float(), said, self._temperature, self._objective)
        return (1 - self._share) * loss + self._share * to_teacher


def divergence(
    outputs: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    objective: Objective | UnsetType,
) -> torch.Tensor:
    """How far outputs are from a teacher's, a scalar (arXiv:1503.02531, section 2).

    One class: T^2 KL(p_teacher || p), where p = softmax(logits / T); the factor keeps gradients of
    one size for all T. Multi-label: the same for each label, with the sigmoid, as a mean over
    labels. Regression: the squared error to the teacher's outputs; T is not used.

    Args:
        outputs: of the model, [N, C].
        teacher: logits of the teacher, [N, C].
        temperature: T.
        objective: what outputs mean.
    """
    if objective is not UNSET and objective.kind == "regression":
        return F.mse_loss(outputs, teacher)
    if objective is UNSET:
        ours, theirs = ((z / temperature).log_softmax(1) for z in (outputs, teacher))
        return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    ours, theirs = (
        torch.stack([F.logsigmoid(z / temperature), F.logsigmoid(-z / temperature)], dim=-1)
        for z in (outputs, teacher)
    )
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return temperature**2 * each.mean()
