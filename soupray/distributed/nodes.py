"""What a cluster can grow to: its node types, and whether a trial fits on one of them."""

from __future__ import annotations

from typing import NamedTuple

from soupray.spec.sweep_spec import Resources, SweepSpec


class NodeType(NamedTuple):
    """A kind of node: what one holds, and how many there may be. The head's own type has none."""

    name: str
    cpu: float
    gpu: float
    most: int


class Checked(NamedTuple):
    """What is wrong, and what the autoscaler may start, as far as it was read: `most` nodes."""

    problems: list[str]
    types: list[NodeType]
    most: int


def room(resources: Resources, cpu: float, gpu: float) -> int:
    """How many trials, or workers of one, that reserve `resources` each a node can hold."""
    fits = [cpu / resources.cpu]
    if resources.gpu:
        fits.append(gpu / resources.gpu)
    return int(min(fits) + 1e-9)  # 0.6 / 0.2 is 2.9999999999999996


def wanted(resources: Resources, workers: int) -> str:
    """A trial of so many workers, in words."""
    asked = f"{resources.cpu:g} CPU and {resources.gpu:g} GPU"
    if workers == 1:
        return f"a trial that asks for {asked} (`resources` in the spec)"
    return (
        f"a trial of {workers} workers that ask for {asked} each (`training.workers` and "
        "`resources` in the spec)"
    )


def why_never(spec: SweepSpec, may: Checked) -> str | None:
    """Why the nodes that may be started will never run a trial of `spec`; None if they can.

    A worker is on one node; those of one trial may be on several.
    """
    resources, workers = spec.resources, spec.training.workers
    # No more nodes of a type count than there are workers: it may have no limit of its own.
    rooms = [room(resources, t.cpu, t.gpu) for t in may.types for _ in range(min(t.most, workers))]
    if sum(sorted(rooms, reverse=True)[: may.most]) >= workers:
        return None
    held = ", ".join(
        f"{t.name} ({t.cpu:g} CPU, {t.gpu:g} GPU, at most {t.most})" for t in may.types
    )
    none = "no node type" if workers == 1 else "not even all nodes together"
    return (
        f"{none} can ever run {wanted(resources, workers)}. Node types: {held}. Lower the "
        "request, or add a type"
    )
