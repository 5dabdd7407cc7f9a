"""Ensembles: the mean of logits or probabilities, temperatures, VRF, and shares by entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logsumexp

from soupray.core.arrays import Float64, Labels, Logits
from soupray.core.candidates import OutputEnsemble, WeightCandidate

LARGEST_TEMPERATURE = 100.0
"""Temperatures are sought in [1/100, 100]."""


def leave_one_out(
    count: int, logits_of: Callable[[int], Logits | Float64], loss: Callable[[Float64], float]
) -> list[float]:
    """What each model is worth to the ensemble of all of them, the mean of their logits.

    Each model's logits are asked for twice; two arrays of their size are in memory.

    Args:
        count: number of models, K.
        logits_of: the logits [N, C] of the k-th model, k from 0; of retrieval its similarities.
        loss: of logits [N, C]: the NLL, or the loss of another objective.

    Returns:
        For each model, the NLL of the ensemble without it minus that of the ensemble with it, in
        nats: positive if it helps. 0 for a model that is alone.
    """
    if count == 1:
        return [0.0]
    total = logits_of(0).astype(np.float64)
    for k in range(1, count):
        total += logits_of(k)
    whole = loss(total / count)
    return [loss((total - logits_of(k)) / (count - 1)) - whole for k in range(count)]


class Blender:
    """Makes the logits of ensembles.

    It keeps the sum over the members that one ensemble and the next have in common.
    """

    def __init__(self, logits_of: Callable[[WeightCandidate], Logits]) -> None:
        self._logits_of = logits_of
        self._head: tuple[object, ...] = ()
        self._sum: Float64 | None = None

    def logits(self, ensemble: OutputEnsemble) -> Logits:
        """The mean of the members' logits, or the logarithm of their mean probabilities.

        Sums are computed in float64, in the order of the members, and rounded once. An ensemble of
        one member has the logits of this member, bit for bit.
        """
        *head, last = ensemble.parts
        total = self._sum_of(ensemble, tuple(head))
        term = self._term(ensemble, *last)
        mean = (term if total is None else total + term) / ensemble.denominator
        if ensemble.space == "probabilities":
            # If all members give a class probability 0, it gets the smallest number of float32.
            mean = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
        return mean.astype(np.float32)

    def _sum_of(self, ensemble: OutputEnsemble, head: tuple[object, ...]) -> Float64 | None:
        wanted = (ensemble.space, *head)
        if self._head != wanted:
            same = len(self._head) > 0 and self._head == wanted[: len(self._head)]
            total = self._sum if same else None
            done = len(self._head) - 1 if same else 0
            for part in ensemble.parts[done : len(head)]:
                term = self._term(ensemble, *part)
                total = term if total is None else total + term
            self._head, self._sum = wanted, total
        return self._sum if head else None

    def _term(
        self, ensemble: OutputEnsemble, member: WeightCandidate, n: int, temperature: float
    ) -> Float64:
        logits = self._logits_of(member).astype(np.float64) / temperature
        return n * (logits if ensemble.space == "logits" else _softmax(logits))


def _softmax(logits: Float64) -> Float64:
    probabilities: Float64 = np.exp(log_softmax(logits, axis=1))
    return probabilities


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature T > 0 that minimises the NLL of logits / T.

    The problem is convex in 1 / T. T is between 1/100 and 100. It is 1 for a model that is right on
    every sample: then every smaller T is better, and the data say nothing about its errors.

    Args:
        logits: [N, C].
        labels: [N].
    """
    if (logits.argmax(1) == labels).all():
        return 1.0
    wide = logits.astype(np.float64)
    own = wide[np.arange(len(labels)), labels]

    def nll(log_beta: float) -> float:
        beta = np.exp(log_beta)
        return float((logsumexp(beta * wide, axis=1) - beta * own).mean())

    edge = float(np.log(LARGEST_TEMPERATURE))
    found = minimize_scalar(nll, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))


def trust(distances: Float64, a: float, b: float) -> Float64:
    """The share of the fine-tuned model in VRF: omega = sigmoid(-(d - a) / b) (VRF, eq. 5).

    Args:
        distances: d, the distance of each sample to the failure set, [N].
        a: the distance where omega is one half.
        b: the width of the transition.

    Returns:
        omega, [N].
    """
    omega: Float64 = expit(-(distances - a) / b)
    return omega


def vrf_logits(
    fine_tuned: Logits, reference: Logits, temperatures: tuple[float, float], omega: Float64
) -> Logits:
    """The logits of VRF: log(omega p_ft + (1 - omega) p_ref).

    Args:
        fine_tuned: logits of the fine-tuned model, [N, C].
        reference: logits of the reference model, [N, C].
        temperatures: of the fine-tuned model and of the reference. They calibrate p_ft and p_ref.
        omega: share of the fine-tuned model for each sample, [N].

    Returns:
        [N, C].
    """
    p_ft = _softmax(fine_tuned.astype(np.float64) / temperatures[0])
    p_ref = _softmax(reference.astype(np.float64) / temperatures[1])
    mixed = omega[:, None] * p_ft + (1 - omega[:, None]) * p_ref
    return np.log(np.maximum(mixed, np.finfo(np.float32).tiny)).astype(np.float32)


def entropy_logits(logits: Sequence[Logits], temperatures: Sequence[float]) -> Logits:
    """The logits of a mixture whose shares follow from entropies (DaWin, arXiv:2410.03782).

    Args:
        logits: of each member, [N, C].
        temperatures: of each member. They calibrate its probabilities.

    Returns:
        log(sum_i w_i p_i) with w_i = exp(-H(p_i)) / sum_j exp(-H(p_j)) for each sample, [N, C].
    """
    total, shares = None, None
    for one, temperature in zip(logits, temperatures, strict=True):
        log_p = log_softmax(one.astype(np.float64) / temperature, axis=1)
        p = np.exp(log_p)
        sure = np.exp((p * log_p).sum(axis=1, keepdims=True))  # exp(-H)
        total = sure * p if total is None else total + sure * p
        shares = sure if shares is None else shares + sure
    assert total is not None
    mixed: Logits = np.log(np.maximum(total / shares, np.finfo(np.float32).tiny)).astype(np.float32)
    return mixed
