"""Optimizer, schedule and moving average of a trial (WiSE-FT's defaults, arXiv:2109.01903)."""

from __future__ import annotations

import copy
import math

import torch

from soupray.core.blocks import BLOCK_NUMBER
from soupray.core.errors import TrialError

BETAS, EPS = (0.9, 0.999), 1e-8
MAX_WARMUP_STEPS = 500  # WiSE-FT's number; a short run warms up for a share of its steps instead


def adamw(
    model: torch.nn.Module, lr: float, decay: float, layer_decay: float = 1.0, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters. A group has `scale`, its share of the learning rate.

    With `layer_decay` d, a tensor `steps` blocks below the head has d ** steps (arXiv:2106.08254).
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
    """How many blocks each parameter is below the head: 0 for it and what follows the last block.

    Tensors that come before the first block in the model's order (embeddings) are one more below.

    Raises:
        TrialError: the model has no numbered blocks.
    """
    names = [n for n, _ in model.named_parameters()]
    blocks = {n: int(m.group(1)) for n in names if (m := BLOCK_NUMBER.search(n))}
    if not blocks:
        raise TrialError(
            "layer_decay and last_blocks need a model with numbered blocks (blocks, layers, "
            f"stages, resblocks); this one has tensors like {names[0]!r}. Leave them out."
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
    """Freeze all but the last `count` blocks, what follows them, and the head.

    Raises:
        TrialError: the model has fewer blocks.
    """
    below = below_head(model)
    blocks = max((s for n, s in below.items() if BLOCK_NUMBER.search(n)), default=0)
    if count > blocks:
        raise TrialError(f"last_blocks = {count}, but the model has {blocks}. Write at most that.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(below[name] <= count)


def lr_scale(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, then cosine to 0."""
    warm = min(MAX_WARMUP_STEPS, int(warmup * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class MovingAverage:
    """Exponential moving average of a model's weights; buffers are those of the last step.

    After step t (from 1) the decay is min(decay, (1 + t) / (10 + t)): on a short run a constant one
    would mostly keep theta_0.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Take the weights after `step` in."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        mine: list[torch.Tensor] = list(self.model.parameters())
        theirs: list[torch.Tensor] = list(model.parameters())
        torch._foreach_lerp_(mine, theirs, share)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
