"""The plan of a sweep: a pure function of its spec, whatever completes first and whatever fails."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import msgspec

from soupray.core.records import Basis, Method, Record, Trial, digest
from soupray.spec.space import Dimension, Space, Value
from soupray.spec.sweep_spec import SweepSpec

CODE_VERSION = "2"
"""Of everything that turns a trial's record into weights. Raise it when training changes, so
that trials of older code are not taken for trials of this one."""


class PlannedTrial(Record, frozen=True, kw_only=True):
    """A point of the plan: resolved hyperparameters and a seed."""

    index: int
    hparams: dict[str, Value]
    seed: int


def plan(spec: SweepSpec) -> list[PlannedTrial]:
    """All trials of `spec`, in order.

    Each random point has a generator of its own, keyed by (sweep seed, index): a longer plan
    starts with the shorter one. QMC points are one scrambled Sobol sequence, which has the same
    property.
    """
    draw = _POINTS[spec.search.sampler]
    points = draw(spec.seed, spec.search.trials, len(dimensions_of(spec)))
    return [planned_at(spec, index, point) for index, point in enumerate(points)]


def dimensions_of(spec: SweepSpec) -> list[str]:
    """Hyperparameters that differ from trial to trial: the coordinates of a point."""
    space = spec.search.space
    return [n for n in Space.model_fields if isinstance(getattr(space, n), Dimension)]


def planned_at(spec: SweepSpec, index: int, point: Sequence[float]) -> PlannedTrial:
    """Trial `index` at `point`, a number in [0, 1) for each dimension."""
    coordinates = dict(zip(dimensions_of(spec), point, strict=True))
    hparams: dict[str, Value] = {}
    for name in Space.model_fields:
        entry = getattr(spec.search.space, name)
        hparams[name] = entry.at(coordinates[name]) if name in coordinates else entry
    return PlannedTrial(index=index, hparams=hparams, seed=_key(spec.seed, index) % 2**31)


def trials_of(spec: SweepSpec, basis: Basis) -> list[Trial]:
    """The plan as trials with their keys, which need the digests of data and init."""
    return as_trials(spec, basis, plan(spec))


def as_trials(spec: SweepSpec, basis: Basis, points: Sequence[PlannedTrial]) -> list[Trial]:
    """`points` as trials with their keys."""
    data = tuple(basis.split(name).digest for name in ("train", "held_out"))
    method: Method = "lp" if spec.search.train == "head" else "ft"
    trials = []
    for planned in points:
        shaping = {
            "hparams": planned.hparams,
            "seed": planned.seed,
            "method": method,
            "init": basis.init.sha256,
            "data": data,
            "code": CODE_VERSION,
            "setting": spec.setting,
            "training": spec.training.record(),
        }
        if spec.metric != "accuracy":
            shaping["metric"] = spec.metric
        trials.append(
            Trial(
                key=digest(shaping)[:16],
                index=planned.index,
                sweep=spec.name,
                method=method,
                hparams=planned.hparams,
                seed=planned.seed,
                init=basis.init.sha256,
                data=data,
                code=CODE_VERSION,
                setting=spec.setting,
                training=spec.training.record(),
                metric=msgspec.UNSET if spec.metric == "accuracy" else spec.metric,
            )
        )
    return trials


def _key(*parts: object) -> int:
    """A 256-bit integer that depends on nothing but `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest())


def random_points(seed: int, count: int, dimensions: int) -> list[list[float]]:
    """`count` points, each with a generator of its own."""
    # Random.random() of a seeded generator is the one method that Python promises never to change.
    generators = [random.Random(_key("point", seed, i)) for i in range(count)]  # noqa: S311
    return [[generator.random() for _ in range(dimensions)] for generator in generators]


def _qmc_points(seed: int, count: int, dimensions: int) -> list[list[float]]:
    # SciPy's Sobol sequence is what Optuna's QMCSampler wraps; the sampler itself waits for a
    # completed trial before it uses it, so that its plan would depend on what finishes first.
    import numpy as np
    from scipy.stats import qmc

    if dimensions == 0:
        return [[] for _ in range(count)]
    sobol = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    points: list[list[float]] = sobol.random_base2(max(0, (count - 1).bit_length())).tolist()
    return points[:count]


_POINTS = {"random": random_points, "qmc": _qmc_points, "tpe": random_points}
"""TPE's first points are random; of the others a plan shows random ones in their place."""
