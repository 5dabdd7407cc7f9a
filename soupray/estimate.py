"""What a sweep and its soups will cost, before anything is done (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from soupray.data.cache import planned_sizes
from soupray.plan import plan
from soupray.recipes.lines import GRID
from soupray.recipes.wise_ft import ALPHAS
from soupray.records import Record
from soupray.reporting.plots import LINE_GRID
from soupray.spec import SweepSpec
from soupray.subject import TrainedInit
from soupray.tasks import task_of


class DryRun(Record, frozen=True, kw_only=True):
    """What a sweep and its soups will do."""

    trials: int
    epochs: int
    training_samples: int
    held_out_samples: int
    soup_held_out_samples: int
    reported_samples: int
    stored_bytes: int
    soup_stored_bytes: int


class _Cost(NamedTuple):
    """Candidates of a recipe, at most: decided by counts, scored in full, and reported on.

    Early rejection makes the first cheaper. Logits are stored of the other two.
    """

    decided: int = 0
    scored: int = 0
    models: int = 0


_LINES = 2
"""Recipes that start from another model start from the best single one and the best soup."""

_SOUP: dict[str, Callable[[int], _Cost]] = {
    "anchor": lambda k: _Cost(scored=1, models=1),
    "uniform": lambda k: _Cost(scored=1, models=1),
    "greedy": lambda k: _Cost(decided=k - 1, scored=1, models=1),
    "replacement": lambda k: _Cost(decided=3 * k, scored=1, models=1),
    "pruned": lambda k: _Cost(decided=k, scored=2, models=1),
    "learned": lambda k: _Cost(decided=5, scored=1, models=1),
    "learned_by_layer": lambda k: _Cost(decided=5, scored=1, models=1),
    "fisher": lambda k: _Cost(scored=1, models=1),
    "model_stock": lambda k: _Cost(scored=1, models=1),
    "wise_ft": lambda k: _Cost(scored=_LINES * (len(ALPHAS) - 2), models=_LINES * LINE_GRID),
    "lines": lambda k: _Cost(scored=_LINES * GRID, models=_LINES),
    "vrf": lambda k: _Cost(decided=_LINES * 3),
}
"""Ensembles need no forward pass that is not here. Learned: five epochs, forward and backward."""


def dry_run(spec: SweepSpec) -> DryRun:
    """Counts for `--dry-run`: forward passes in samples, bytes for weights and logits.

    Lists the data and builds the model's shapes on this machine; nothing is decoded or stored.
    """
    sizes = planned_sizes(spec)
    size = {name: count for name, _, count in sizes}
    weights = sum(
        t.numel() * t.element_size() for t in task_of(spec.task).model().state_dict().values()
    )
    held_out, k = size["held_out"], spec.search.trials
    reported = sum(count for _, role, count in sizes if role not in ("train", "held_out"))
    epochs = sum(int(t.hparams["epochs"]) for t in plan(spec))
    init_epochs = 0
    if isinstance(spec.init, TrainedInit):
        init_epochs = spec.init.trained.numbers()["epochs"]
    soup = [_SOUP[name](k) for name in ("anchor", *spec.recipes) if name in _SOUP]
    decided, scored = sum(c.decided for c in soup), sum(c.scored for c in soup)
    models = k + sum(c.models for c in soup)
    row = len(spec.task.classes) * 4
    logits = held_out * row
    return DryRun(
        trials=k,
        epochs=epochs,
        training_samples=(epochs + init_epochs) * size["train"],
        held_out_samples=(epochs + k) * held_out,
        soup_held_out_samples=(decided + scored) * held_out,
        reported_samples=models * reported,
        stored_bytes=math.ceil(k * (weights + logits) + weights),
        soup_stored_bytes=weights + scored * logits + models * reported * row,
    )
