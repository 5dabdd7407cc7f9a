"""Estimate the cost of a sweep and its soups before anything is run (`--dry-run`)."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

from soupray.core.errors import ConfigError
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
from soupray.spec.plugged_in import load_code
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import CaptionsSpec
from soupray.spec.task import (
    FileInit,
    OpenClipSpec,
    ProbeInit,
    TimmSpec,
    TorchSpec,
    TrainedInit,
    TransformersSpec,
)
from soupray.tasks import file_digests, task_of
from soupray.tasks.files import clip_folder, local_path
from soupray.tasks.foreign import load_foreign

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
        decoded=spec.data.size if isinstance(spec.data, ImagesSpec | CaptionsSpec) else None,
        mean=pixels.pixels.mean,
        std=pixels.pixels.std,
        interpolation=spec.task.interpolation,
        resize=spec.task.resize,
        crop=spec.task.crop,
    )


class WeightFile(Record, frozen=True, kw_only=True):
    """A file of weights that a spec names: where, path, bytes and SHA-256 (hex)."""

    field: str
    path: str
    size_bytes: int
    sha256: str


ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".pkl")
"""Endings of files of weights."""


def weight_files(spec: SweepSpec) -> tuple[WeightFile, ...]:
    """Return the local files of weights that a spec names, after they were read.

    Args:
        spec: the sweep.

    Raises:
        ConfigError: a file is missing or cannot be read.
        CheckpointError: a file that soupray itself reads holds no weights.
    """
    named: list[tuple[str, Path]] = []
    task = spec.task
    if not isinstance(task, TransformersSpec) and task.pretrained:
        path = local_path(task.pretrained)
        named += [("task.pretrained", path)] if path.is_file() else []
        if not path.is_file() and path.suffix in ENDINGS:
            raise ConfigError(
                f"task.pretrained = {task.pretrained!r}: there is no file {path}. Correct the "
                "path, or name a tag of the library."
            )
    if isinstance(task, OpenClipSpec):
        folder = clip_folder(task.model)
    else:
        folder = local_path(task.model) if isinstance(task, TransformersSpec) else None
    if folder is not None:
        named += [("task.model", path) for path in _weights_in(folder)]
    if isinstance(spec.init, FileInit):
        path = local_path(spec.init.file)
        file_digests(spec.init.file)  # raises ConfigError if it is missing
        named += [("init.file", one) for one in (_weights_in(path) if path.is_dir() else [path])]
        load_foreign(path)
    for field, path in named:
        if field == "task.pretrained" and isinstance(task, TimmSpec | TorchSpec):
            load_foreign(path)
    return tuple(_weight_file(field, path) for field, path in named)


def _weights_in(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if path.suffix in ENDINGS and path.is_file())


def _weight_file(field: str, path: Path) -> WeightFile:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}.") from error
    return WeightFile(field=field, path=str(path), size_bytes=size, sha256=sha256)


def _size_notes(inputs: Inputs | None) -> tuple[str, ...]:
    """Return what is to be said where `data.size` is not the size that the model reads."""
    if inputs is None or inputs.decoded is None:
        return ()
    height, width = inputs.size
    if (inputs.decoded, inputs.decoded) == (height, width):
        return ()
    how = "enlarged" if inputs.decoded < height else "made smaller"
    return (
        f"data.size = {inputs.decoded}, but the model reads {height} x {width} pixels: every image "
        f"is decoded to one size and then {how}. Write data.size: {height}, or leave it out",
    )


class DryRun(Record, frozen=True, kw_only=True):
    """The cost of a sweep and its soups, in samples (forward passes) and bytes.

    `soup_train_samples` are forward passes of training samples: those that recipes need, and those
    for estimated BatchNorm statistics. The statistics of each model are counted once; if several
    actors evaluate a model at the same time, each one estimates them. `classes` has the name that
    the data give to each class, `inputs` the preprocessing of images, `weights` the local files of
    weights; `notes` say what of the data is left out, and what is resized twice.
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
    weights: tuple[WeightFile, ...] = ()


def _outputs(spec: SweepSpec, task: Task) -> int:
    """The numbers that are stored for a sample: one a class, or two embeddings."""
    width: int = getattr(task, "width", 0)
    return 2 * width if spec.objective == "retrieval" else len(spec.task.classes)


def _init_epochs(spec: SweepSpec) -> int:
    """Return how many times the making of theta_0 sees the training data."""
    if isinstance(spec.init, TrainedInit):
        return int(spec.init.trained.numbers()["epochs"])
    return int(isinstance(spec.init, ProbeInit))


def dry_run(spec: SweepSpec) -> DryRun:
    """Estimate the cost of a sweep and its soups.

    The data are listed, the files of weights are read and the model is built on this machine;
    nothing is decoded or stored. Raises ConfigError, CheckpointError.
    """
    files = weight_files(spec)
    load_code(spec.functions)
    sizes, classes, notes = planned(spec)
    task = task_of(spec.task)
    inputs = inputs_of(spec, task)
    notes += _size_notes(inputs)
    for note in notes:
        log.warning(f"{note}.")
    model = task.model()
    state = model.state_dict()
    weights = sum(t.numel() * t.element_size() for t in state.values())
    k = spec.search.trials
    train, held_out = (sum(n for name, _, n in sizes if name == s) for s in ("train", "held_out"))
    reported = sum(count for _, role, count in sizes if role in ("rank", "test", "shift"))
    epochs = sum(int(t.hparams["epochs"]) for t in plan(spec))
    passes = 1 if spec.search.train == "head" else epochs  # features are computed once
    # Trials of the head alone all have the BatchNorm statistics of theta_0.
    moves = spec.search.train != "head" and any(True for _ in batch_norms(model))
    always: dict[str, Any] = {ANCHOR.name: {}} | ({UPDATE_BN.name: {}} if moves else {})
    pool = PoolSize(k, held_out, len(spec.data.proxy_shifts))
    total = total_cost(pool, always | spec.recipes)
    models = k + total.models
    statistics = total.mixtures * min(STATISTICS_SAMPLES, train) if moves else 0
    row = _outputs(spec, task) * 4
    logits = held_out * row
    features = LINES * train * state["head.weight"].shape[1] * 4 if total.train_passes else 0
    return DryRun(
        trials=k,
        epochs=epochs,
        training_samples=(passes + _init_epochs(spec)) * train,
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
        inputs=inputs,
        notes=notes,
        weights=files,
    )
