"""Objectives beyond one class for each sample: which samples are right, losses and metrics.

Multi-label: targets are 0 or 1 for each class, [N, C], and an output is the logit of its class.
Regression: targets are numbers, [N, D], and an output is its target. In both, "right" is a yes or
no for each sample, so that all that is done with counts of right samples holds: early rejection,
McNemar's test, intervals. Segmentation: targets are 0 or 1 for each pixel, [N, P], and an output is
the logit of its pixel; a sample has a value from 0 to 1, see `graded`. Retrieval: a sample is right
among the others of its split, see `retrieval`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Float64, Logits, Mask
from soupray.core.records import UNITS, Objective
from soupray.maths.graded import dice, overlap
from soupray.maths.retrieval import places, retrieval_loss, retrieval_metrics

Targets = npt.NDArray[Any]
"""0 or 1, [N, C], of a multi-label task; float32 [N, D] of a regression; masks, 0 or 1, [N, P];
int64 [N, 2], the numbers of query and document, of retrieval."""


def margins_of(outputs: Logits, targets: Targets, objective: Objective) -> Float64:
    """For each sample, how far it is from being wrong, [N]: below 0 it is wrong, above 0 right.

    Multi-label: the smallest logit of a label, with the sign of its target; a logit of 0 says no.
    Regression: 1 minus the largest error in units of the tolerance; at 0 a sample is still right.
    Segmentation: its value, from 0 to 1: the lower, the more can be lost at it.

    Args:
        outputs: of a model, [N, C].
        targets: [N, C].
        objective: what they mean.

    Raises:
        ValueError: it is retrieval, where a sample alone is neither right nor wrong.
    """
    if objective.kind == "retrieval":
        raise ValueError("a query alone has no margin: it is right among the others of its split")
    if objective.kind == "segmentation":
        return overlap(outputs, targets) / UNITS
    wide = outputs.astype(np.float64)
    if objective.kind == "multi_label":
        signed: Float64 = np.where(targets == 1, wide, -wide).min(axis=1)
        return signed
    errors: Float64 = np.abs(wide - targets).max(axis=1)
    return 1 - errors / objective.tolerance if objective.tolerance else -errors


def right_of(outputs: Logits, targets: Targets, objective: Objective) -> Mask:
    """Which samples are right, [N]: all labels, all outputs within the tolerance, or the document.

    Args:
        outputs: of a model, [N, C]; for retrieval of a whole split.
        targets: [N, C].
        objective: what they mean.

    Raises:
        ValueError: it is segmentation, where a sample has a value.
    """
    if objective.kind == "retrieval":
        found: Mask = places(outputs, targets) <= first_of(objective)
        return found
    if objective.kind == "segmentation":
        raise ValueError("masks are not right or wrong: they have an intersection over union")
    if objective.kind == "multi_label":
        same: Mask = ((outputs > 0) == (targets == 1)).all(axis=1)
        return same
    errors: Float64 = np.abs(outputs.astype(np.float64) - targets).max(axis=1)
    return errors <= objective.tolerance


def mean_loss(outputs: Logits | Float64, targets: Targets, objective: Objective) -> float:
    """The mean over samples and outputs of the loss.

    Multi-label, segmentation: binary cross-entropy, in nats. Regression: the squared error.
    Retrieval: InfoNCE over the documents of the split.

    Args:
        outputs: of a model, [N, C].
        targets: [N, C].
        objective: what they mean.
    """
    if objective.kind == "retrieval":
        return retrieval_loss(outputs, targets, scale_of(objective))
    return float(_losses(outputs, targets, objective).mean())


def losses_of(outputs: Logits | Float64, targets: Targets, objective: Objective) -> Float64:
    """The loss of each sample, [N]: their mean is `mean_loss`.

    Args:
        outputs: of a model, [N, C].
        targets: [N, C].
        objective: what they mean.
    """
    mean: Float64 = _losses(outputs, targets, objective).mean(axis=1)
    return mean


def _losses(outputs: Logits | Float64, targets: Targets, objective: Objective) -> Float64:
    """The loss of each output of each sample, [N, C]."""
    wide = outputs.astype(np.float64)
    if objective.kind == "regression":
        squared: Float64 = (wide - targets) ** 2
        return squared
    # -log sigmoid(z) = log(1 + exp(-z)), for z with the sign of the target
    entropy: Float64 = np.logaddexp(0, np.where(targets == 1, -wide, wide))
    return entropy


def metrics_of(outputs: Logits, targets: Targets, objective: Objective) -> dict[str, float]:
    """The metrics that are no count of samples, by name.

    Args:
        outputs: of a model, [N, C].
        targets: [N, C].
        objective: what they mean.
    """
    if objective.kind == "retrieval":
        return retrieval_metrics(places(outputs, targets))
    if objective.kind == "segmentation":
        same = (outputs > 0) == (targets == 1)
        return {"dice": dice(outputs, targets), "pixel_accuracy": float(same.mean())}
    wide = outputs.astype(np.float64)
    if objective.kind == "multi_label":
        there = [c for c in range(wide.shape[1]) if targets[:, c].any()]
        found = [average_precision(wide[:, c], targets[:, c] == 1) for c in there]
        return {"map": float(np.mean(found)) if found else 0.0}
    pairs = list(zip(wide.T, targets.T.astype(np.float64), strict=True))
    return {
        "mae": float(np.abs(wide - targets).mean()),
        "r2": float(np.mean([r_squared(o, t) for o, t in pairs])),
        "spearman": float(np.mean([rank_correlation(o, t) for o, t in pairs])),
    }


def first_of(objective: Objective) -> int:
    """Return among how many nearest documents that of a query has to be; see `Objective.first`."""
    return objective.first or 1


def scale_of(objective: Objective) -> float:
    """Return the factor on inner products in losses; see `Objective.scale`."""
    return objective.scale or 1.0


def by_class_of(outputs: Logits, targets: Targets) -> tuple[tuple[int, int, int], ...]:
    """For each class: samples that have it, samples predicted to have it, and both.

    Args:
        outputs: of a multi-label model, [N, C].
        targets: [N, C].
    """
    said, there = outputs > 0, targets == 1
    counts = [there.sum(axis=0), said.sum(axis=0), (said & there).sum(axis=0)]
    return tuple(zip(*(c.tolist() for c in counts), strict=True))


def average_precision(scores: Float64, positive: Mask) -> float:
    """The average precision of one class: the mean precision over the recalls that are gained.

    Samples with equal scores are taken together, as scikit-learn does.

    Args:
        scores: of a class, [N]; larger is more likely.
        positive: which samples have it, at least one, [N].
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(positive[order])[ends]
    gained = np.diff(hits, prepend=0) / positive.sum()
    return float((gained * hits / (ends + 1)).sum())


def r_squared(outputs: Float64, targets: Float64) -> float:
    """The coefficient of determination; for constant targets 1 if all are met, else 0.

    Args:
        outputs: [N].
        targets: [N].
    """
    left, spread = ((targets - outputs) ** 2).sum(), ((targets - targets.mean()) ** 2).sum()
    if spread == 0:
        return float(left == 0)
    return float(1 - left / spread)


def rank_correlation(outputs: Float64, targets: Float64) -> float:
    """Spearman's rank correlation; 0 where outputs or targets are all equal.

    Args:
        outputs: [N].
        targets: [N].
    """
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (outputs, targets))
    length = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / length) if length else 0.0


def best_thresholds(outputs: Logits, targets: Targets) -> tuple[float, ...]:
    """The logit of each class above which F1 on these data is largest.

    It is half-way between two neighbouring logits. Of equal ones the one nearest to 0 is taken; 0
    for a class that no sample has, and where no threshold is better than 0.

    Args:
        outputs: of a multi-label model, [N, C].
        targets: [N, C].
    """
    return tuple(
        _best_threshold(scores, there)
        for scores, there in zip(outputs.T, targets.T == 1, strict=True)
    )


def _best_threshold(scores: npt.NDArray[np.float32], there: Mask) -> float:
    if not there.any():
        return 0.0
    wide = np.unique(scores.astype(np.float64))
    cuts = np.concatenate([[0.0], (wide[1:] + wide[:-1]) / 2, [wide[0] - 1.0]])
    said = scores[None] > cuts[:, None]
    hits = (said & there).sum(axis=1)
    f1 = 2 * hits / (said.sum(axis=1) + there.sum())
    best = np.flatnonzero(f1 == f1.max())
    if f1[0] == f1.max():
        return 0.0
    return float(min(cuts[best], key=abs))
