"""Scores of logits, and their statistical errors."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Float64, Indices, Labels, Logits, Mask, Units
from soupray.core.records import (
    UNITS,
    Metric,
    Objective,
    Predictions,
    Scores,
    Split,
    Tally,
    digest,
    pack_right,
    pack_units,
    unpack_units,
)
from soupray.maths.geometry import cross_entropies, cross_entropy
from soupray.maths.graded import in_units, mean_interval, overlap, sign_flip_p
from soupray.maths.objectives import (
    by_class_of,
    losses_of,
    margins_of,
    mean_loss,
    metrics_of,
    right_of,
)
from soupray.maths.own_metric import graded_by, own_metric
from soupray.maths.retrieval import PLACES

RECALL = tuple(f"recall_at_{k}" for k in PLACES)
"""Shares of queries whose document is among the k nearest ones."""

COUNTED = ("accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "worst_class", *RECALL)
"""Metrics from 0 to 1 that follow from counts of samples. For others that are not graded there is
no paired test."""

SHARES = (*COUNTED, "map", "iou", "dice", "pixel_accuracy", "mrr")
"""Metrics from 0 to 1 that people read in percent."""

ECE_BINS = 15
"""Number of equal-mass bins of the expected calibration error (ECE), as in most papers."""


def score(predictions: Predictions) -> Scores:
    """The scores of a model on a split, computed in float64.

    The predicted class is the one with the largest logit. If several have it, the first class is
    predicted. A split with a label map is scored on its own classes: see `mapped`.
    """
    made = _of_soupray(predictions)
    if predictions.split.metric is UNSET:
        return made
    named, _ = predictions.split.metric
    own = _own(predictions)
    others = {} if made.others is UNSET else made.others
    if graded_by(predictions.split) != named:
        return msgspec.structs.replace(made, others={**others, named: float(own.mean())})
    values = in_units(own)
    before = made.graded or "accuracy"
    return msgspec.structs.replace(
        made,
        correct=int(values.sum(dtype=np.int64)),
        right=pack_units(values),
        others={**others, before: made.accuracy},
        graded=named,
    )


def sample_values(predictions: Predictions) -> Mask | Units:
    """What is counted of each sample, [N]: whether it is right, or its graded value in units."""
    graded = graded_by(predictions.split)
    if not graded:
        return right_mask(predictions)
    if predictions.split.metric is not UNSET and graded == predictions.split.metric[0]:
        return in_units(_own(predictions))
    return overlap(predictions.logits, predictions.labels)


def _own(predictions: Predictions) -> Float64:
    logits = mapped(predictions.logits, predictions.split.label_map)
    return own_metric(predictions.split, logits, predictions.labels)


def _of_soupray(predictions: Predictions) -> Scores:
    """The scores that soupray computes itself."""
    if predictions.split.objective is not UNSET:
        return _of_objective(predictions, predictions.split.objective)
    from scipy.special import logsumexp

    logits = mapped(predictions.logits, predictions.split.label_map).astype(np.float64)
    labels = predictions.labels
    answers = logits.argmax(axis=1)
    right = answers == labels
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    return Scores(
        split=predictions.split.digest,
        n=len(labels),
        correct=int(right.sum()),
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        ece=expected_calibration_error(np.exp(log_p.max(axis=1)), right),
        right=pack_right(right),
        by_class=_by_class(answers, labels, logits.shape[1]),
    )


def _of_objective(predictions: Predictions, objective: Objective) -> Scores:
    """The scores of a model whose targets are several labels, numbers, masks, or documents."""
    outputs, targets = predictions.logits, predictions.labels
    if objective.kind == "segmentation":
        return _of_masks(predictions, objective)
    if objective.kind == "retrieval":
        return _of_documents(predictions, objective)
    right = right_of(outputs, targets, objective)
    several = objective.kind == "multi_label"
    from scipy.special import expit

    p = expit(np.abs(outputs.astype(np.float64)))
    said_right = (outputs > 0) == (targets == 1)
    return Scores(
        split=predictions.split.digest,
        n=len(targets),
        correct=int(right.sum()),
        nll=mean_loss(outputs, targets, objective),
        ece=expected_calibration_error(p.ravel(), said_right.ravel()) if several else 0.0,
        right=pack_right(right),
        by_class=by_class_of(outputs, targets) if several else (),
        others=metrics_of(outputs, targets, objective),
    )


def _of_masks(predictions: Predictions, objective: Objective) -> Scores:
    outputs, targets = predictions.logits, predictions.labels
    values = overlap(outputs, targets)
    return Scores(
        split=predictions.split.digest,
        n=len(targets),
        correct=int(values.sum(dtype=np.int64)),
        nll=mean_loss(outputs, targets, objective),
        ece=0.0,
        right=pack_units(values),
        by_class=(),
        others=metrics_of(outputs, targets, objective),
        graded="iou",
    )


def _of_documents(predictions: Predictions, objective: Objective) -> Scores:
    right = right_mask(predictions)
    outputs, targets = predictions.logits, predictions.labels
    return Scores(
        split=predictions.split.digest,
        n=len(targets),
        correct=int(right.sum()),
        nll=mean_loss(outputs, targets, objective),
        ece=0.0,
        right=pack_right(right),
        by_class=(),
        others=metrics_of(outputs, targets, objective),
    )


def nll(logits: Float64 | Logits, labels: Labels, objective: Objective | UnsetType) -> float:
    """The mean loss of logits, as `Scores.nll` has it.

    Args:
        logits: [N, C].
        labels: classes [N], or targets [N, C].
        objective: what they mean; unset: one class.
    """
    if objective is UNSET:
        return cross_entropy(logits, labels)
    return mean_loss(logits, labels, objective)


def sample_losses(
    logits: Float64 | Logits, labels: Labels, objective: Objective | UnsetType
) -> Float64:
    """The loss of each sample, [N]; their mean is `nll`.

    Args:
        logits: [N, C].
        labels: classes [N], or targets [N, C].
        objective: what they mean; unset: one class.
    """
    if objective is UNSET:
        return cross_entropies(logits, labels)
    return losses_of(logits, labels, objective)


def right_mask(predictions: Predictions) -> Mask:
    """Which samples a model gets right, [N]; see `Objective` for what that means.

    Raises:
        ValueError: masks are not right or wrong; and of retrieval the samples are not a whole
            split, whose documents are the gallery.
    """
    split = predictions.split
    if split.objective is not UNSET:
        if split.objective.kind == "retrieval" and len(predictions.labels) != split.size:
            raise ValueError(
                f"{len(predictions.labels)} of {split.size} samples of {split.name}: retrieval is "
                "scored on whole splits"
            )
        return right_of(predictions.logits, predictions.labels, split.objective)
    logits = mapped(predictions.logits, predictions.split.label_map)
    right: Mask = logits.argmax(axis=1) == predictions.labels
    return right


def mapped(logits: Logits, label_map: tuple[tuple[int, ...], ...] | None) -> Logits:
    """Logits of the model's classes as logits of a split's classes.

    The logit of a split's class is the largest logit of the model's classes that mean it. A class
    that the split does not have cannot be predicted. ObjectNet and the subsets of ImageNet are
    scored this way (arXiv:2007.00644).

    Args:
        logits: [N, C], C classes of the model.
        label_map: for each class of the split, the model's classes that mean it. None: both have
            the same classes.

    Returns:
        [N, K], K classes of the split.
    """
    if label_map is None:
        return logits
    return np.stack([logits[:, list(group)].max(axis=1) for group in label_map], axis=1)


def margins(predictions: Predictions) -> Float64:
    """For each sample, the logit of its class minus the largest other logit, [N].

    A sample with a positive margin is classified correctly. For other objectives see `margins_of`.
    Of a graded metric it is the sample's value, 0 to 1.
    """
    if graded_by(predictions.split):
        return sample_values(predictions) / UNITS
    if predictions.split.objective is not UNSET:
        return margins_of(predictions.logits, predictions.labels, predictions.split.objective)
    logits = mapped(predictions.logits, predictions.split.label_map).astype(np.float64)
    rows = np.arange(len(logits))
    own = logits[rows, predictions.labels]
    logits[rows, predictions.labels] = -np.inf
    found: Float64 = own - logits.max(axis=1)
    return found


def on_classes_of(predictions: Predictions, shift: Split) -> Predictions | None:
    """Predictions for the samples whose class is also a class of a shift.

    If a shift has only some of the classes, its accuracy is compared with the ID accuracy on the
    same classes.

    Args:
        predictions: on a split with the model's classes, for example the ID test set.
        shift: the split of the shift, with a label map or without.

    Returns:
        Predictions with the labels and the label map of the shift's classes. `predictions` itself
        if the shift has no label map. None if no sample is left.
    """
    if shift.label_map is None:
        return predictions
    meaning = {c: k for k, group in reversed([*enumerate(shift.label_map)]) for c in group}
    rows = np.flatnonzero(np.isin(predictions.labels, [*meaning]))
    if len(rows) == 0:
        return None
    split = msgspec.structs.replace(
        predictions.split,
        name=f"{predictions.split.name} on {shift.name}",
        digest=digest([predictions.split.digest, shift.label_map]),
        size=len(rows),
        classes=shift.classes,
        label_map=shift.label_map,
    )
    labels = np.array([meaning[c] for c in predictions.labels[rows].tolist()], np.int64)
    return Predictions(split=split, logits=predictions.logits[rows], labels=labels)


def _by_class(answers: Indices, labels: Labels, classes: int) -> tuple[tuple[int, int, int], ...]:
    there = np.bincount(labels, minlength=classes)
    answered = np.bincount(answers, minlength=classes)
    rightly = np.bincount(labels[answers == labels], minlength=classes)
    return tuple(zip(there.tolist(), answered.tolist(), rightly.tolist(), strict=True))


def value(result: Scores | Tally, metric: Metric) -> float:
    """The metric of a result, as a number where larger is better.

    It is computed from integer counts, so that equal counts give equal numbers. NLL has its sign
    changed. Balanced accuracy, macro-F1 and the worst class use only classes that have samples.

    Raises:
        ValueError: `result` is a `Tally`, and the metric is not the one that it counts.
    """
    if metric == (result.graded or "accuracy"):
        return result.accuracy
    if isinstance(result, Tally):
        raise ValueError(f"a count alone has no {metric}")
    if metric == "nll":
        return -result.nll
    if result.others is not UNSET and metric in result.others:
        return -result.others[metric] if metric == "mae" else result.others[metric]
    if metric == "micro_f1":
        n, said, right = (sum(column) for column in zip(*result.by_class, strict=True))
        return 2 * right / (n + said) if n + said else 0.0
    there = [c for c in result.by_class if c[0] > 0]
    if metric == "macro_f1":
        # F1 = 2 TP / (2 TP + FP + FN). The denominator is samples of the class plus predictions.
        return float(sum(Fraction(2 * right, n + said) for n, said, right in there) / len(there))
    if metric not in ("worst_class", "balanced_accuracy"):
        raise ValueError(f"these scores have no {metric}")
    recalls = [Fraction(right, n) for n, _, right in there]
    return float(min(recalls) if metric == "worst_class" else sum(recalls) / len(recalls))


def as_read(value: float, metric: Metric) -> float:
    """A result of `value` as people read the metric: NLL and MAE are positive again."""
    return -value if metric in ("nll", "mae") else value


def expected_calibration_error(confidence: Float64, right: Mask, bins: int = ECE_BINS) -> float:
    """The expected calibration error: mean |confidence - accuracy| over bins of equal mass.

    Samples are sorted by confidence (stable sort) and cut into bins whose sizes differ by at most
    one.

    Args:
        confidence: probability of the predicted class, [N].
        right: whether the predicted class is correct, [N].
        bins: number of bins.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        gaps += abs(float(confidence[part].mean()) - float(right[part].mean())) * len(part)
    return gaps / len(order)


def clopper_pearson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a share (Clopper and Pearson 1934), as (low, high).

    Args:
        correct: number of correct samples.
        n: number of samples.
        level: confidence level.
    """
    from scipy import stats  # takes a second, which `soupray status` does not have

    # The closed form. `binomtest(...).proportion_ci` of SciPy searches for the bounds instead: it
    # is slower, and its 13th digit differs from that in stored leaderboards.
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, correct, n - correct + 1) if correct > 0 else 0.0
    high = stats.beta.ppf(1 - tail, correct + 1, n - correct) if correct < n else 1.0
    return float(low), float(high)


def interval(scores: Scores) -> tuple[float, float]:
    """The 95 % interval of the accuracy: exact, or of a graded metric by the bootstrap."""
    if scores.graded:
        return mean_interval(scores.values())
    return clopper_pearson(scores.correct, scores.n)


def discordant(a: Scores, b: Scores) -> tuple[int, int]:
    """The number of samples that only `a` gets right, and the number that only `b` gets right.

    Of a graded metric: the number of samples whose value is larger.
    """
    if a.graded:
        of_a, of_b = a.values(), b.values()
        return int((of_a > of_b).sum()), int((of_b > of_a).sum())
    right_a, right_b = a.right_mask(), b.right_mask()
    return int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())


def paired_p(a: Scores, b: Scores) -> float:
    """The two-sided p-value of the hypothesis that two models are equally good on a split.

    McNemar's exact test; of a graded metric the permutation test of which it is a case.

    Args:
        a: scores of a model.
        b: scores of another model on the same split.
    """
    if not a.graded:
        return mcnemar(*discordant(a, b))
    return sign_flip_p(unpack_units(a.right).astype(np.int64) - unpack_units(b.right))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of the hypothesis that two models are equally good.

    McNemar 1947.

    Args:
        only_a: number of samples that only the first model gets right.
        only_b: number of samples that only the second model gets right.
    """
    from scipy import stats

    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


Z = 1.959963984540054
"""The 97.5 % point of the normal distribution: intervals of 95 %."""


def paired_difference(a: Scores, b: Scores) -> tuple[float, float, float]:
    """The accuracy of `a` minus that of `b` on the same samples, with its 95 % interval.

    The interval is that of Bonett and Price (2012, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data"), which is good for few samples too.
    Of a graded metric it is that of the bootstrap.

    Args:
        a: scores of a model.
        b: scores of another model on the same split.

    Returns:
        (difference, low, high), from -1 to 1.
    """
    if a.graded:
        apart = a.values() - b.values()
        return float(apart.mean()), *mean_interval(apart)
    only_a, only_b = discordant(a, b)
    p, q = (only_a + 1) / (a.n + 2), (only_b + 1) / (a.n + 2)
    half = Z * float(np.sqrt((p + q - (p - q) ** 2) / (a.n + 2)))
    return (only_a - only_b) / a.n, max(-1.0, p - q - half), min(1.0, p - q + half)


def mean_paired_difference(
    pairs: Sequence[tuple[Scores, Scores]],
) -> tuple[float, float, float]:
    """The mean over several splits of the paired difference, with its 95 % interval (normal).

    Splits of equal size may be changes of the same samples, whose answers go together: the
    variance is that of the mean at each position. Were they other samples, this would estimate the
    same. Splits of different sizes are taken as independent.

    Args:
        pairs: scores of two models on each split.

    Returns:
        (difference, low, high), from -1 to 1.
    """
    apart = [a.values() - b.values() for a, b in pairs]
    mean, error = _mean_of(apart)
    return mean, max(-1.0, mean - Z * error), min(1.0, mean + Z * error)


def mean_accuracy(scores: Sequence[Scores]) -> tuple[float, float, float]:
    """The mean accuracy over several splits, with its 95 % interval as `mean_paired_difference`.

    Args:
        scores: of one model on each split.

    Returns:
        (accuracy, low, high), from 0 to 1.
    """
    mean, error = _mean_of([s.values() for s in scores])
    return mean, max(0.0, mean - Z * error), min(1.0, mean + Z * error)


def _mean_of(splits: list[Float64]) -> tuple[float, float]:
    """The mean over splits of the means of their samples, and its standard error."""
    mean = float(np.mean([split.mean() for split in splits]))
    if len({len(split) for split in splits}) == 1:
        together = np.mean(splits, axis=0)
        return mean, float(together.std()) / float(np.sqrt(len(together)))
    return mean, float(np.sqrt(sum(s.var() / len(s) for s in splits))) / len(splits)


def logit(share: float, n: int) -> float:
    """The logit of an accuracy, for axes with a logit scale.

    The accuracy is clipped to at least half a sample from 0 and 1, where the logit is infinite.

    Args:
        share: the accuracy.
        n: number of samples.
    """
    clipped = min(max(share, 0.5 / n), 1 - 0.5 / n)
    return float(np.log(clipped / (1 - clipped)))
