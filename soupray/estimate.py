"""What a sweep and its soups will cost, before anything is done (`--dry-run`)."""

from __future__ import annotations

import math
from pathlib import Path

from soupray.data.cache import open_data
from soupray.plan import plan
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
    init_epochs = 0
    if isinstance(spec.init, TrainedInit):
        init_epochs = spec.init.trained.numbers()["epochs"]
    lines = 2 if "wise_ft" in spec.recipes else 0
    candidates = 1 + k * ("greedy" in spec.recipes) + 1 + lines * len(ALPHAS)
    models = k + 4 + lines * (LINE_GRID + 1)
    logits = held_out * len(spec.task.classes) * 4
    return DryRun(
        trials=k,
        epochs=epochs,
        training_samples=(epochs + init_epochs) * data.split("train").size,
        held_out_samples=(epochs + k) * held_out,
        soup_held_out_samples=candidates * held_out,
        reported_samples=models * reported,
        stored_bytes=math.ceil(k * (weights + logits) + 2 * weights),
    )
