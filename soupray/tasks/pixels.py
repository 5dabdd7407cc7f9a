"""Raw images as a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class Pixels:
    """[N, 1 or C, H, W] in 0..255 -> [N, C, h, w] float32, resized and normalised by channel."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self._size = size
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = torch.tensor(std).view(1, -1, 1, 1)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The inputs; a grey image is repeated for each channel."""
        images = samples.to(torch.float32) / 255
        if images.shape[-2:] != self._size:
            images = F.interpolate(images, self._size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        normalised: torch.Tensor = (images.expand(-1, mean.shape[1], -1, -1) - mean) / std
        return normalised
