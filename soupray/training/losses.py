"""The loss of a trial: of its objective, with what its hyperparameters and its spec change."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from msgspec import UNSET, UnsetType

from soupray.core.errors import TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.plugins import load, raised
from soupray.core.records import Objective
from soupray.maths.objectives import scale_of
from soupray.spec.plugged_in import LOSSES

Own = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A loss of the user: outputs [N, C] and targets to the loss of each sample, [N]."""


class TrainingLoss:
    """The mean loss of a batch. A batch in parts has the mean of its parts, by their sizes."""

    def __init__(
        self,
        hparams: Hyperparameters,
        objective: Objective | UnsetType,
        targets: torch.Tensor,
        own: tuple[str, str] | None = None,
        given: tuple[float, ...] | None = None,
    ) -> None:
        """Count the classes of the training data, where the loss weights them.

        The attribute `named` names the loss of the user in messages; without one it is empty.

        Args:
            hparams: the hyperparameters of the trial.
            objective: what outputs mean.
            targets: of all training samples: classes [N], or [N, C]; masks are [N, P], the numbers
                of query and document [N, 2].
            own: name and digest of the code of a loss of the user.
            given: weights of the classes, from the spec; None: all are 1.

        Raises:
            TrialError: the code here is not that of the trial.
        """
        self._smoothing, self._focal = hparams.label_smoothing, hparams.focal
        self._huber, self._dice, self._objective = hparams.huber, hparams.dice, objective
        self._temperature = hparams.temperature
        self._weights = _weights(targets, objective, hparams.class_weight, given)
        self._own, self.named = None, f"loss {own[0]!r}" if own else ""
        if own:
            self._own = load(LOSSES, own[0])
            if self._own.digest != own[1]:
                raise TrialError(
                    f"{self.named}: the code here has the digest {self._own.digest[:12]}, that "
                    f"of the sweep had {own[1][:12]}. Start again, with the same code on all "
                    "machines."
                )

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss over samples, float32, a scalar.

        Args:
            outputs: [N, C].
            targets: classes [N], or [N, C].

        Raises:
            TrialError: the loss of the user raises, or returns something else than N losses.
        """
        outputs = outputs.float()
        if self._own is not None:
            return self._of_the_user(outputs, targets)
        if self._objective is UNSET:
            return self._one_class(outputs, targets)
        if self._objective.kind == "retrieval":
            scale = 1 / self._temperature if self._temperature else scale_of(self._objective)
            return info_nce(outputs, targets, scale)
        wanted = targets.to(outputs.dtype)
        if self._objective.kind == "regression":
            if self._huber:
                return F.huber_loss(outputs, wanted, delta=self._huber)
            return F.mse_loss(outputs, wanted)
        each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        if self._weights is not None:
            each = each * torch.where(wanted == 1, self._weights.to(outputs.device), 1.0)
        if self._focal:
            wrong = F.logsigmoid(torch.where(wanted == 1, -outputs, outputs))
            each = each * _focus(wrong, self._focal)
        if self._dice:
            return (1 - self._dice) * each.mean() + self._dice * soft_dice(outputs, wanted).mean()
        return each.mean()

    def _one_class(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._weights is None and not self._focal:
            return F.cross_entropy(outputs, targets, label_smoothing=self._smoothing)
        each = F.cross_entropy(outputs, targets, label_smoothing=self._smoothing, reduction="none")
        if self._focal:
            others = outputs.scatter(1, targets[:, None], -torch.inf)
            each = each * _focus(others.logsumexp(1) - outputs.logsumexp(1), self._focal)
        if self._weights is not None:
            each = each * self._weights.to(outputs.device)[targets]
        return each.mean()

    def _of_the_user(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert self._own is not None
        return losses_of(
            self._own.value, f"{self.named} ({self._own.origin})", outputs, targets
        ).mean()


def losses_of(
    loss: Callable[..., object], where: str, outputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The loss of each sample by a function of the user, checked, [N].

    Args:
        loss: the function.
        where: names it in messages.
        outputs: of the model, with a gradient, [N, C].
        targets: classes [N], or [N, C].

    Raises:
        TrialError: it raises, or returns something else than N losses with a gradient.
    """
    try:
        # Copies: what the function changes in place is part of neither gradients nor labels.
        each = loss(outputs.clone(), targets.clone())
    except Exception as error:
        raise TrialError(f"{where} raised {raised(error)}.") from error
    if not isinstance(each, torch.Tensor) or each.shape != (len(outputs),):
        form = list(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
        raise TrialError(
            f"{where} returned {form}, not the loss of each of the {len(outputs)} samples, "
            f"[{len(outputs)}]. Return it before any mean: parts of a batch are joined by size."
        )
    if not each.is_floating_point():
        kind = str(each.dtype).removeprefix("torch.")
        raise TrialError(f"{where} returned losses of {kind}; return floats.")
    if not each.requires_grad:
        raise TrialError(
            f"{where} returned losses without a gradient. Compute them of the outputs with torch, "
            "without detach, item or numpy."
        )
    return each


def info_nce(outputs: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
    """The symmetric InfoNCE of a batch, a scalar (arXiv:2103.00020, figure 3).

    The mean over pairs of -log p(document | query) and of -log p(query | document), where p is the
    softmax over the batch of `scale` times the inner products. Another pair with an equal query or
    an equal document is no negative, and is left out.

    Args:
        outputs: two embeddings of each pair, [N, 2 D].
        targets: the numbers of its query and its document, [N, 2].
        scale: factor on inner products, 1 / temperature.
    """
    queries, documents = outputs.chunk(2, dim=1)
    similar = scale * queries @ documents.T
    same = (targets[:, None] == targets[None]).any(dim=2)
    same.fill_diagonal_(False)
    similar = similar.masked_fill(same, -torch.inf)
    own = torch.arange(len(similar), device=similar.device)
    return (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2


def soft_dice(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 minus the Dice coefficient of probabilities, for each sample, [N] (arXiv:1606.04797).

    It is (2 sum p t + 1) / (sum p^2 + sum t^2 + 1): the ones make an empty mask, which is predicted
    empty, perfect.

    Args:
        outputs: a logit for each pixel, [N, P].
        targets: 0 or 1, [N, P].
    """
    p = outputs.sigmoid()
    both = (p * targets).sum(dim=1)
    return 1 - (2 * both + 1) / ((p * p).sum(dim=1) + (targets * targets).sum(dim=1) + 1)


def _focus(wrong: torch.Tensor, gamma: float) -> torch.Tensor:
    """The factor (1 - p) ** gamma of the focal loss (arXiv:1708.02002).

    As a power it has an infinite slope where p, the probability of what is true, rounds to 1.

    Args:
        wrong: log(1 - p).
        gamma: above 0.
    """
    return (gamma * wrong).exp()


def _weights(
    targets: torch.Tensor,
    objective: Objective | UnsetType,
    power: float,
    given: tuple[float, ...] | None,
) -> torch.Tensor | None:
    """The weight of each class, [C]: (1 / its samples) ** power, with mean 1 over the samples.

    `given`, the weights that a spec gives, are factors of these before their mean is made 1.

    For multi_label the weight of a positive label: (samples without it / with it) ** power, where
    both counts are at least 1: a label that all samples have is learnt too. For segmentation the
    same of all pixels together, [1].
    """
    if not power and given is None:
        return None
    factors = 1.0 if given is None else torch.tensor(given, dtype=torch.float64)
    if objective is not UNSET:
        rows = targets.reshape(-1, 1) if objective.kind == "segmentation" else targets
        positive = rows.sum(dim=0).double()
        negative = len(rows) - positive
        return (factors * (negative.clamp(min=1) / positive.clamp(min=1)) ** power).float()
    counts = torch.bincount(targets, minlength=len(given or ())).double()
    weights = factors * torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return (weights * len(targets) / (weights * counts).sum()).float()


def sample_weights(targets: torch.Tensor, power: float) -> torch.Tensor | None:
    """How often each sample is drawn, [N]: (1 / samples of its class) ** power; None: all alike.

    Args:
        targets: classes, [N].
        power: 1: each class is drawn equally often. 0: each sample is.
    """
    return torch.bincount(targets).double()[targets] ** -power if power else None
