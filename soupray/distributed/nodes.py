"""What a cluster can grow to: its node types, and whether a trial fits on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from soupray.spec import Resources


class NodeType(NamedTuple):
    """A kind of node: what one holds, and how many there may be. The head's own type has none."""

    name: str
    cpu: float
    gpu: float
    most: int


class Checked(NamedTuple):
    """What is wrong, and the node types as the autoscaler sees them, as far as they were read."""

    problems: list[str]
    types: list[NodeType]


def why_never(resources: Resources, types: Sequence[NodeType]) -> str | None:
    """Why no node will ever run a trial that reserves `resources`; None if one can."""
    cpu, gpu = resources.cpu, resources.gpu
    if any(t.most > 0 and t.cpu >= cpu and t.gpu >= gpu for t in types):
        return None
    held = ", ".join(f"{t.name} ({t.cpu:g} CPU, {t.gpu:g} GPU, at most {t.most})" for t in types)
    return (
        f"no node type can ever run a trial that asks for {cpu:g} CPU and {gpu:g} GPU "
        f"(`resources` in the spec). Node types: {held}. Lower the request, or add a type"
    )
