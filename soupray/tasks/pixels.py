"""Model inputs from images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class Pixels:
    """Resizes images and normalises each channel."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the form of the inputs.

        Args:
            size: height and width in pixels.
            mean: of each channel, for values from 0 to 1.
            std: standard deviation of each channel, for values from 0 to 1.
        """
        self.size, self.mean, self.std = size, list(mean), list(std)
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = torch.tensor(std).view(1, -1, 1, 1)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The inputs for images. A grey image is repeated for each channel.

        Args:
            samples: [N, 1 or C, H, W], values from 0 to 255.

        Returns:
            float32 [N, C, h, w].
        """
        images = samples.to(torch.float32) / 255
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        normalised: torch.Tensor = (images.expand(-1, mean.shape[1], -1, -1) - mean) / std
        return normalised
