"""Image classification with a timm model and a new linear head."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from soupray.core.errors import ConfigError
from soupray.core.ports import Origin
from soupray.spec.task import TimmSpec
from soupray.store.weights_file import Weights, write_weights
from soupray.tasks.examples import timm_example
from soupray.tasks.files import local_path, not_reached
from soupray.tasks.foreign import (
    NOT_WEIGHTS,
    ForeignWeights,
    in_order,
    leave_out_batch_counts,
    load_foreign,
    matched,
    renamed,
    separate,
    unwrapped,
)
from soupray.tasks.heads import HEAD, Classifier, Heads, heads_of, ways
from soupray.tasks.pixels import Pixels

BODY = "body."

FEW = 16
"""More than the heads of any model of timm (8)."""

ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
"""Fields of timm's configuration that are about certain weights, not about the architecture."""
OTHER_INPUTS = ("test_input_size", "test_crop_pct", "test_pool_size")
"""Fields with the inputs on which timm evaluated its own weights."""


class TimmTask:
    """Trains a timm model end to end, from pre-trained or from random weights."""

    def __init__(self, spec: TimmSpec) -> None:
        self._spec = spec
        self.pixels = Pixels((spec.size, spec.size), spec.mean, spec.std)
        # The model is made here, so that an error is reported before anything is stored.
        model = self.model()
        body: Any = model.body
        self._first_layer = body.pretrained_cfg["first_conv"]
        self._heads, self._shapes = self._find_heads(model)

    def model(self) -> Classifier:
        """A new model. The values of its weights are not defined."""
        return self._classifier(pretrained=False)

    def init(self) -> dict[str, torch.Tensor]:
        """Pre-trained weights if the spec names them. Torch's global generator draws the others."""
        file = self._pretrained_file()
        model = self._classifier(pretrained=bool(self._spec.pretrained) and file is None)
        drawn = separate(model.state_dict())
        if file is None:
            return drawn
        last = (*self._heads.layers, *self._heads.norms)
        theirs = self._timms(load_foreign(file))
        body = {n: t for n, t in theirs.items() if n.rpartition(".")[0] not in (*last, "head")}
        body = {n if self._is_ours(n) else f"{BODY}{n}": t for n, t in body.items()}
        head = {n: t for n, t in drawn.items() if n.startswith(HEAD)}
        return matched(ForeignWeights(self._channels_of(body, drawn) | head, str(file)), model)

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Resize and normalise images: [N, 1 or C, H, W] to float32 [N, C, size, size]."""
        return self.pixels(samples)

    def adopt(self, weights: Weights, where: str, named: Sequence[str] | None = None) -> Weights:
        """Convert a checkpoint of `timm.create_model(model, num_classes=...)`.

        Args:
            weights: the checkpoint.
            where: the file that error messages name.
            named: names of the classes of its head, in the order of the rows; None if unknown.

        Raises:
            IncompatibleWeights: a tensor or the classes do not fit.
        """
        found = in_order(self._ours(weights, where), named, self._spec.classes, where)
        return matched(ForeignWeights(found, where), self.model())

    def write_files(self, folder: Path) -> None:
        """Write nothing: timm has its architectures in code."""

    def export(self, weights: Weights, folder: Path) -> str:
        """Write a folder as timm writes it for the hub: model.safetensors and config.json.

        config.json has the names of the classes, the arguments of the model, and its inputs.

        Args:
            weights: a full state dict of `model()`.
            folder: where the files go.

        Returns:
            A Python expression that loads the model with timm.
        """
        spec = self._spec
        whole = self._made(spec.model, num_classes=len(spec.classes))
        # Counters of batches stay 0.
        named = whole.state_dict() | _timm_weights(weights, self._heads, self._shapes)
        whole.load_state_dict(named)
        # What timm says about the architecture's usual weights is not true of others.
        about = {n: v for n, v in whole.pretrained_cfg.items() if n not in ORIGIN + OTHER_INPUTS}
        true = self._about_tag()
        whole.pretrained_cfg = about | {n: true[n] for n in ORIGIN if n in true}
        labels = {"label_names": list(spec.classes)}
        timm.models.save_for_hf(whole, str(folder), labels, safe_serialization=True)
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= self._inputs(config["pretrained_cfg"])
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        # Again: these bytes depend only on the weights, and others than the owner may read them.
        write_weights(folder / "model.safetensors", named, {})
        return f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"

    def _inputs(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the evaluation as timm's transform has them.

        Args:
            about: what timm writes about the inputs of the architecture.
        """
        spec = self._spec
        size = [len(spec.mean), spec.size, spec.size]
        return {
            "input_size": size,
            # Else timm would make another model, for that size; this one reads it all the same.
            "fixed_input_size": about["fixed_input_size"] and list(about["input_size"]) == size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop,
            "crop_mode": {"shortest": "center", "squash": "squash"}[spec.resize],
        }

    def example(self) -> str:
        """Code for `timm.create_model`, with timm's own transform."""
        return timm_example(len(self._spec.mean))

    def origin(self) -> Origin | None:
        """The tag or the file of the spec, with the licence that timm names for the tag."""
        spec = self._spec
        if not spec.pretrained:
            return None
        if self._pretrained_file() is not None:
            return Origin(name=f"{spec.model}, {spec.pretrained}")
        name, about = f"{spec.model}.{spec.pretrained}", self._about_tag()
        hub, licence = about.get("hf_hub_id"), about.get("license")
        if licence is None:
            return Origin(name=name, hub=hub)
        return Origin(name=name, hub=hub, licence=licence, read_from="timm's configuration")

    def _about_tag(self) -> dict[str, Any]:
        """What timm knows about the weights of the spec's tag; empty without a tag."""
        spec = self._spec
        if not spec.pretrained or self._pretrained_file() is not None:
            return {}
        try:
            about = timm.get_pretrained_cfg(f"{spec.model}.{spec.pretrained}")
        except (RuntimeError, ValueError):  # no tag of this version of timm
            return {}
        known: dict[str, Any] = {} if about is None else about.to_dict()
        return known

    def _ours(self, weights: Weights, where: str) -> Weights:
        """The tensors under soupray's names, from soupray's names or timm's."""
        found = self._timms(weights)
        if any(self._is_ours(name) for name in found):
            return found
        # The heads go first: `head.` is soupray's name for the head, and of many layers in timm.
        given = self._heads.joined(found, where)
        if given is found:
            return renamed(found, lambda name: f"{BODY}{name}")
        kept = (f"{HEAD}weight", f"{HEAD}bias")
        return renamed(given, lambda name: name if name in kept else f"{BODY}{name}")

    def _is_ours(self, name: str) -> bool:
        """Whether this is soupray's name of a tensor. Names of timm's TResNet have `body.` too."""
        return name.startswith(BODY) and name not in self._shapes

    def _timms(self, weights: Weights) -> Weights:
        """The tensors without wrappers, under the names of timm, or of soupray."""
        found = unwrapped(weights)
        if EFFICIENTNET_MARK in found:
            body = self._made(self._spec.model, num_classes=0)
            found = timm_names(found, body.state_dict())
        return found

    def _find_heads(self, model: Classifier) -> tuple[Heads, dict[str, torch.Size]]:
        """Timm's last layers, which soupray's head stands for, and the shapes of timm's tensors.

        Raises:
            ConfigError: soupray's head cannot be written into them.
        """
        spec, body = self._spec, model.body.state_dict()
        with torch.device("meta"):  # a model of names and shapes, made in no time
            whole = self._made(spec.model, num_classes=len(spec.classes))
        heads, strange = heads_of(whole, body, len(spec.classes))
        strange = [name for name in strange if not name.endswith(NOT_WEIGHTS)]
        shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
        if not heads.layers or strange:
            what = f"{strange[0]!r} of its classifier" if strange else "a model without classes"
            raise ConfigError(
                f"task.model = {spec.model!r}: {what} has no place in soupray's models, which end "
                "in one linear head, so that it could not be exported. Name another model."
            )
        if len(heads.layers) == 1:
            return heads, shapes
        for way in ways(heads, model.head.in_features, shapes):
            if self._gives_the_logits(way, model, shapes):
                return way, shapes
        raise ConfigError(
            f"task.model = {spec.model!r}: one linear head does not give what its heads "
            f"{', '.join(heads.layers)} make together, so that it could not be exported. Name "
            "another model."
        )

    @torch.inference_mode()
    def _gives_the_logits(
        self, heads: Heads, model: Classifier, shapes: dict[str, torch.Size]
    ) -> bool:
        """Whether timm's model with these heads makes the logits of soupray's, for one input.

        Timm does not say how it puts several heads together.
        """
        spec = self._spec
        draw = torch.Generator().manual_seed(0)
        # Random: equal weights would make different ways look the same. The few weights of a sum of
        # heads, which are equal in a new model, must differ by much.
        state = {
            name: t
            + (torch.rand(t.shape, generator=draw) - 0.5) * (2 if t.numel() <= FEW else 0.01)
            for name, t in model.state_dict().items()
            if t.is_floating_point()
        }
        mine = self._classifier(pretrained=False).eval()
        mine.load_state_dict(mine.state_dict() | state)
        whole = self._made(spec.model, num_classes=len(spec.classes)).eval()
        self._heads, self._shapes = heads, shapes
        whole.load_state_dict(whole.state_dict() | _timm_weights(state, heads, shapes))
        inputs = torch.rand((1, len(spec.mean), spec.size, spec.size), generator=draw)
        logits = mine(inputs)
        return bool((whole(inputs) - logits).abs().max() <= 1e-3 * logits.abs().max())

    def _pretrained_file(self) -> Path | None:
        file = local_path(self._spec.pretrained or "")
        return file if self._spec.pretrained and file.is_file() else None

    def _channels_of(self, body: Weights, wanted: Weights) -> Weights:
        """Fit the first layer to the number of input channels: summed or repeated, as in timm."""
        name = f"{BODY}{self._first_layer}.weight"
        if name in body and name in wanted and body[name].shape[1] != wanted[name].shape[1]:
            channels = wanted[name].shape[1]
            return body | {name: timm.models.adapt_input_conv(channels, body[name])}
        return body

    def _classifier(self, pretrained: bool) -> Classifier:
        body = self._body(pretrained)
        width = getattr(body, "head_hidden_size", body.num_features)
        model = Classifier(body, torch.nn.Linear(width, len(self._spec.classes)))
        leave_out_batch_counts(model)
        # Twice as fast as the default on CPUs. This changes neither the stored order of the weights
        # nor the order in a model that loads them.
        return model.to(memory_format=torch.channels_last)

    def _body(self, pretrained: bool) -> Any:
        spec = self._spec
        name = f"{spec.model}.{spec.pretrained}" if pretrained else spec.model
        return self._made(name, pretrained=pretrained, num_classes=0)  # pooled features

    def _made(self, name: str, **more: Any) -> Any:
        spec = self._spec
        try:
            return timm.create_model(name, **more, **spec.args)
        # timm passes `args` to the model's constructor, which may raise any exception.
        except Exception as error:
            why = not_reached(error, "a local file in task.pretrained")
            raise ConfigError(
                f"task.model = {spec.model!r}, args = {spec.args}, pretrained = "
                f"{spec.pretrained!r}: "
                f"{why or f'timm cannot make it: {type(error).__name__}: {error}'}"
            ) from error


def _timm_weights(weights: Weights, heads: Heads, shapes: Mapping[str, torch.Size]) -> Weights:
    """The tensors under timm's names, from soupray's names."""
    head = {n.removeprefix(HEAD): t for n, t in weights.items() if n.startswith(HEAD)}
    body = {n.removeprefix(BODY): t for n, t in weights.items() if n.startswith(BODY)}
    return body | heads.spread(head, shapes)


# From the tensor names of the package efficientnet_pytorch to those of timm. The package is a port
# of the published TensorFlow weights of EfficientNets. It numbers all blocks in one sequence; timm
# numbers them by stage and by position in the stage. Each tensor is found by its name, never by its
# position in the file.

EFFICIENTNET_MARK = "_conv_stem.weight"
"""A tensor that only files of efficientnet_pytorch have."""

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_PLAIN = {  # a block that does not expand its channels has two convolutions
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_ATTENTION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def timm_names(weights: Weights, model: Iterable[str]) -> Weights:
    """The tensors of a file of efficientnet_pytorch, under timm's names.

    A tensor without a name in timm keeps its own name.

    Args:
        weights: tensors by the names of efficientnet_pytorch.
        model: the tensor names of the timm model, which say how many blocks each stage has.
    """
    places = sorted({tuple(map(int, n.split(".")[1:3])) for n in model if n.startswith("blocks.")})
    renamed = {}
    for name, tensor in weights.items():
        *inside, layer, kind = name.split(".")
        if inside[:1] == ["_blocks"] and len(inside) == 2 and int(inside[1]) < len(places):
            stage, place = places[int(inside[1])]
            expands = f"_blocks.{inside[1]}._expand_conv.weight" in weights
            names = (_EXPANDING if expands else _PLAIN) | _ATTENTION
            new = f"blocks.{stage}.{place}.{names.get(layer, layer)}.{kind}"
        else:
            new = ".".join([*inside, _OUTSIDE.get(layer, layer), kind])
        renamed[new] = tensor
    return renamed
