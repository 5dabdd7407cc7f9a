"""Which hyperparameters explain the scores of a sweep's trials, by Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

LEAST = 8
"""Trials: with fewer, a forest of trees explains noise."""


def importances(
    points: Sequence[Mapping[str, float | int | str]], scores: Sequence[float]
) -> dict[str, float]:
    """Return the share of the variance of the scores that each hyperparameter explains (fANOVA).

    Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter Importance". The shares
    sum to one. A hyperparameter with the same value in all trials is left out.

    Args:
        points: the hyperparameters of each trial; those that not all trials have are left out.
        scores: a score for each trial.

    Returns:
        Shares by hyperparameter, the largest first. Empty: fewer than LEAST trials,
        or equal scores.
    """
    names = [n for n in points[0] if all(n in p for p in points)] if points else []
    space = {n: _between([p[n] for p in points]) for n in names}
    space = {n: between for n, between in space.items() if between is not None}
    if len(points) < LEAST or not space or len(set(scores)) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for point, score in zip(points, scores, strict=True):
        params = {n: point[n] for n in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _between(values: list[Any]) -> Any:
    """The distribution that has these values; None if all are equal."""
    if len(set(values)) == 1:
        return None
    if any(isinstance(v, str) for v in values):
        return optuna.distributions.CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(values), max(values)
    # A range over decades was searched by its logarithm.
    return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
