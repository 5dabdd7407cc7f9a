"""A metric of the user: a function that a spec names, called and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Float64, Labels, Logits
from soupray.core.errors import EvaluationError
from soupray.core.plugins import METRICS, load, raised
from soupray.core.records import UNITS, Split

FEW = 8
"""The number of samples, at most, for which a graded metric of the user is asked twice."""

PER_SAMPLE = "per_sample"
"""The attribute by which a metric of the user says that it is graded: it gives each sample a value
from 0 to 1, which follows from the outputs and the target of this sample alone."""


def graded_by(split: Split) -> str | UnsetType:
    """The name of the metric that gives each sample of a split a value. Unset: right or wrong."""
    if split.metric is not UNSET:
        own = load(METRICS, split.metric[0])
        if getattr(own.value, PER_SAMPLE, False):
            return split.metric[0]
    masks = split.objective is not UNSET and split.objective.kind == "segmentation"
    return "iou" if masks else UNSET


def own_metric(split: Split, logits: Logits, labels: Labels) -> Float64:
    """The metric of the user: a function of outputs and targets, of which more is better.

    A graded one is asked again for the first samples alone, as early rejection asks for some alone.

    Args:
        split: names the function, and says the digest of its code.
        logits: of a model, [N, C], with the classes of the split.
        labels: classes [N], or targets [N, C].

    Returns:
        A number, or one for each sample, [N].

    Raises:
        EvaluationError: the code here is other code, or the function raises, or returns something
            else than a finite number or one from 0 to 1 for each sample. Or it is graded, and
            returns one number, or another value for a sample alone.
    """
    assert split.metric is not UNSET
    named, code = split.metric
    found = load(METRICS, named)
    where = f"metric {named!r} ({found.origin})"
    if found.digest != code:
        raise EvaluationError(
            f"{where}: the code here has the digest {found.digest[:12]}, that of the sweep had "
            f"{code[:12]}. Start again, with the same code on all machines."
        )
    return values_of(found.value, f"{where}, on split {split.name}", logits, labels)


def values_of(metric: Callable[..., object], where: str, logits: Logits, labels: Labels) -> Float64:
    """What a metric says, checked. A graded one is asked again for the first samples alone.

    Args:
        metric: the function.
        where: names it in messages.
        logits: of a model, [N, C].
        labels: classes [N], or targets [N, C].

    Returns:
        A number, or one for each sample, [N].

    Raises:
        EvaluationError: see `own_metric`.
    """
    values = _called(metric, where, logits, labels)
    few = min(FEW, len(logits) // 2)
    if few and getattr(metric, PER_SAMPLE, False):
        _refuse_joint(values, _called(metric, where, logits[:few], labels[:few]), where)
    return values


def _called(metric: Callable[..., object], where: str, logits: Logits, labels: Labels) -> Float64:
    """What the function returns, checked. Raises EvaluationError."""
    on = f"{where} (n = {len(logits)}): it returned"
    try:
        # Copies: what the function changes in place is neither stored nor scored.
        said: Any = metric(np.array(logits), np.array(labels))
        array = np.asarray(said)
    except Exception as error:
        raise EvaluationError(f"{where} raised {raised(error)}.") from error
    if array.shape not in ((), (len(logits),)):
        raise EvaluationError(
            f"{on} an array {list(array.shape)}. Return a number, or one for each sample."
        )
    if array.dtype.kind not in "buif":
        form = f"{array.dtype} values" if isinstance(said, np.ndarray) else type(said).__name__
        raise EvaluationError(f"{on} {form}. Return a number, or one for each sample.")
    given = array.astype(np.float64)
    if not given.ndim and getattr(metric, PER_SAMPLE, False):
        raise EvaluationError(
            f"{on} one number, but {PER_SAMPLE} says that each sample has a value. Return "
            f"[{len(logits)}] values from 0 to 1, or leave {PER_SAMPLE} out."
        )
    if not np.isfinite(given).all():
        raise EvaluationError(f"{on} a value that is NaN or infinite.")
    if given.ndim and not ((given >= 0) & (given <= 1)).all():
        bad = int(np.flatnonzero((given < 0) | (given > 1))[0])
        raise EvaluationError(
            f"{on} {given[bad]:g} for sample {bad}. The value of a sample is from 0 to 1; return "
            "one number if the metric has no such bounds."
        )
    return given


def _refuse_joint(values: Float64, alone: Float64, where: str) -> None:
    """Raise EvaluationError if the first samples have other values among all than alone."""
    apart = np.abs(alone - values[: len(alone)])
    if apart.max() > 1 / UNITS:
        row = int(apart.argmax())
        raise EvaluationError(
            f"{where}: sample {row} has {values[row]:g} among all {len(values)} samples, and "
            f"{alone[row]:g} among {len(alone)}. Leave {PER_SAMPLE} out if the value of a sample "
            "depends on the others."
        )
