"""CLIPs of open_clip: an image tower with a zero-shot head, or both towers for retrieval."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from soupray.core.errors import ConfigError, IncompatibleWeights
from soupray.core.ports import Origin
from soupray.spec.preprocessing import CLIP_CONFIG
from soupray.spec.task import OpenClipSpec
from soupray.store.weights_file import Weights, write_weights
from soupray.tasks.examples import OPEN_CLIP, two_towers_example
from soupray.tasks.files import LOCAL, PACKAGED, clip_folder, not_reached
from soupray.tasks.foreign import (
    ForeignWeights,
    in_order,
    leave_out_batch_counts,
    matched,
    renamed,
    unwrapped,
)
from soupray.tasks.origin import folder_origin, hub_origin, packaged_origin
from soupray.tasks.pixels import Pixels
from soupray.tasks.towers import CLIP, NOT_SHARED, PairInputs, TwoTowers
from soupray.tasks.vocabulary import CutTokenizer

log = logging.getLogger(__name__)

HUB = "hf-hub:"
"""Before the name of a model of the hub, as open_clip writes it."""
_PUBLISHED = "classification_head."
"""Prefix of the head's tensors in the models of arXiv:2203.05482. Those of the CLIP have the prefix
`model.`."""
PROMPTS = 512
"""Number of prompts that the text tower reads at a time. A class is never divided."""


class ImageClassifier(torch.nn.Module):
    """logits = head(normalised features). The weights of the head include CLIP's logit scale.

    Inputs are float32 [N, 3, H, W], features [N, D] of length one, logits [N, C].
    """

    def __init__(self, visual: torch.nn.Module, head: torch.nn.Linear) -> None:
        super().__init__()
        self.visual, self.head = visual, head

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features [N, D] of inputs [N, 3, H, W], L2-normalised."""
        found = self.visual(inputs)
        if isinstance(found, tuple):  # of CoCa: the pooled output, and the tokens for its decoder
            found = found[0]
        features: torch.Tensor = F.normalize(found, dim=-1)
        return features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] of inputs [N, 3, H, W]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class OpenClipTask:
    """Fine-tunes an image tower from its zero-shot head, or both towers, end to end."""

    def __init__(self, spec: OpenClipSpec) -> None:
        self._spec, self._embeds = spec, spec.outputs == "embeddings"
        self._folder = clip_folder(spec.model)
        empty = self._clip(pretrained=False)
        size = empty.visual.image_size
        self.pixels = Pixels(
            (size, size) if isinstance(size, int) else tuple(size),
            spec.mean or empty.visual.image_mean,
            spec.std or empty.visual.image_std,
        )
        self._pairs: PairInputs | None = None
        if self._embeds:
            self._pairs = PairInputs(self._tokenizer(), self.pixels)
        # Kept and copied: to make a CLIP draws random weights for both towers, which takes seconds.
        self._blank = self._module(empty)

    def model(self) -> ImageClassifier | TwoTowers:
        """A new model. The values of its weights are not defined."""
        return copy.deepcopy(self._blank)

    def init(self) -> dict[str, torch.Tensor]:
        """The pre-trained weights: both towers, or an image tower and its zero-shot head.

        The head is that of the spec's classes and prompts.
        """
        clip = self._clip(pretrained=True)
        if self._embeds:
            learnt = float(clip.logit_scale.detach().exp())
            if abs(learnt - self._spec.scale) > 0.01 * learnt:
                log.info(
                    f"the checkpoint has learnt the scale {learnt:.4g}; the loss has task.scale = "
                    f"{self._spec.scale:g}."
                )
            return self._module(clip).state_dict()
        return self._module(clip).state_dict() | self._zero_shot_head(clip)

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Resize and normalise images: [N, 1 or 3, H, W] from 0 to 255 to float32 [N, 3, h, w].

        Of texts, and of images with captions, see `PairInputs`.
        """
        return self.pixels(samples) if self._pairs is None else self._pairs(samples)

    @property
    def width(self) -> int:
        """The length of an embedding."""
        return int(self._config()["embed_dim"])

    @property
    def pairs(self) -> PairInputs:
        """The inputs of both towers; only with `objective: retrieval`."""
        assert self._pairs is not None
        return self._pairs

    def adopt(self, weights: Weights, where: str, named: Sequence[str] | None = None) -> Weights:
        """Convert a CLIP of open_clip, or a published model of arXiv:2203.05482.

        A published model has an image tower, a `classification_head` and rests of the text tower,
        which are left out. A whole CLIP gets the zero-shot head that its own text tower makes.

        Args:
            weights: the checkpoint.
            where: the file that error messages name.
            named: names of the classes of its head, in the order of the rows; None if unknown.

        Raises:
            IncompatibleWeights: a tensor or the classes do not fit, or the head has a bias but the
                spec has not.
        """
        clip = self._clip(pretrained=False)
        text = {name for name in clip.state_dict() if not name.startswith("visual.")}
        if self._embeds:
            found = renamed(unwrapped(weights), _name_of_tower)
            return matched(ForeignWeights(found, where), self._module(clip))
        found = renamed(unwrapped(weights), _our_name)
        found = in_order(found, named, self._spec.classes, where)
        if "head.weight" not in found and "head.bias" not in found:
            clip.load_state_dict(matched(ForeignWeights(found, where), clip))
            found |= self._zero_shot_head(clip)
        if "head.bias" in found and not self._spec.head_bias:
            raise IncompatibleWeights(
                f"{where}: its head has a bias. Write `head_bias: true` under task in the spec."
            )
        found = {name: tensor for name, tensor in found.items() if name not in text}
        return matched(ForeignWeights(found, where), self._module(clip))

    def write_files(self, folder: Path) -> None:
        """Write the configuration of a `local-dir:` model. Others are in the installed packages.

        Args:
            folder: where the file goes, for both towers with the tokenizer.
        """
        if self._spec.model.startswith(LOCAL):
            assert self._folder is not None
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._folder / CLIP_CONFIG, folder)
            if self._embeds:
                self._write_tokenizer(folder)

    def export(self, weights: Weights, folder: Path) -> str:
        """Write a whole CLIP with this image tower, and the head in a file of its own.

        open_clip_config.json has the architecture and the inputs, config.json the names of the
        classes. The tokenizer is there if the text tower has one of its own.

        Args:
            weights: a full state dict of `model()`.
            folder: where the files go.

        Returns:
            A Python expression that loads the CLIP with open_clip.
        """
        config = {"model_cfg": self._config(), "preprocess_cfg": self._inputs()}
        (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        self._write_tokenizer(folder)
        file = folder / "open_clip_model.safetensors"
        if self._embeds:  # the pre-trained CLIP has the numbers of the loss
            clip = self._clip(pretrained=True)
            towers = {name.removeprefix(CLIP): t for name, t in weights.items()}
            scale = torch.full_like(clip.logit_scale.detach(), math.log(self._spec.scale))
            write_weights(file, clip.state_dict() | towers | {"logit_scale": scale}, {})
            return f"open_clip.create_model({f'{LOCAL}{folder}'!r})"
        clip = self._clip(pretrained=True)
        towers = {name: t for name, t in weights.items() if name.startswith("visual.")}
        write_weights(file, clip.state_dict() | towers, {})
        head = {n.removeprefix("head."): t for n, t in weights.items() if n.startswith("head.")}
        write_weights(folder / "head.safetensors", head, {})
        labels = {"label_names": list(self._spec.classes), "head": "head.safetensors"}
        (folder / "config.json").write_text(json.dumps(labels, indent=2) + "\n")
        return f"open_clip.create_model({f'{LOCAL}{folder}'!r})"

    def _write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, if the text tower has one of its own."""
        if self._vocabulary is not None:
            shutil.copy(self._vocabulary, folder)
        elif self._config().get("text_cfg", {}).get("hf_tokenizer_name"):
            self._tokenizer().save_pretrained(str(folder))

    def example(self) -> str:
        """Code for open_clip's towers and transform, and for the head."""
        return two_towers_example(self._vocabulary is not None) if self._embeds else OPEN_CLIP

    def origin(self) -> Origin:
        """The folder, the tag or the file of the spec."""
        spec = self._spec
        if spec.model.startswith(PACKAGED):
            return packaged_origin(spec.model)
        if self._folder:
            return folder_origin(spec.model, self._folder)
        if spec.model.startswith(HUB):
            return hub_origin(spec.model.removeprefix(HUB), spec.model)
        name = f"{spec.model}, {spec.pretrained}"
        about = open_clip.get_pretrained_cfg(spec.model, spec.pretrained or "")
        hub = about.get("hf_hub", "").rpartition("/")[0]  # the last part is the name of a file
        return hub_origin(hub, name) if hub else Origin(name=name)

    def _inputs(self) -> dict[str, Any]:
        """The inputs as open_clip's transform has them. It has two interpolations, and no crop."""
        known = self._spec.interpolation in ("bilinear", "bicubic")
        return {
            "size": list(self.pixels.size),
            "mean": list(self.pixels.mean),
            "std": list(self.pixels.std),
            "interpolation": self._spec.interpolation if known else "bicubic",
            "resize_mode": self._spec.resize,
        }

    @property
    def _vocabulary(self) -> Path | None:
        """The file of a `CutTokenizer`. None: the tokenizer is open_clip's."""
        file = self._folder / "vocabulary.json" if self._folder else None
        return file if file is not None and file.exists() else None

    def _clip(self, pretrained: bool) -> Any:
        name = f"{LOCAL}{self._folder}" if self._folder else self._spec.model
        if pretrained and not self._folder and not self._spec.pretrained:
            raise ConfigError(
                f"task.pretrained is not given for {name!r}: a zero-shot head needs pre-trained "
                "weights. Give one of open_clip's tags, or a local file."
            )
        with _explained(self._spec):
            clip = open_clip.create_model(
                name,
                pretrained=self._spec.pretrained if pretrained else None,
                load_weights=pretrained,
            )
        leave_out_batch_counts(clip)
        return clip

    def _module(self, clip: Any) -> ImageClassifier | TwoTowers:
        if self._pairs is not None:
            return TwoTowers(clip, self.pixels, self._pairs.tokens)
        spec, width = self._spec, getattr(clip.visual, "output_dim", None)
        if width is None:  # an image tower of timm
            width = self._config()["embed_dim"]
        head = torch.nn.Linear(width, len(spec.classes), bias=spec.head_bias)
        return ImageClassifier(clip.visual, head)

    def _config(self) -> Any:
        """The architecture in open_clip's configuration format."""
        if self._folder is None:
            return open_clip.get_model_config(self._spec.model)
        return json.loads((self._folder / CLIP_CONFIG).read_text())["model_cfg"]

    @torch.inference_mode()
    def _zero_shot_head(self, clip: Any) -> Weights:
        """The zero-shot head, weight [C, D], of WiSE-FT (arXiv:2109.01903, section 3).

        A row is the mean of the normalised prompt embeddings of a class, normalised and multiplied
        by exp(logit_scale). The scale is the model's own, not a constant of 100.
        """
        tokenize = self._tokenizer()
        names, templates = self._spec.classes, self._spec.templates
        # The batch shape changes low bits, and all numbers of the demo depend on its zero-shot
        # head. For this reason, few prompts are always read class by class on the CPU. The 80 000
        # prompts of ImageNet would take hours there.
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
        bias = {"head.bias": torch.zeros(len(head))} if self._spec.head_bias else {}
        return {"head.weight": head.to("cpu", copy=True), **bias}

    def _tokenizer(self) -> Any:
        if self._vocabulary is not None:
            kept = json.loads(self._vocabulary.read_text())
            length = self._config()["text_cfg"]["context_length"]
            return CutTokenizer(kept["full_token_ids"], length)
        with _explained(self._spec):
            return open_clip.get_tokenizer(
                f"{LOCAL}{self._folder}" if self._folder else self._spec.model
            )


@contextmanager
def _explained(spec: OpenClipSpec) -> Iterator[None]:
    """Turn errors of open_clip about a model into a ConfigError."""
    # open_clip logs a warning for every model without weights, and logs each error in addition.
    logging.disable(logging.ERROR)
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        why = not_reached(error, "a local file in task.pretrained")
        raise ConfigError(
            f"task.model = {spec.model!r}, pretrained = {spec.pretrained!r}: "
            f"{why or f'open_clip cannot make it: {_first_problem(error)}'}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _first_problem(error: Exception) -> str:
    """One of the many problems that torch lists for a wrong architecture: a shape, if there is."""
    lines = [line.strip() for line in str(error).splitlines()]
    shapes = [line for line in lines if line.startswith("size mismatch")]
    names = [line.split(",")[0] for line in lines if line.startswith(("Missing", "Unexpected"))]
    return next(iter(shapes or names or lines), type(error).__name__)


def _name_of_tower(name: str) -> str | None:
    """The name of a tensor of a whole CLIP, which may be exported or stored; None: it is no weight.

    A checkpoint with `module.` or the like before its names is unwrapped before.
    """
    name = name.removeprefix(CLIP)
    return None if name in NOT_SHARED else f"{CLIP}{name}"


def _our_name(name: str) -> str:
    if name.startswith(_PUBLISHED):
        return f"head.{name.removeprefix(_PUBLISHED)}"
    return name.removeprefix("model.")
