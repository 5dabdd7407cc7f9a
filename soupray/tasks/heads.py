"""The last layers of other libraries' classifiers, and the one linear head of soupray.

A classifier may end in a 1x1 convolution, in a BatchNorm before the linear layer, or in several
heads. `spread` writes soupray's head into such layers so that they give its logits, `joined` reads
it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch

from soupray.core.errors import IncompatibleWeights
from soupray.store.weights_file import Weights

HEAD = "head."


class Classifier(torch.nn.Module):
    """logits = head(features), with a linear head.

    Inputs are float32 [N, C, H, W], features [N, D] are what the body returns, logits [N, classes].
    """

    def __init__(self, body: torch.nn.Module, head: torch.nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features [N, D] of inputs [N, C, H, W]."""
        features: torch.Tensor = self.body(inputs)
        return features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of inputs [N, C, H, W]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class Masks(torch.nn.Module):
    """The logit of each pixel, row by row: a body without a head.

    Inputs are float32 [N, C, H, W]; features and logits are one and the same, [N, H * W].
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = torch.nn.Identity()

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, H * W] of inputs [N, C, H, W]."""
        masks: torch.Tensor = self.body(inputs)
        return masks.flatten(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, H * W] of inputs [N, C, H, W]."""
        return self.features(inputs)


Way = Literal["same", "parts", "main"]
"""How several heads make logits: each head is soupray's (the mean of them is taken), each has a
part of the features (the mean too), or one is soupray's and the others are zero."""


_OF_NORM = ("weight", "bias", "running_mean", "running_var")


class Heads(NamedTuple):
    """The last layers of a classifier.

    Attributes:
        layers: names of the linear layers or 1x1 convolutions that make logits. For the way `main`,
            the first one is soupray's head.
        norms: eps of the BatchNorm layers before them, by name.
        way: how the layers make the logits.
    """

    layers: tuple[str, ...]
    norms: Mapping[str, float]
    way: Way = "same"

    def spread(self, head: Weights, wanted: Mapping[str, torch.Size]) -> Weights:
        """The tensors of the last layers that give the logits of soupray's head.

        Args:
            head: `weight` [C, D] and `bias` [C].
            wanted: the shapes of the tensors of the classifier, by name.
        """
        shapes = [wanted[f"{layer}.weight"] for layer in self.layers]
        made: Weights = {}
        start = 0
        for k, (layer, shape) in enumerate(zip(self.layers, shapes, strict=True)):
            weight, bias = head["weight"], head["bias"]
            if self.way == "parts":
                weight = weight[:, start : start + shape[1]] * len(shapes)
                start += shape[1]
            elif self.way == "main" and k:
                weight, bias = torch.zeros(shape), torch.zeros_like(bias)
            made[f"{layer}.weight"] = weight.reshape(shape).clone()
            made[f"{layer}.bias"] = bias.clone()
        for norm, eps in self.norms.items():  # (x - 0) / sqrt(1 - eps + eps) * 1 + 0
            size = wanted[f"{norm}.weight"]
            made[f"{norm}.weight"] = torch.ones(size)
            made[f"{norm}.running_var"] = torch.full(size, 1 - eps)
            made |= {f"{norm}.{n}": torch.zeros(size) for n in ("bias", "running_mean")}
        return made

    def joined(self, weights: Weights, where: str) -> Weights:
        """The weights of a classifier with soupray's head in place of its last layers.

        Args:
            weights: tensors by the names of the classifier.
            where: the file that error messages name.

        Raises:
            IncompatibleWeights: no single linear head gives the logits of these layers.
        """
        given = {n: t for n, t in weights.items() if n.rpartition(".")[0] in self._all}
        names = [f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")]
        names += [f"{norm}.{kind}" for norm in self.norms for kind in _OF_NORM]
        if not set(names) <= set(given):
            return weights  # `matched` names what is missing
        weight = [given[f"{layer}.weight"].flatten(1) for layer in self.layers]
        head = {"weight": weight[0], "bias": given[f"{self.layers[0]}.bias"]}
        if self.way == "parts":
            head["weight"] = torch.cat(weight, dim=1) / len(weight)
        again = self.spread(head, {name: tensor.shape for name, tensor in given.items()})
        for name, tensor in given.items():
            if name not in again or not torch.equal(again[name].to(tensor.dtype), tensor):
                raise IncompatibleWeights(
                    f"{where}: tensor {name!r} makes the logits of its last layers "
                    f"({', '.join(self._all)}) others than those of one linear head, which the "
                    "models of soupray have. Leave it out."
                )
        rest = {name: tensor for name, tensor in weights.items() if name not in given}
        return rest | {f"{HEAD}{kind}": tensor for kind, tensor in head.items()}

    @property
    def _all(self) -> tuple[str, ...]:
        return (*self.layers, *self.norms)


def heads_of(
    whole: torch.nn.Module, body: Mapping[str, torch.Tensor], classes: int
) -> tuple[Heads, list[str]]:
    """The last layers of `whole`: those that its body does not have.

    Args:
        whole: a classifier.
        body: the tensors of the same model without classes.
        classes: the number of classes of `whole`.

    Returns:
        The layers, and the names of the tensors that `Heads` cannot express.
    """
    layers, norms, known = [], {}, set(body)
    for name, module in whole.named_modules():
        own = {f"{name}.{n}" for n in module.state_dict()}
        if not own or own & set(body):
            continue
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            last = module.weight.shape
            if last[0] == classes and set(last[2:]) <= {1} and module.bias is not None:
                layers.append(name)
                known |= own
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.affine:
            norms[name] = module.eps
            known |= own
    return Heads(tuple(layers), norms), sorted(set(whole.state_dict()) - known)


def ways(heads: Heads, width: int, wanted: Mapping[str, torch.Size]) -> Iterator[Heads]:
    """The ways in which several heads can make logits from features of `width` numbers.

    Args:
        heads: the last layers.
        width: of the features.
        wanted: the shapes of the tensors of the classifier, by name.
    """
    widths = [wanted[f"{layer}.weight"][1] for layer in heads.layers]
    if sum(widths) == width:
        yield heads._replace(way="parts")
    if set(widths) == {width}:
        yield heads._replace(way="same")
        for main in heads.layers:
            rest = tuple(layer for layer in heads.layers if layer != main)
            yield heads._replace(way="main", layers=(main, *rest))
