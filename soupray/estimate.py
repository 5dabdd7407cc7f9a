"""What a sweep and its soups will cost, before anything is done (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from soupray.data.cache import open_data
from soupray.plan import plan
from soupray.recipes.lines import GRID
from soupray.recipes.wise_ft import ALPHAS
from soupray.records import Record
from soupray.reporting.plots import LINE_GRID
from soupray.spec import SweepSpec
from soupray.subject import ProbeInit, TrainedInit
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


def dry_run(spec: SweepSpec, home: Path) -> DryRun:
    """Counts for `--dry-run`: forward passes in samples, bytes for weights and logits.

    Decodes the data and builds the model's shapes on this machine; nothing is stored.
    """
    data = open_data(spec, home / "cache" / "data")
    weights = sum(
        t.numel() * t.element_size() for t in task_of(spec.task).model().state_dict().values()
    )
    held_out, k = data.split("held_out").size, spec.search.trials
    reported = sum(s.size for s in data.splits if s.role not in ("train", "held_out"))
    epochs = sum(int(t.hparams["epochs"]) for t in plan(spec))
    passes = 1 if spec.search.train == "head" else epochs  # features are computed once
    init_epochs = int(isinstance(spec.init, ProbeInit))
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
        training_samples=(passes + init_epochs) * data.split("train").size,
        held_out_samples=(passes + k) * held_out,
        soup_held_out_samples=(decided + scored) * held_out,
        reported_samples=models * reported,
        stored_bytes=math.ceil(k * (weights + logits) + weights),
        soup_stored_bytes=weights + scored * logits + models * reported * row,
    )
