"""Blocks of a network, as the names of its tensors number them."""

from __future__ import annotations

import re

BLOCK_NUMBER = re.compile(r"(?:^|\.)(?:resblocks|blocks?|layers?|stages?)\.?(\d+)\.")
"""Finds the number of the outermost block in a tensor's name, as group 1.

It knows the names of open_clip, timm and transformers: `visual.transformer.resblocks.11.mlp` is in
block 11, `backbone.layer3.1.bn2` in block 3.
"""
