"""Estimate the cost of a sweep and its soups before anything is run (`--dry-run`)."""

from __future__ import annotations

import logging
import math
from typing import Any

from soupray.core.ports import Task
from soupray.core.records import Record
from soupray.data.cache import PlannedClass, planned
from soupray.evaluation.live_model import STATISTICS_SAMPLES, batch_norms
from soupray.recipes import total_cost
from soupray.recipes.baselines import ANCHOR, UPDATE_BN
from soupray.recipes.recipe import PoolSize
from soupray.recipes.starts import LINES
from soupray.search.plan import plan
from soupray.spec.data import ImagesSpec
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import ProbeInit, TrainedInit, TransformersSpec
from soupray.tasks import task_of

log = logging.getLogger(__name__)


class Inputs(Record, frozen=True, kw_only=True):
    """How images become inputs of the model.

    `decoded` is the side in pixels to which evaluated image files are brought by `interpolation`,
    `resize` and `crop`; None for data that are arrays. Then they are resized to `size`, if it is
    another one, and normalised by `mean` and `std`.
    """

    size: tuple[int, int]
    decoded: int | None
    mean: list[float]
    std: list[float]
    interpolation: str
    resize: str
    crop: float


def inputs_of(spec: SweepSpec, task: Task) -> Inputs | None:
    """Return how images become inputs of the model; None for texts.

    Args:
        spec: of the sweep.
        task: made of `spec.task`.
    """
    if isinstance(spec.task, TransformersSpec):
        return None
    pixels: Any = task
    return Inputs(
        size=pixels.pixels.size,
        decoded=spec.data.size if isinstance(spec.data, ImagesSpec) else None,
        mean=pixels.pixels.mean,
        std=pixels.pixels.std,
        interpolation=spec.task.interpolation,
        resize=spec.task.resize,
        crop=spec.task.crop,
    )


class DryRun(Record, frozen=True, kw_only=True):
    """The cost of a sweep and its soups, in samples (forward passes) and bytes.

    `soup_train_samples` are forward passes of training samples: those that recipes need, and those
    for estimated BatchNorm statistics. The statistics of each model are counted once; if several
    actors evaluate a model at the same time, each one estimates them. `classes` has the name that
    the data give to each class, `inputs` the preprocessing of images; `notes` say what of the data
    is left out.
    """

    trials: int
    epochs: int
    training_samples: int
    held_out_samples: int
    soup_held_out_samples: int
    soup_train_samples: int
    reported_samples: int
    stored_bytes: int
    soup_stored_bytes: int
    classes: list[PlannedClass]
    inputs: Inputs | None
    notes: tuple[str, ...]


def dry_run(spec: SweepSpec) -> DryRun:
    """Estimate the cost of a sweep and its soups.

    The data are listed and the model is built on this machine; nothing is decoded or stored.
    """
    sizes, classes, notes = planned(spec)
    for note in notes:
        log.warning(f"{note}.")
    size = {name: count for name, _, count in sizes}
    task = task_of(spec.task)
    model = task.model()
    state = model.state_dict()
    weights = sum(t.numel() * t.element_size() for t in state.values())
    train, held_out, k = size["train"], size["held_out"], spec.search.trials
    reported = sum(count for _, role, count in sizes if role not in ("train", "held_out"))
    epochs = sum(int(t.hparams["epochs"]) for t in plan(spec))
    passes = 1 if spec.search.train == "head" else epochs  # features are computed once
    init_epochs = int(isinstance(spec.init, ProbeInit))
    if isinstance(spec.init, TrainedInit):
        init_epochs = spec.init.trained.numbers()["epochs"]
    # Trials of the head alone all have the BatchNorm statistics of theta_0.
    moves = spec.search.train != "head" and any(True for _ in batch_norms(model))
    always = [ANCHOR.name, *([UPDATE_BN.name] if moves else [])]
    chosen: dict[str, Any] = {**{name: {} for name in always}, **spec.recipes}
    total = total_cost(PoolSize(k, held_out), chosen)
    models = k + total.models
    statistics = total.mixtures * min(STATISTICS_SAMPLES, train) if moves else 0
    row = len(spec.task.classes) * 4
    logits = held_out * row
    features = LINES * train * state["head.weight"].shape[1] * 4 if total.train_passes else 0
    return DryRun(
        trials=k,
        epochs=epochs,
        training_samples=(passes + init_epochs) * train,
        held_out_samples=(passes + k) * held_out,
        soup_held_out_samples=(total.decided + total.scored) * held_out,
        soup_train_samples=total.train_passes * train + total.train_samples + statistics,
        reported_samples=models * reported,
        stored_bytes=math.ceil(k * (weights + logits) + weights),
        soup_stored_bytes=weights * (1 + total.files)
        + total.scored * logits
        + models * reported * row
        + features,
        classes=classes,
        inputs=inputs_of(spec, task),
        notes=notes,
    )
