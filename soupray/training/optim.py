"""Optimizer, schedule and moving average of a trial (WiSE-FT's defaults, arXiv:2109.01903)."""

from __future__ import annotations

import copy
import math

import torch

from soupray.core.blocks import BLOCK_NUMBER
from soupray.core.errors import TrialError

BETAS, EPS = (0.9, 0.999), 1e-8
MAX_WARMUP_STEPS = 500  # as in WiSE-FT; in a short run, the warm-up is a share of the steps


def adamw(
    model: torch.nn.Module, lr: float, decay: float, layer_decay: float = 1.0, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters.

    Args:
        model: the model. Parameters without `requires_grad` are left out.
        lr: peak learning rate.
        decay: weight decay.
        layer_decay: d. A tensor n blocks below the head has the learning rate lr * d ** n
            (arXiv:2106.08254).
        fused: use the fused implementation.

    Returns:
        The optimizer. Each parameter group has the entry `scale`, its d ** n.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if layer_decay == 1:
        groups = [{"params": list(trainable.values()), "scale": 1.0}]
    else:
        below = below_head(model)
        steps = sorted({below[n] for n in trainable}, reverse=True)
        groups = [
            {"params": [p for n, p in trainable.items() if below[n] == s], "scale": layer_decay**s}
            for s in steps
        ]
    return torch.optim.AdamW(
        groups, lr=lr, betas=BETAS, eps=EPS, weight_decay=decay, fused=fused or None
    )


def below_head(model: torch.nn.Module) -> dict[str, int]:
    """The depth of each parameter: how many blocks it is below the head.

    The head and the tensors after the last block have depth 0. The tensors before the first block
    (embeddings) are one step below it.

    Returns:
        Depth by the parameter's name.

    Raises:
        TrialError: the model has no numbered blocks.
    """
    names = [n for n, _ in model.named_parameters()]
    blocks = {n: int(m.group(1)) for n in names if (m := BLOCK_NUMBER.search(n))}
    if not blocks:
        raise TrialError(
            "layer_decay and last_blocks need a model with numbered blocks (blocks, layers, "
            f"stages, resblocks). This model has tensors like {names[0]!r}. Remove layer_decay "
            "and last_blocks from the spec."
        )
    level = {number: i for i, number in enumerate(sorted(set(blocks.values())))}
    first = min(names.index(n) for n in blocks)
    count = len(level)

    def below(position: int, name: str) -> int:
        if name in blocks:
            return count - level[blocks[name]]
        return count + 1 if position < first and not name.startswith("head.") else 0

    return {name: below(i, name) for i, name in enumerate(names)}


def train_last_blocks(model: torch.nn.Module, count: int) -> None:
    """Freeze all parameters except the last `count` blocks, the tensors after them, and the head.

    Raises:
        TrialError: the model has fewer blocks.
    """
    below = below_head(model)
    blocks = max((s for n, s in below.items() if BLOCK_NUMBER.search(n)), default=0)
    if count > blocks:
        raise TrialError(
            f"last_blocks = {count}, but the model has {blocks} blocks. Write {blocks} or less."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(below[name] <= count)


def lr_scale(step: int, total: int, warmup: float, decays: bool = True) -> float:
    """The learning rate as a share of its peak: linear warm-up, then a cosine to 0.

    Args:
        step: number of the step, from 0.
        total: number of steps of the whole training.
        warmup: the share of warm-up steps. There are at most MAX_WARMUP_STEPS.
        decays: False: after the warm-up, the rate stays at its peak.
    """
    warm = min(MAX_WARMUP_STEPS, int(warmup * total))
    if step < warm:
        return (step + 1) / warm
    if not decays:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class MovingAverage:
    """Exponential moving average of a model's weights. Buffers are those of the last step.

    After step t (from 1), the decay is min(decay, (1 + t) / (10 + t)). In a short run, the average
    with a constant decay would stay near theta_0.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Add the weights of `model` after `step` to the average."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        mine: list[torch.Tensor] = list(self.model.parameters())
        theirs: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(mine, theirs, share)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)


class LastEpochs:
    """The mean of a model's weights at the ends of its last epochs (LAWA, arXiv:2209.14981).

    At a constant learning rate it takes the place of the decay, so that a training may end after
    any epoch. Buffers are those of the last step.

    Attributes:
        model: has the mean; before the first epoch, the weights of the start.
        ends: the parameters at these ends, the oldest first, on the CPU.
    """

    def __init__(self, model: torch.nn.Module, count: int) -> None:
        """`count`: number of epochs."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.ends: list[list[torch.Tensor]] = []
        self._count = count

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Add the weights of `model` at the end of an epoch."""
        self.ends.append([p.detach().to("cpu", copy=True) for p in model.parameters()])
        del self.ends[: -self._count]
        for own, *theirs in zip(self.model.parameters(), *self.ends, strict=True):
            own.copy_(torch.stack(theirs).mean(dim=0))
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    def state(self) -> dict[str, torch.Tensor]:
        """All on which the next updates depend."""
        found = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        for end, parameters in enumerate(self.ends):
            found |= {f"end.{end}.{k}": t for k, t in enumerate(parameters)}
        return found

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from `state`."""
        weights = {n.removeprefix("model."): t for n, t in state.items() if n[:6] == "model."}
        self.model.load_state_dict(weights)
        count, self.ends = sum(1 for _ in self.model.parameters()), []
        while f"end.{len(self.ends)}.0" in state:
            self.ends.append([state[f"end.{len(self.ends)}.{k}"] for k in range(count)])
