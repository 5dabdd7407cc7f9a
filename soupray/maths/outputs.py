"""Mixing models by what they answer: logits, probabilities, temperatures, VRF."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logsumexp

from soupray.core.candidates import OutputEnsemble, WeightCandidate

Logits = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
LARGEST_TEMPERATURE = 100.0
"""Temperatures are sought in [1/100, 100]: a model right on every sample has none."""


class Blender:
    """Makes the logits of ensembles; the sum of the members that successive ones share is kept."""

    def __init__(self, logits_of: Callable[[WeightCandidate], Logits]) -> None:
        self._logits_of = logits_of
        self._head: tuple[object, ...] = ()
        self._sum: Array | None = None

    def logits(self, ensemble: OutputEnsemble) -> Logits:
        """[N, C]: the mean of the members' logits, or the log of their mean probabilities.

        Sums run in float64 in the ensemble's order and are rounded once, so that an ensemble of
        one is that model bit for bit.
        """
        *head, last = ensemble.parts
        total = self._sum_of(ensemble, tuple(head))
        term = self._term(ensemble, *last)
        mean = (term if total is None else total + term) / ensemble.denominator
        if ensemble.space == "probabilities":
            # A class that no member believes in at all: as unlikely as float32 can say.
            mean = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
        return mean.astype(np.float32)

    def _sum_of(self, ensemble: OutputEnsemble, head: tuple[object, ...]) -> Array | None:
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
    ) -> Array:
        logits = self._logits_of(member).astype(np.float64) / temperature
        return n * (logits if ensemble.space == "logits" else _softmax(logits))


def _softmax(logits: Array) -> Array:
    probabilities: Array = np.exp(log_softmax(logits, axis=1))
    return probabilities


def fit_temperature(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """The T > 0 that minimises the NLL of logits [N, C] / T; convex in 1 / T."""
    wide = logits.astype(np.float64)
    own = wide[np.arange(len(labels)), labels]

    def nll(log_beta: float) -> float:
        beta = np.exp(log_beta)
        return float((logsumexp(beta * wide, axis=1) - beta * own).mean())

    edge = float(np.log(LARGEST_TEMPERATURE))
    found = minimize_scalar(nll, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))


def trust(distances: Array, a: float, b: float) -> Array:
    """Omega [N]: how far the fine-tuned model is believed; sigmoid(-(d - a) / b) (VRF, eq. 5)."""
    omega: Array = expit(-(distances - a) / b)
    return omega


def vrf_logits(
    fine_tuned: Logits, reference: Logits, temperatures: tuple[float, float], omega: Array
) -> Logits:
    """[N, C]: log of omega p_ft + (1 - omega) p_ref, both calibrated; omega [N]."""
    p_ft = _softmax(fine_tuned.astype(np.float64) / temperatures[0])
    p_ref = _softmax(reference.astype(np.float64) / temperatures[1])
    mixed = omega[:, None] * p_ft + (1 - omega[:, None]) * p_ref
    return np.log(np.maximum(mixed, np.finfo(np.float32).tiny)).astype(np.float32)
