"""Which classes a model takes for which, and whether its confidence is right."""

from __future__ import annotations

import numpy as np

from soupray.core.arrays import Float64
from soupray.core.records import Predictions, Record
from soupray.maths.metrics import ECE_BINS, mapped


class Bin(Record, frozen=True, kw_only=True):
    """Samples of similar confidence; one point of a reliability diagram.

    Attributes:
        n: number of samples.
        confidence: mean probability of their predicted classes.
        accuracy: share of them that is right.
    """

    n: int
    confidence: float
    accuracy: float


class Answered(Record, frozen=True, kw_only=True):
    """How often the samples of a class got an answer.

    Attributes:
        label: index of the class of the samples.
        answer: index of the predicted class.
        n: number of these samples.
    """

    label: int
    answer: int
    n: int


def confusion(predictions: Predictions) -> tuple[Answered, ...]:
    """Return the cells of the confusion matrix that are not empty, by label and answer.

    Args:
        predictions: of a model on a split; a split with a label map has its own classes.
    """
    logits = mapped(predictions.logits, predictions.split.label_map)
    pairs = np.stack([predictions.labels, logits.argmax(axis=1)], axis=1)
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
    return tuple(
        Answered(label=label, answer=answer, n=n)
        for (label, answer), n in zip(cells.tolist(), counts.tolist(), strict=True)
    )


def reliability(
    predictions: Predictions, temperature: float = 1.0, bins: int = ECE_BINS
) -> tuple[Bin, ...]:
    """Return confidence against accuracy in bins of equal mass (Guo et al., arXiv:1706.04599).

    The bins are those of `metrics.expected_calibration_error`, which is the mean gap between the
    two over all samples.

    Args:
        predictions: of a model on a split.
        temperature: the probabilities are softmax(logits / temperature).
        bins: number of bins.
    """
    from scipy.special import softmax

    logits = mapped(predictions.logits, predictions.split.label_map).astype(np.float64)
    confidence: Float64 = softmax(logits / temperature, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == predictions.labels
    order = np.argsort(confidence, kind="stable")
    return tuple(
        Bin(
            n=len(part),
            confidence=float(confidence[part].mean()),
            accuracy=float(right[part].mean()),
        )
        for part in np.array_split(order, min(bins, len(order)))
    )
