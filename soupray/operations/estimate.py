"""What a sweep and its soups will cost, before anything is done (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from soupray.core.records import Record
from soupray.data.cache import planned_sizes
from soupray.evaluation.live_model import STATISTICS_SAMPLES, batch_norms
from soupray.recipes import Option
from soupray.recipes.fisher import SAMPLES
from soupray.recipes.learned import BATCH_SIZE, EPOCHS
from soupray.recipes.lines import GRID
from soupray.recipes.replacement import PASSES
from soupray.recipes.vrf import NEIGHBOURS
from soupray.recipes.wise_ft import ALPHAS
from soupray.reporting.plots import LINE_GRID
from soupray.search.plan import plan
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import ProbeInit, TrainedInit
from soupray.tasks import task_of


class DryRun(Record, frozen=True, kw_only=True):
    """What a sweep and its soups will do, in samples and bytes.

    `soup_train_samples` are forward passes: those that recipes ask for, and those for the BatchNorm
    statistics of soups, each estimated once (of several actors that meet a soup at the same time,
    each estimates them).
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


class _Cost(NamedTuple):
    """What a recipe costs at most.

    Candidates that are decided by counts, scored in full, and reported on: early rejection makes
    the first cheaper, logits are stored of the other two. Passes over all training data, with
    features of some of it stored; single training samples; further files as large as a model;
    soups of several models, each of which has BatchNorm statistics of its own.
    """

    decided: int = 0
    scored: int = 0
    models: int = 0
    train_passes: int = 0
    train_samples: int = 0
    files: int = 0
    mixtures: int = 0


_LINES = 2
"""Recipes that start from another model start from the best single one and the best soup."""

Options = dict[str, Option]


class _Pool(NamedTuple):
    """What a recipe has before it: ingredients and held-out samples."""

    k: int
    held_out: int


def _learned(pool: _Pool, options: Options) -> _Cost:
    epochs = int(options.get("epochs", EPOCHS))  # type: ignore[arg-type]
    batch_size = int(options.get("batch_size", BATCH_SIZE))  # type: ignore[arg-type]
    steps = epochs * -(-pool.held_out // batch_size)  # each at a soup of its own
    return _Cost(decided=epochs, scored=1, models=1, mixtures=steps + 1)


def _fisher(pool: _Pool, options: Options) -> _Cost:
    samples = int(options.get("samples", SAMPLES))  # type: ignore[arg-type]
    return _Cost(scored=1, models=1, train_samples=pool.k * samples, files=pool.k, mixtures=1)


def _replacement(pool: _Pool, options: Options) -> _Cost:
    decided = int(options.get("passes", PASSES)) * pool.k  # type: ignore[arg-type]
    return _Cost(decided=decided, scored=1, models=1, mixtures=decided)


def _wise_ft(pool: _Pool, options: Options) -> _Cost:
    alphas: Any = options.get("alphas", ALPHAS)
    inner = sum(0 < a < 1 for a in alphas)  # the end points are there already
    lines = 1 if "theta_1" in options else _LINES
    scored, models = lines * inner, lines * LINE_GRID
    return _Cost(scored=scored, models=models, mixtures=scored + models - lines)


def _greedy(pool: _Pool, options: Options) -> _Cost:
    decided = max(pool.k - 1, 0)
    return _Cost(decided=decided, scored=1, models=1, mixtures=decided)


_SOUP: dict[str, Callable[[_Pool, Options], _Cost]] = {
    "anchor": lambda pool, options: _Cost(scored=1, models=1),
    "uniform": lambda pool, options: _Cost(scored=1, models=1, mixtures=1),
    "greedy": _greedy,
    "replacement": _replacement,
    "pruned": lambda pool, options: _Cost(decided=pool.k, scored=2, models=1, mixtures=pool.k + 1),
    "learned": _learned,
    "learned_by_layer": _learned,
    "fisher": _fisher,
    "model_stock": lambda pool, options: _Cost(scored=1, models=1, mixtures=1),
    "wise_ft": _wise_ft,
    "lines": lambda pool, options: _Cost(
        scored=_LINES * GRID, models=_LINES, mixtures=_LINES * GRID
    ),
    # Answers of the anchor and of each start; then features of what one got right, one wrong.
    "vrf": lambda pool, options: _Cost(
        decided=_LINES * len(NEIGHBOURS), train_passes=1 + 2 * _LINES
    ),
}
"""Ensembles need no forward pass that is not here. Learned: five epochs, forward and backward."""


def dry_run(spec: SweepSpec) -> DryRun:
    """Counts for `--dry-run`: forward passes in samples, bytes for weights and logits.

    Lists the data and builds the model's shapes on this machine; nothing is decoded or stored.
    """
    sizes = planned_sizes(spec)
    size = {name: count for name, _, count in sizes}
    model = task_of(spec.task).model()
    state = model.state_dict()
    weights = sum(t.numel() * t.element_size() for t in state.values())
    train, held_out, k = size["train"], size["held_out"], spec.search.trials
    reported = sum(count for _, role, count in sizes if role not in ("train", "held_out"))
    epochs = sum(int(t.hparams["epochs"]) for t in plan(spec))
    passes = 1 if spec.search.train == "head" else epochs  # features are computed once
    init_epochs = int(isinstance(spec.init, ProbeInit))
    if isinstance(spec.init, TrainedInit):
        init_epochs = spec.init.trained.numbers()["epochs"]
    chosen = {"anchor": {}, **spec.recipes}
    soup = [
        _SOUP[name](_Pool(k, held_out), options)
        for name, options in chosen.items()
        if name in _SOUP
    ]
    total = _Cost(*(sum(column) for column in zip(*soup, strict=True)))
    models = k + total.models
    # Trials of the head alone all have theta_0's.
    moves = spec.search.train != "head" and any(True for _ in batch_norms(model))
    statistics = total.mixtures * min(STATISTICS_SAMPLES, train) if moves else 0
    row = len(spec.task.classes) * 4
    logits = held_out * row
    features = _LINES * train * state["head.weight"].shape[1] * 4 if total.train_passes else 0
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
    )
