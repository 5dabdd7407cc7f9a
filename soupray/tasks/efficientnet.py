"""EfficientNets in the names of the package efficientnet_pytorch, as timm names them.

That port of the published TensorFlow weights numbers its blocks from first to last; timm by stage
and place. Each tensor is found by its name, none by its position in the file.
"""

from __future__ import annotations

from collections.abc import Iterable

from soupray.store.weights_file import Weights

MARK = "_conv_stem.weight"
"""A tensor that those files have and no others."""

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
    """`weights` under timm's names; `model`: the names of timm's model, which say where blocks are.

    What has no name in timm keeps its own.
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
