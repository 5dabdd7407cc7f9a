"""Compute from logits how the models of a pool differ, and what their averages give."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import UNSET, UnsetType

from soupray.core.arrays import Float64, Logits, Mask
from soupray.core.records import Predictions, Record
from soupray.core.requests import Matrix
from soupray.core.trials import Pool
from soupray.maths.geometry import (
    conversion_rate,
    cross_entropy,
    error_inconsistency,
    interpolation_advantage,
    kappa,
    measured_difference,
    predicted_difference,
)
from soupray.maths.outputs import fit_temperature

Maybe = tuple[tuple[float | None, ...], ...]


class Mixed(Record, frozen=True, kw_only=True):
    """The result of mixing two models: the mean of their weights, or of their logits.

    `advantage` is its accuracy minus the mean accuracy of the two. `conversion`: of the samples
    that exactly one of the two gets right, the fraction that the mixture gets right (None if there
    are no such samples). `loss` is its cross-entropy, with logits times beta.
    """

    accuracy: float
    advantage: float
    conversion: float | None
    loss: float


class Pair(Record, frozen=True, kw_only=True):
    """Two ingredients on held-out data.

    `distance`: |theta_i - theta_j|. `angle`: degrees between theta_i - theta_0 and theta_j -
    theta_0; None if one of them is theta_0. `measured`: L_soup - L_ensemble in nats, with the
    cross-entropy of beta times the logits. `predicted`: the prediction of Model soups, section 4.
    beta is 1 / the temperature that minimises the loss of the soup.
    """

    trials: tuple[str, str]
    accuracies: tuple[float, float]
    distance: float
    angle: float | None
    error_inconsistency: float
    kappa_complement: float | None
    soup: Mixed
    ensemble: Mixed
    beta: float
    measured: float
    predicted: float


class Diagnosis(Record, frozen=True, kw_only=True):
    """Matrices [K, K] of all pairs in the order of `trials`, and the sampled pairs in detail.

    `statistics`: "estimated" if the BatchNorm statistics of all models, also of single ones, were
    estimated. Unset if training moved none, and in records of older versions.
    """

    n: int
    trials: tuple[str, ...]
    error_inconsistency: Matrix
    kappa_complement: Maybe
    pairs: tuple[Pair, ...]
    statistics: Literal["estimated"] | UnsetType = UNSET


def drawn_pairs(k: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return sampled pairs i < j of models, sorted.

    Args:
        k: number of models.
        count: number of pairs; all pairs if there are fewer.
        seed: seed of the sampling.
    """
    pairs = list(itertools.combinations(range(k), 2))
    draw = random.Random(seed)  # noqa: S311 - not a secret
    return sorted(draw.sample(pairs, min(count, len(pairs))))


def compare_pair(
    trials: tuple[str, str], distance: float, angle: float | None, along: Sequence[Predictions]
) -> Pair:
    """Compare two models.

    Args:
        trials: keys of the two trials.
        distance: |theta_i - theta_j|.
        angle: degrees between their differences from theta_0, or None.
        along: predictions at a = 0, 1/4, 1/2, 3/4, 1 of the segment between their weights.
    """
    labels, logits = along[0].labels, [p.logits for p in along]
    ensemble = (logits[0].astype(np.float64) + logits[4]) / 2
    beta = 1 / fit_temperature(logits[2], labels)
    first, second = (logits[at].argmax(axis=1) == labels for at in (0, 4))

    def mixed(joint: Logits | Float64) -> Mixed:
        right = joint.argmax(axis=1) == labels
        ends = (float(first.mean()), float(second.mean()))
        return Mixed(
            accuracy=float(right.mean()),
            advantage=interpolation_advantage(float(right.mean()), ends),
            conversion=conversion_rate(first, second, right),
            loss=cross_entropy(joint, labels, beta),
        )

    return Pair(
        trials=trials,
        accuracies=(float(first.mean()), float(second.mean())),
        distance=distance,
        angle=angle,
        error_inconsistency=error_inconsistency(first, second),
        kappa_complement=_complement(kappa(first, second)),
        soup=mixed(logits[2]),
        ensemble=mixed(ensemble),
        beta=beta,
        measured=measured_difference(logits, labels, beta),
        predicted=predicted_difference(logits, labels, beta),
    )


def diagnosis(
    pool: Pool, pairs: Sequence[Pair], answered: Sequence[Mask] | None = None
) -> Diagnosis:
    """Return `pairs` together with error inconsistency and 1 - kappa of all pairs of the pool.

    Args:
        pool: the ingredients.
        pairs: the sampled pairs.
        answered: which held-out samples each ingredient gets right; None: its scores say it.
    """
    right = answered or [i.held_out.right_mask() for i in pool.ingredients]
    return Diagnosis(
        n=pool.ingredients[0].held_out.n,
        trials=tuple(i.trial.key for i in pool.ingredients),
        error_inconsistency=tuple(tuple(error_inconsistency(a, b) for b in right) for a in right),
        kappa_complement=tuple(tuple(_complement(kappa(a, b)) for b in right) for a in right),
        pairs=tuple(pairs),
        statistics="estimated" if pool.moved else UNSET,
    )


def summary(made: Diagnosis) -> list[str]:
    """Return the meaning of the numbers in words, one text per topic."""
    apart = [row[j] for i, row in enumerate(made.error_inconsistency) for j in range(i)]
    complements = [row[j] for i, row in enumerate(made.kappa_complement) for j in range(i)]
    known = [c for c in complements if c is not None]
    said = (
        f"Errors: two ingredients differ in being right on {_share(np.mean(apart))} of the samples "
        f"({_share(min(apart))} to {_share(max(apart))}, all {len(apart)} pairs)"
    )
    if known:
        said += f"; 1 - kappa is {np.mean(known):.2f} (0: the same errors, 1: independent ones)"
    better = sum(d.soup.advantage > 0 for d in made.pairs)
    gain = float(np.mean([d.soup.advantage for d in made.pairs]))
    angled = [(d.angle, d.soup.advantage) for d in made.pairs if d.angle is not None]
    return [
        f"{said}.",
        f"Interpolation: the mean of weights beats the mean of the two accuracies in {better} of "
        f"{len(made.pairs)} sampled pairs, by {100 * gain:+.1f} points on average"
        f"{_correlation(angled, 'with the angle')}.",
        _against_ensemble(made),
    ]


def _against_ensemble(made: Diagnosis) -> str:
    lower = sum(d.measured < 0 for d in made.pairs)
    both = [(d.predicted, d.measured) for d in sorted(made.pairs, key=lambda d: d.distance)]
    predicted, measured = np.mean(both, axis=0)
    return (
        f"Soup against ensemble: the soup has the lower loss in {lower} of {len(both)} pairs; "
        f"L_soup - L_ensemble is {measured:+.4f} nats on average, predicted {predicted:+.4f}"
        f"{_correlation(both, 'of the two')}. The prediction is for models near each other"
        f"{_correlation(both[: (len(both) + 1) // 2], 'in the nearer half of the pairs')}."
    )


def _correlation(points: Sequence[tuple[float, float]], what: str) -> str:
    """Return Pearson's r as text; empty with fewer than three points or no variation."""
    x, y = np.asarray(points, float).reshape(-1, 2).T
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return ""
    return f" (correlation {what} {np.corrcoef(x, y)[0, 1]:+.2f})"


def _complement(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _share(value: float | np.floating) -> str:
    return f"{100 * value:.1f} %"
