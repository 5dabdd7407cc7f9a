"""Image classification with a timm model and a new linear head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from soupray.errors import ConfigError
from soupray.subject import TimmSpec
from soupray.tasks.pixels import Pixels

_BATCH_COUNT = "num_batches_tracked"


class NetworkClassifier(torch.nn.Module):
    """logits = head(features).

    Inputs [N, C, H, W] float32, features [N, D] as the body pools them, logits [N, classes].
    """

    def __init__(self, body: torch.nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = torch.nn.Linear(width, classes)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, D]."""
        features: torch.Tensor = self.body(inputs)
        return features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, classes]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class TimmTask:
    """Trains a timm model end to end, from its pre-trained weights or from drawn ones."""

    def __init__(self, spec: TimmSpec) -> None:
        self._spec = spec
        self._pixels = Pixels((spec.size, spec.size), spec.mean, spec.std)
        self.model()  # a model that cannot be made is told before anything is stored

    def model(self) -> NetworkClassifier:
        """The model, weights not loaded."""
        return self._classifier(pretrained=False)

    def init(self) -> dict[str, torch.Tensor]:
        """Pre-trained weights if the spec names some; the rest is drawn by torch's generator."""
        return self._classifier(pretrained=self._spec.pretrained is not None).state_dict()

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """[N, 1 or C, H, W] in 0..255 -> [N, C, size, size] float32, resized and normalised."""
        return self._pixels(samples)

    def _classifier(self, pretrained: bool) -> NetworkClassifier:
        body = self._body(pretrained)
        width = getattr(body, "head_hidden_size", body.num_features)
        model = NetworkClassifier(body, width, len(self._spec.classes))
        _leave_out_batch_counts(model)
        # Twice as fast as the default on CPUs. Weights are stored in the default order all the
        # same, and a model that loads them keeps its own.
        return model.to(memory_format=torch.channels_last)

    def _body(self, pretrained: bool) -> Any:
        spec, name, overlay = self._spec, self._spec.model, None
        if pretrained and Path(str(spec.pretrained)).is_file():
            overlay = {"file": spec.pretrained}
        elif pretrained:
            name = f"{name}.{spec.pretrained}"
        try:
            return timm.create_model(
                name,
                pretrained=pretrained,
                pretrained_cfg_overlay=overlay,
                num_classes=0,  # pooled features
                **spec.args,
            )
        # timm hands `args` to the model's own constructor, which may fail in any way.
        except Exception as error:
            raise ConfigError(
                f"task.model = {spec.model!r}, args = {spec.args}, pretrained = "
                f"{spec.pretrained!r}: timm cannot make it: {type(error).__name__}: {error}"
            ) from error


def _leave_out_batch_counts(model: torch.nn.Module) -> None:
    """BatchNorm's count of batches is no weight: nothing reads it, and it has no average."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None
            # When it loads a state dict without the count, it would put one in and refuse it.
            module.register_load_state_dict_pre_hook(_drop_batch_count)


def _drop_batch_count(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *more: Any
) -> None:
    state_dict.pop(f"{prefix}{_BATCH_COUNT}", None)
