"""The contracts of a metric and of a loss: functions of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch

from soupray.core.errors import SouprayError
from soupray.core.plugins import raised, refuse_signature
from soupray.maths.own_metric import PER_SAMPLE, values_of
from soupray.testing.called import called
from soupray.training.losses import losses_of

ObjectiveKind = Literal["one_class", "multi_label", "regression", "segmentation", "retrieval"]

SAMPLES, CLASSES, PIXELS = 12, 3, 16
CLOSE = 1e-4
"""The largest difference, of values around 1, that the order of sums may make."""


class Answers(NamedTuple):
    """Outputs of a model, and the targets: float32 [N, C], and as the objective has them."""

    outputs: torch.Tensor
    targets: torch.Tensor


def check_metric(metric: Callable[..., object], objective: ObjectiveKind = "one_class") -> None:
    """Check that a metric keeps its contract.

    It returns one finite number, or one from 0 to 1 for each sample: for random, right, wrong,
    equal and large outputs, and for one sample; the same in a second call and in another order of
    the samples. More is better: right outputs have no less than wrong ones. With `per_sample`, the
    value of a sample follows from this sample alone.

    Args:
        metric: the function of outputs and targets.
        objective: what the targets are.

    Raises:
        AssertionError: the contract is broken; the message names the function, and says how.
    """

    def mean(on: str, answers: Answers) -> float:
        given = (answers.outputs.numpy(), answers.targets.numpy())
        found = values_of(metric, on, *given)
        again = values_of(metric, on, *given)
        assert np.array_equal(found, again), f"{on}: a second call gives another value"
        turned = values_of(metric, on, *(part[::-1] for part in given))
        if getattr(metric, PER_SAMPLE, False):
            apart = np.abs(turned[::-1] - found).max()
        else:
            apart = abs(turned.mean() - found.mean()) / max(1.0, float(np.abs(found).max()))
        assert apart <= CLOSE, f"{on}: samples in another order have another value"
        return float(found.mean())

    where, right, wrong = _right_and_wrong("metric", metric, objective, mean)
    assert right >= wrong, (
        f"{where}: right outputs have {right:g}, wrong ones {wrong:g}. More is better here: return "
        "the negative of an error, or 1 minus it"
    )


def check_loss(loss: Callable[..., object], objective: ObjectiveKind = "one_class") -> None:
    """Check that a loss keeps its contract.

    It returns one finite loss for each sample, with a finite gradient to the outputs: for random,
    right, wrong, equal and large outputs, and for one sample; the same in a second call. Right
    outputs have no more than wrong ones. But for retrieval, the loss of a sample depends on this
    sample alone: a batch may be computed in parts.

    Args:
        loss: the function of outputs and targets.
        objective: what the targets are.

    Raises:
        AssertionError: the contract is broken; the message names the function, and says how.
    """

    def mean(on: str, answers: Answers) -> float:
        outputs, targets = answers.outputs.clone().requires_grad_(), answers.targets
        each = losses_of(loss, on, outputs, targets)
        assert torch.isfinite(each).all(), f"{on}: a loss is NaN or infinite"
        try:
            each.sum().backward()
        except RuntimeError as error:
            raise AssertionError(f"{on}: its gradient raised {raised(error)}") from error
        slope = outputs.grad
        assert slope is not None, f"{on}: no gradient reaches the outputs"
        assert torch.isfinite(slope).all(), f"{on}: a gradient is NaN or infinite"
        again = losses_of(loss, on, outputs, targets)
        assert torch.equal(again, each), f"{on}: a second call gives other losses"
        if objective != "retrieval":
            alone = losses_of(loss, on, outputs[-1:], targets[-1:])
            same = torch.allclose(alone, each[-1:], rtol=CLOSE, atol=CLOSE)
            assert same, f"{on}: the loss of a sample depends on the others of its batch"
        return float(each.detach().mean())

    where, right, wrong = _right_and_wrong("loss", loss, objective, mean)
    assert right <= wrong, (
        f"{where}: right outputs have {right:g}, wrong ones {wrong:g}. A loss is smaller where "
        "outputs are better: return its negative"
    )


def _right_and_wrong(
    kind: str,
    function: Callable[..., object],
    objective: ObjectiveKind,
    mean: Callable[[str, Answers], float],
) -> tuple[str, float, float]:
    """Check a function on answers of all kinds: its name, its mean on right and on wrong ones."""
    where = f"{kind} {called(function)!r}"
    try:
        refuse_signature(function, where, ("outputs", "targets"))
        found = {name: mean(f"{where}, {name}", of) for name, of in _answers(objective).items()}
    except SouprayError as error:
        raise AssertionError(str(error)) from error
    return where, found["right outputs"], found["wrong outputs"]


def _answers(objective: ObjectiveKind) -> dict[str, Answers]:
    """Outputs of all kinds, with their targets, by a name for messages."""
    draws = torch.Generator().manual_seed(1)
    width = {"segmentation": PIXELS, "retrieval": 2 * CLASSES}.get(objective, CLASSES)
    outputs = torch.randn(SAMPLES, width, generator=draws)
    right, wrong, targets = _known(objective, draws)
    return {
        "random outputs": Answers(outputs, targets),
        "right outputs": Answers(right, targets),
        "wrong outputs": Answers(wrong, targets),
        "equal outputs": Answers(torch.zeros_like(outputs), targets),
        "large outputs": Answers(100 * outputs, targets),
        "one sample": Answers(outputs[:1], targets[:1]),
    }


def _known(
    objective: ObjectiveKind, draws: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right outputs, wrong ones, and the targets of an objective."""
    if objective == "regression":
        numbers = torch.randn(SAMPLES, CLASSES, generator=draws)
        return numbers, numbers + 3, numbers
    if objective == "retrieval":  # each query has a document of its own
        queries = torch.nn.functional.normalize(torch.randn(SAMPLES, CLASSES, generator=draws))
        pairs = torch.arange(SAMPLES)[:, None].expand(SAMPLES, 2)
        return torch.cat([queries, queries], 1), torch.cat([queries, -queries], 1), pairs
    if objective == "one_class":
        classes = torch.arange(SAMPLES) % CLASSES
        hot = torch.nn.functional.one_hot(classes, CLASSES).float()
        return 8 * hot, 8 * hot.roll(1, dims=1), classes
    width = PIXELS if objective == "segmentation" else CLASSES
    has = (torch.rand(SAMPLES, width, generator=draws) < 0.5).to(torch.uint8)
    return 8.0 * (2 * has - 1.0), 8.0 * (1.0 - 2 * has), has
