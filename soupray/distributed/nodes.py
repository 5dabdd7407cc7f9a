"""The node types of a cluster, and whether a trial fits on them."""

from __future__ import annotations

from typing import NamedTuple

from soupray.spec.resources import Resources
from soupray.spec.sweep_spec import SweepSpec


class NodeType(NamedTuple):
    """A type of node: its CPUs and GPUs, and the largest number of such nodes (0 for the head)."""

    name: str
    cpu: float
    gpu: float
    most: int


class Checked(NamedTuple):
    """The problems of a cluster file, its node types, and the largest number of nodes."""

    problems: list[str]
    types: list[NodeType]
    most: int


def room(resources: Resources, cpu: float, gpu: float) -> int:
    """Return how many trials, or workers of a trial, fit on one node.

    Args:
        resources: what each of them reserves.
        cpu: CPUs of the node.
        gpu: GPUs of the node.
    """
    fits = [cpu / resources.cpu]
    if resources.gpu:
        fits.append(gpu / resources.gpu)
    return int(min(fits) + 1e-9)  # 0.6 / 0.2 is 2.9999999999999996


def wanted(resources: Resources, workers: int) -> str:
    """Return the resources of a trial with this number of workers, in words."""
    asked = f"{resources.cpu:g} CPU and {resources.gpu:g} GPU"
    if workers == 1:
        return f"a trial that asks for {asked} (`resources` in the spec)"
    return (
        f"a trial of {workers} workers that ask for {asked} each (`training.workers` and "
        "`resources` in the spec)"
    )


def why_never(spec: SweepSpec, may: Checked) -> str | None:
    """Return why the cluster can never run a trial of `spec`; None if it can.

    A worker runs on one node; the workers of one trial may run on several.

    Args:
        spec: the sweep.
        may: the checked cluster file.
    """
    resources, workers = spec.resources, spec.training.workers
    # At most one node per worker is needed; this bounds the list where a type has no limit.
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
