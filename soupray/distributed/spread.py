"""Spreads one function over the parts of many inputs, with Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data

from soupray.core.errors import EvaluationError, one_line
from soupray.distributed.cluster import attach, slots
from soupray.spec.sweep_spec import SweepSpec

BYTES = ("utf-8", "surrogatepass")
"""How texts travel: names of files need not be UTF-8, which Arrow's texts are."""

Work = Callable[[list[str]], bytes]
"""Answers a part of the inputs."""


class _Worker:
    """An actor of Ray Data. It makes what it works with once."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"answer": self._work([bytes(one).decode(*BYTES) for one in row["part"]])}


def spread(
    spec: SweepSpec, address: str, make: Callable[[], Work], given: Sequence[str], size: int
) -> Iterator[bytes]:
    """Answer all inputs, part by part, on actors that each reserve the spec's `resources`.

    Args:
        spec: of the model.
        address: of a Ray cluster; `local` for Ray on this machine.
        make: makes the function that answers a part; called once in each actor.
        given: the inputs.
        size: number of inputs in a part.

    Yields:
        The answers, in the order of the inputs.

    Raises:
        ConfigError: Ray does not answer, or the store is on one machine and the cluster is not.
        EvaluationError: an actor cannot start, or its function raised an exception.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
    with attach(address, spec):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # the command line has its own
        context.execution_options.preserve_order = True
        context.enable_operator_progress_bars = False
        coded = [one.encode(*BYTES) for one in given]
        parts = [{"part": coded[k : k + size]} for k in range(0, len(given), size)]
        many = min(len(parts), slots(spec.resources))
        answers = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            _Worker,
            fn_constructor_args=(make,),
            num_cpus=spec.resources.cpu,
            num_gpus=spec.resources.gpu or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=many),
        )
        try:
            for row in answers.iter_rows():
                yield row["answer"]
        except ray.exceptions.RayError as error:
            raise EvaluationError(
                f"an actor of Ray Data ended: {one_line(_first(error))}. Its log is in the folder "
                "of Ray's session, in logs/ray-data."
            ) from error


def _first(error: BaseException) -> BaseException:
    """Return the exception that caused all others."""
    before = error.__cause__ or getattr(error, "cause", None)
    return error if before is None else _first(before)
