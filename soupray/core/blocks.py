"""Blocks of a network, as the names of its tensors number them."""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCK_NUMBER = re.compile(r"(?:^|\.)(?:resblocks|blocks?|layers?|stages?)\.?(\d+)\.")
"""Finds the number of the outermost block in a tensor's name, as group 1.

It knows the names of open_clip, timm and transformers: `visual.transformer.resblocks.11.mlp` is in
block 11, `backbone.layer3.1.bn2` in block 3.
"""


def by_block(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the names of tensors: those outside the blocks, each block in its order, the head.

    Groups without a name are left out.

    Args:
        names: of all tensors.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for name in names:
        number = BLOCK_NUMBER.search(name)
        if name.startswith("head."):
            place = (2, 0)
        else:
            place = (1, int(number.group(1))) if number else (0, 0)
        groups.setdefault(place, []).append(name)
    return [tuple(groups[place]) for place in sorted(groups)]
