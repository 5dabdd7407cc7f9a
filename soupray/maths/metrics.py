"""Scores of logits, and what the scores are worth statistically."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import logsumexp

from soupray.core.records import Metric, Predictions, Scores, Split, Tally, digest, pack_right

ECE_BINS = 15
"""Equal-mass bins, as in the field's reports."""


def score(predictions: Predictions) -> Scores:
    """Correct count, NLL (float64) and ECE of logits [N, C]. Ties go to the lower class.

    A split with a label map is scored on its own classes: see `mapped`.
    """
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


def mapped(
    logits: npt.NDArray[np.float32], label_map: tuple[tuple[int, ...], ...] | None
) -> npt.NDArray[np.float32]:
    """Logits [N, C] of the model's classes as [N, K] of a split's.

    The logit of a class is the largest of those that mean it, and classes that the split does not
    have are no answers: as ObjectNet and the subsets of ImageNet are scored (arXiv:2007.00644).
    """
    if label_map is None:
        return logits
    return np.stack([logits[:, list(group)].max(axis=1) for group in label_map], axis=1)


def margins(predictions: Predictions) -> npt.NDArray[np.float64]:
    """[N]: the logit of a sample's class minus the largest other; it is right where positive."""
    logits = mapped(predictions.logits, predictions.split.label_map).astype(np.float64)
    rows = np.arange(len(logits))
    own = logits[rows, predictions.labels]
    logits[rows, predictions.labels] = -np.inf
    found: npt.NDArray[np.float64] = own - logits.max(axis=1)
    return found


def on_classes_of(predictions: Predictions, shift: Split) -> Predictions | None:
    """The samples of `predictions` that are of the classes of `shift`, labelled and split as there.

    What accuracy under a shift of some classes is compared with; None if there is no such sample.
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


def _by_class(
    answers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int
) -> tuple[tuple[int, int, int], ...]:
    there = np.bincount(labels, minlength=classes)
    answered = np.bincount(answers, minlength=classes)
    rightly = np.bincount(labels[answers == labels], minlength=classes)
    return tuple(zip(there.tolist(), answered.tolist(), rightly.tolist(), strict=True))


def value(result: Scores | Tally, metric: Metric) -> float:
    """The metric of a result, as a number of which more is better.

    From integer counts, so that equal counts give equal numbers; NLL with its sign turned.
    Balanced accuracy, macro-F1 and the worst class are over the classes that have samples.
    """
    if metric == "accuracy":
        return result.correct / result.n
    if isinstance(result, Tally):
        raise ValueError(f"a count alone has no {metric}")
    if metric == "nll":
        return -result.nll
    there = [c for c in result.by_class if c[0] > 0]
    if metric == "macro_f1":
        # 2 TP / (2 TP + FP + FN): twice the right ones over those there plus those answered.
        return float(sum(Fraction(2 * right, n + said) for n, said, right in there) / len(there))
    recalls = [Fraction(right, n) for n, _, right in there]
    return float(min(recalls) if metric == "worst_class" else sum(recalls) / len(recalls))


def as_read(value: float, metric: Metric) -> float:
    """What `value` gave, as people read the metric: NLL with its own sign."""
    return -value if metric == "nll" else value


def expected_calibration_error(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = ECE_BINS
) -> float:
    """Mean |confidence - accuracy| over `bins` bins of equal mass.

    confidence, right: [N]. Samples are sorted by confidence (stably) and cut into bins whose sizes
    differ by one at most.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        gaps += abs(float(confidence[part].mean()) - float(right[part].mean())) * len(part)
    return gaps / len(order)


def clopper_pearson(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, correct, n - correct + 1) if correct > 0 else 0.0
    high = stats.beta.ppf(1 - tail, correct + 1, n - correct) if correct < n else 1.0
    return float(low), float(high)


def discordant(a: Scores, b: Scores) -> tuple[int, int]:
    """On how many samples only `a`, and only `b`, is right."""
    right_a, right_b = a.right_mask(), b.right_mask()
    return int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that two models are equally good (McNemar 1947)."""
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def logit(share: float, n: int) -> float:
    """Logit of an accuracy, clipped by half a sample, for logit-scaled axes."""
    clipped = min(max(share, 0.5 / n), 1 - 0.5 / n)
    return float(np.log(clipped / (1 - clipped)))
