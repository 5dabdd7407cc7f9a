"""Optimizer and schedule of a trial, with WiSE-FT's defaults (arXiv:2109.01903, appendix)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

BETAS, EPS = (0.9, 0.999), 1e-8
MAX_WARMUP_STEPS = 500  # WiSE-FT's number; a short run warms up for a share of its steps instead


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, decay: float) -> torch.optim.AdamW:
    """AdamW over all trainable parameters."""
    trainable = [p for p in parameters if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=lr, betas=BETAS, eps=EPS, weight_decay=decay)


def lr_scale(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, then cosine to 0."""
    warm = min(MAX_WARMUP_STEPS, int(warmup * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
