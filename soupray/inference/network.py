"""The model of a recipe as one network of torch: from pixels or token ids to logits."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, NamedTuple

import torch

from soupray.core.arrays import Images
from soupray.core.candidates import EntropyEnsemble, OutputEnsemble, VRFEnsemble
from soupray.core.errors import ConfigError
from soupray.core.ports import Task
from soupray.inference.predictor import ModelSource, Predictor
from soupray.spec.task import OpenClipSpec, TaskSpec, TransformersSpec

TINY = torch.finfo(torch.float32).tiny
"""The smallest probability of an ensemble, as in `maths.outputs.Blender`."""


class _Part(NamedTuple):
    """A member of an ensemble, or the one model.

    Attributes:
        body: number of its body among those of the network.
        head: number of its head.
        share: its share of the sum; of an ensemble by entropy, each sample has its own.
        temperature: divides its logits.
    """

    body: int
    head: int
    share: float
    temperature: float


class Network(torch.nn.Module):
    """Logits float32 [N, C] of images uint8 [N, C, H, W], or of token ids int64 [N, T].

    Of retrieval it gives the embeddings of texts, float32 [N, D].

    Images are those of `Model.preprocess`: they are resized and normalised here. Token ids are
    padded to the T of the evaluation with the tokenizer's padding token, which the attention leaves
    out. All members of an ensemble are in it, and members that differ only in their heads share a
    body. Computes in float32, sums of members too.
    """

    def __init__(self, predictor: Predictor, reads_tokens: bool) -> None:
        """Join the models of a predictor. See `network_of`."""
        super().__init__()
        self.reads_tokens = reads_tokens
        self._space: Literal["logits", "probabilities", "entropy"] = "logits"
        self._embeds = predictor.embeds
        self._sources: list[ModelSource] = []
        self._parts: list[_Part] = []
        bodies: list[Any] = []
        heads: list[Any] = []
        candidate = predictor.candidate
        members = [(member, 1.0, 1.0) for member in candidate.members]
        if isinstance(candidate, OutputEnsemble):
            self._space = candidate.space
            members = [(m, n / candidate.denominator, t) for m, n, t in candidate.parts]
        if isinstance(candidate, EntropyEnsemble):
            self._space = "entropy"
            members = [(m, 1.0, t) for m, t in candidate.parts]
        for member, share, temperature in members:
            source, body, head = predictor.models[member]
            if not any(body is known for known in bodies):
                bodies.append(body)
                self._sources.append(source)
            number = next(k for k, known in enumerate(bodies) if known is body)
            self._parts.append(_Part(number, len(heads), share, temperature))
            heads.append(head)
        self.bodies: Any = torch.nn.ModuleList(map(_in_float32, bodies))
        self.heads: Any = torch.nn.ModuleList(map(_in_float32, heads))

    @property
    def argument(self) -> str:
        """The name of what `forward` takes."""
        return "input_ids" if self.reads_tokens else "images"

    @property
    def task(self) -> Task:
        """The task of the first member; that of all members if they read tokens."""
        return self._sources[0].task

    def inputs(self, samples: Images) -> torch.Tensor:
        """Return what `forward` takes for samples that `Model.preprocess` returned."""
        given = torch.from_numpy(samples.copy())
        return self.task.inputs(given) if self.reads_tokens else given

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] of images or token ids."""
        features = [
            body.features(samples if self.reads_tokens else source.task.inputs(samples))
            for body, source in zip(self.bodies, self._sources, strict=True)
        ]
        rows = [(part, self.heads[part.head](features[part.body])) for part in self._parts]
        if len(rows) == 1 and self._space == "logits":
            logits: torch.Tensor = rows[0][1] / rows[0][0].temperature
            return logits
        if self._embeds:  # as `maths.retrieval.side_by_side`
            roots = [(math.sqrt(part.share / part.temperature), found) for part, found in rows]
            return torch.cat([root * found for root, found in roots], dim=1)
        scaled = [(part.share, logits / part.temperature) for part, logits in rows]
        if self._space == "logits":
            return torch.stack([share * logits for share, logits in scaled]).sum(0)
        if self._space == "entropy":
            p = torch.stack([logits.softmax(-1) for _, logits in scaled])
            log_p = torch.stack([logits.log_softmax(-1) for _, logits in scaled])
            shares = (p * log_p).sum(-1, keepdim=True).softmax(0)  # exp(-H) over its sum
            return (shares * p).sum(0).clamp_min(TINY).log()
        shares = torch.stack([share * logits.softmax(-1) for share, logits in scaled])
        return shares.sum(0).clamp_min(TINY).log()


def _in_float32(module: torch.nn.Module) -> torch.nn.Module:
    """The module, or a copy of one that is evaluated in bfloat16."""
    low = any(p.dtype != torch.float32 for p in module.parameters())
    return copy.deepcopy(module).float() if low else module


def network_of(predictor: Predictor, name: str, task: TaskSpec) -> Network:
    """Return the network of a recipe. It has the modules of the predictor, not copies of them.

    Args:
        predictor: has its models.
        name: of the entry, for messages.
        task: in its spec.

    Raises:
        ConfigError: the model is no network of fixed layers, or its members read other tokens.
    """
    if isinstance(predictor.candidate, VRFEnsemble):
        raise ConfigError(
            f"{name} is a VRF: for each input it looks for neighbours in a failure set, which no "
            "graph of layers can do. Use it with soupray.load or `soupray predict`, or export "
            "another entry (`soupray rank` lists them)."
        )
    if isinstance(task, OpenClipSpec) and task.outputs == "embeddings":
        raise ConfigError(
            f"{name} reads images and captions: one graph has one input. Use it with soupray.load, "
            "or `soupray export --format library`, which open_clip loads."
        )
    reads_tokens = isinstance(task, TransformersSpec)
    sources = {id(member.source) for member in predictor.models.values()}
    if reads_tokens and len(sources) > 1:
        raise ConfigError(
            f"{name} has members of several sweeps, each with a tokenizer of its own: one graph "
            "has one input of tokens. Use it with soupray.load or `soupray predict`."
        )
    return Network(predictor, reads_tokens)
