"""Image classification with an open_clip image tower and a zero-shot head."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from soupray.errors import ConfigError
from soupray.subject import OpenClipSpec
from soupray.tasks.pixels import Pixels
from soupray.tasks.vocabulary import CutTokenizer

ASSETS = Path(__file__).parent.parent / "assets"
PACKAGED = "soupray:"
LOCAL = "local-dir:"
PROMPTS = 512
"""Texts that the text tower reads at a time, in whole classes."""


class ImageClassifier(torch.nn.Module):
    """logits = head(normalised features); the temperature is folded into the head.

    Inputs [N, 3, H, W] float32, features [N, D] of length one, logits [N, C].
    """

    def __init__(self, visual: torch.nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.visual = visual
        self.head = torch.nn.Linear(width, classes, bias=False)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, D], L2-normalised."""
        features: torch.Tensor = F.normalize(self.visual(inputs), dim=-1)
        return features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[N, C]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class OpenClipTask:
    """Fine-tunes an open_clip image tower end to end, from its zero-shot head."""

    def __init__(self, spec: OpenClipSpec) -> None:
        self._spec = spec
        self._folder = local_folder(spec.model)
        empty = self._clip(pretrained=False)
        size = empty.visual.image_size
        self._pixels = Pixels(
            (size, size) if isinstance(size, int) else tuple(size),
            empty.visual.image_mean,
            empty.visual.image_std,
        )

    def model(self) -> ImageClassifier:
        """The image tower and a head, weights not loaded."""
        return self._classifier(self._clip(pretrained=False))

    def init(self) -> dict[str, torch.Tensor]:
        """The pre-trained tower with the zero-shot head of the spec's classes and templates."""
        clip = self._clip(pretrained=True)
        model = self._classifier(clip)
        model.head.weight.data = self._zero_shot_head(clip)
        return model.state_dict()

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """[N, 1 or 3, H, W] in 0..255 -> [N, 3, h, w] float32, resized and normalised."""
        return self._pixels(samples)

    def _clip(self, pretrained: bool) -> Any:
        name = f"{LOCAL}{self._folder}" if self._folder else self._spec.model
        if pretrained and not self._folder and not self._spec.pretrained:
            raise ConfigError(
                f"task.pretrained is not given for {name!r}: a zero-shot head needs pre-trained "
                "weights. Give one of open_clip's tags, or a local file."
            )
        logging.disable(logging.WARNING)  # open_clip warns of every model made without weights
        try:
            return open_clip.create_model(
                name,
                pretrained=self._spec.pretrained if pretrained else None,
                load_weights=pretrained,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"task.model = {self._spec.model!r}, pretrained = {self._spec.pretrained!r}: "
                f"open_clip cannot make it: {error}"
            ) from error
        finally:
            logging.disable(logging.NOTSET)

    def _classifier(self, clip: Any) -> ImageClassifier:
        width = clip.visual.output_dim
        return ImageClassifier(clip.visual, width, len(self._spec.classes))

    @torch.inference_mode()
    def _zero_shot_head(self, clip: Any) -> torch.Tensor:
        """[C, D]: mean of the normalised prompt embeddings, normalised, times exp(logit_scale).

        WiSE-FT, arXiv:2109.01903, section 3; the scale is the model's own, not a constant 100.
        """
        tokenize = self._tokenizer()
        names, templates = self._spec.classes, self._spec.templates
        # A few prompts are read class by class, on the CPU: the shape of a batch changes low bits,
        # and every number of the demo descends from these. Those of ImageNet, 80 000, take hours
        # without a GPU.
        few = len(names) * len(templates) <= PROMPTS
        step = 1 if few else max(1, PROMPTS // len(templates))
        device = "cuda" if torch.cuda.is_available() and not few else "cpu"
        clip.eval().to(device)
        rows = []
        for start in range(0, len(names), step):
            some = names[start : start + step]
            texts = tokenize([template.format(name) for name in some for template in templates])
            embeddings = F.normalize(clip.encode_text(texts.to(device)), dim=-1)
            means = embeddings.unflatten(0, (len(some), len(templates))).mean(dim=1)
            rows.append(F.normalize(means, dim=-1))
        head: torch.Tensor = torch.cat(rows) * clip.logit_scale.exp()
        clip.to("cpu")
        return head.to("cpu", copy=True)

    def _tokenizer(self) -> Any:
        if self._folder and (self._folder / "vocabulary.json").exists():
            kept = json.loads((self._folder / "vocabulary.json").read_text())
            config = json.loads((self._folder / "open_clip_config.json").read_text())
            length = config["model_cfg"]["text_cfg"]["context_length"]
            return CutTokenizer(kept["full_token_ids"], length)
        return open_clip.get_tokenizer(
            f"{LOCAL}{self._folder}" if self._folder else self._spec.model
        )


def local_folder(model: str) -> Path | None:
    """The folder in open_clip's layout that `model` names, if it names one."""
    if model.startswith(PACKAGED):
        folder = ASSETS / model.removeprefix(PACKAGED)
    elif model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
    else:
        return None
    if not (folder / "open_clip_config.json").exists():
        raise ConfigError(
            f"task.model = {model!r}: {folder} has no open_clip_config.json. Name a folder in "
            "open_clip's local-dir layout, an architecture, or soupray:digits."
        )
    return folder
