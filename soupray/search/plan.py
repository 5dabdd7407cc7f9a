"""The plan of a sweep; it depends only on the spec, not on which trials finish or fail."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import msgspec

from soupray.core.hyperparameters import LATER, TABLE
from soupray.core.records import Basis, Record
from soupray.core.trials import Method, Trial, key_of
from soupray.spec.space import Dimension, Space, Value
from soupray.spec.sweep_spec import SweepSpec

CODE_VERSION = "2"
"""Version of the code that turns a trial's record into weights.

Increase it when training changes, so that results of older code are not reused.
"""

MANY_WORKERS = "2+ddp"
"""The same for trials of three workers and more, whose gradients are now added up in another order,
which changes low bits. The sum of two has one order only: their bytes and keys are as before."""


DEFAULTS = {row.name: row.default for row in TABLE}


class PlannedTrial(Record, frozen=True, kw_only=True):
    """A trial of the plan: its index, hyperparameters and seed."""

    index: int
    hparams: dict[str, Value]
    seed: int


def plan(spec: SweepSpec) -> list[PlannedTrial]:
    """Return all trials of `spec` in order.

    Each random point has its own generator, seeded by (seed of the sweep, index), so a longer plan
    starts with the shorter one. QMC points are a scrambled Sobol sequence, which has the same
    property. The points of an adaptive search are not known in advance: a plan shows random points
    in their place, with which TPE starts.
    """
    draw = _qmc_points if spec.search.sampler == "qmc" else random_points
    points = draw(spec.seed, spec.search.trials, len(dimensions_of(spec)))
    return [planned_at(spec, index, point) for index, point in enumerate(points)]


def is_adaptive(spec: SweepSpec) -> bool:
    """Whether points are suggested while the sweep runs, by TPE or by a sampler of the user's."""
    return spec.search.sampler not in ("random", "qmc")


def dimensions_of(spec: SweepSpec) -> list[str]:
    """Return the hyperparameters that differ between trials: the coordinates of a point."""
    space = spec.search.space
    return [n for n in Space.model_fields if isinstance(getattr(space, n), Dimension)]


def planned_at(spec: SweepSpec, index: int, point: Sequence[float]) -> PlannedTrial:
    """Return the planned trial at a point of the search space.

    Args:
        spec: the spec of the sweep.
        index: index of the trial, from 0.
        point: one number in [0, 1) for each dimension.
    """
    coordinates = dict(zip(dimensions_of(spec), point, strict=True))
    hparams: dict[str, Value] = {}
    for name in Space.model_fields:
        entry = getattr(spec.search.space, name)
        if name in coordinates:
            hparams[name] = entry.at(coordinates[name])
        elif name not in LATER or entry != DEFAULTS[name]:
            hparams[name] = entry
    return PlannedTrial(index=index, hparams=hparams, seed=_key(spec.seed, index) % 2**31)


def trials_of(spec: SweepSpec, basis: Basis) -> list[Trial]:
    """Return the plan as trials with keys; a key depends on the digests of the data and theta_0."""
    return as_trials(spec, basis, plan(spec))


def as_trials(spec: SweepSpec, basis: Basis, points: Sequence[PlannedTrial]) -> list[Trial]:
    """Return `points` as trials with their keys."""
    data = tuple(basis.split(name).digest for name in ("train", "held_out"))
    method: Method = "lp" if spec.search.train == "head" else "ft"
    setting, training = spec.setting, spec.training.record()
    trials = []
    for planned in points:
        trial = Trial(
            key="",
            index=planned.index,
            sweep=spec.name,
            method=method,
            hparams=planned.hparams,
            seed=planned.seed,
            init=basis.init.sha256,
            data=data,
            code=CODE_VERSION if training.workers <= 2 else MANY_WORKERS,
            setting=setting,
            training=training,
            metric=msgspec.UNSET if spec.metric == "accuracy" else spec.metric,
            loss=spec.own_loss or msgspec.UNSET,
            augmentation=spec.own_augmentation or msgspec.UNSET,
            class_weights=spec.loss_weights or msgspec.UNSET,
            teacher=basis.teacher.logits.sha256 if basis.teacher else msgspec.UNSET,
        )
        trials.append(msgspec.structs.replace(trial, key=key_of(trial)))
    return trials


def _key(*parts: object) -> int:
    """Return a 256-bit integer that depends only on `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest())


def random_points(seed: int, count: int, dimensions: int) -> list[list[float]]:
    """Return random points, each from its own generator.

    Args:
        seed: seed of the sweep.
        count: number of points.
        dimensions: number of coordinates of a point.

    Returns:
        `count` points with coordinates in [0, 1).
    """
    # Python guarantees that Random.random() of a seeded generator never changes.
    generators = [random.Random(_key("point", seed, i)) for i in range(count)]  # noqa: S311
    return [[generator.random() for _ in range(dimensions)] for generator in generators]


def _qmc_points(seed: int, count: int, dimensions: int) -> list[list[float]]:
    # Optuna's QMCSampler uses the same SciPy sequence, but only after a first trial is complete:
    # its plan would depend on which trial finishes first.
    import numpy as np
    from scipy.stats import qmc

    if dimensions == 0:
        return [[] for _ in range(count)]
    sobol = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    points: list[list[float]] = sobol.random_base2(max(0, (count - 1).bit_length())).tolist()
    return points[:count]
