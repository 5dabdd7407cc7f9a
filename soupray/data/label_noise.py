"""Label noise that is a wave over the inputs: smooth noise of a known frequency.

"Spectral Bias in Practice" (arXiv:2110.02424, section 3.1) asks which frequencies a training fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from soupray.core.errors import TrialError
from soupray.core.hyperparameters import Hyperparameters

BATCH = 250
"""Samples whose inputs are in memory at a time."""


def noise_shares(
    inputs: Callable[[torch.Tensor], torch.Tensor], samples: Any, wanted: Hyperparameters
) -> torch.Tensor:
    """Return the share of each label that goes to all classes alike, float32 [N].

    With r(x) = sin(2 pi f (z - phase)), it is noise (1 + r) / mean(1 + r): the mean share is that
    of `Hyperparameters.noise`. z is |x| (radial wave), or the part of x along a random direction.
    The label y becomes y (1 - share) + share / C.

    Args:
        inputs: makes normalised inputs x from samples.
        samples: images, [N, C, H, W].
        wanted: the hyperparameters `noise`, `noise_frequency`, `noise_phase`, `noise_direction`.

    Raises:
        TrialError: a share is above 1: the wave is below 0 on most samples.
    """
    z = _positions(inputs, samples, int(wanted.noise_direction))
    wave = 1 + torch.sin(2 * math.pi * wanted.noise_frequency * (z - wanted.noise_phase))
    shares = wanted.noise * wave / wave.mean().clamp_min(1e-12)
    if (most := float(shares.max())) > 1:
        raise TrialError(
            f"noise = {wanted.noise:g}: a label would lose {most:.2f} of itself, because the wave "
            "is low on most samples. Write a smaller noise, or another noise_phase."
        )
    return shares.float()


def _positions(
    inputs: Callable[[torch.Tensor], torch.Tensor], samples: Any, direction: int
) -> torch.Tensor:
    """Return z of each sample, float64 [N]."""
    found: list[torch.Tensor] = []
    along: torch.Tensor | None = None
    for at in range(0, len(samples), BATCH):
        x = inputs(torch.from_numpy(np.array(samples[at : at + BATCH]))).flatten(1).double()
        if direction and along is None:
            generator = torch.Generator().manual_seed(direction)
            along = torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
            along /= along.norm()
        found.append(x.norm(dim=1) if along is None else x @ along)
    return torch.cat(found)


def noisy_losses(logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample to its noisy label, [N], in nats.

    Args:
        logits: [N, C].
        labels: classes, [N].
        shares: of each label that goes to all classes alike, [N].
    """
    log_p = logits.log_softmax(dim=1)
    own = -log_p.gather(1, labels[:, None])[:, 0]
    return (1 - shares) * own - shares * log_p.mean(dim=1)
