"""Soups and ensembles as records: coefficients and digests, never tensors.

A candidate is hashable, a few hundred bytes, equal on every machine, and enough to make the model
again: it names its ingredients by the SHA-256 of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from soupray.core.records import BlobRef, Record, Rejected, Scores, Tally, digest

OutputSpace = Literal["logits", "probabilities"]


class WeightSoup(Record, tag="weight_soup", frozen=True, kw_only=True):
    """theta = sum_i n_i theta_i / d over stored checkpoints, in the order of `parts`.

    A single model is the soup of one part. Coefficients are rational, so that equal soups are
    equal records; `weight_soup` reduces them.
    """

    parts: tuple[tuple[str, int], ...]
    denominator: int

    @property
    def digest(self) -> str:
        """Names the soup in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 of the ingredients' weights, in order."""
        return tuple(sha for sha, _ in self.parts)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One a checkpoint; they sum to one."""
        return tuple(n / self.denominator for _, n in self.parts)

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs: itself."""
        return (self,)


class LayerSoup(Record, tag="layer_soup", frozen=True, kw_only=True):
    """theta_t = sum_i n_ti theta_ti / d, with numerators of its own for each tensor t.

    `layers` lists (names of tensors, their numerators in the order of `checkpoints`); a tensor
    that no layer names has the numerators `rest`.
    """

    checkpoints: tuple[str, ...]
    layers: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    rest: tuple[int, ...]
    denominator: int

    @property
    def digest(self) -> str:
        """As `WeightSoup.digest`."""
        return digest(self)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One a checkpoint: the mean over the layers."""
        rows = [numerators for _, numerators in self.layers] or [self.rest]
        return tuple(sum(c) / len(rows) / self.denominator for c in zip(*rows, strict=True))

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """As `WeightSoup.members`."""
        return (self,)

    def numerators(self) -> dict[str, tuple[int, ...]]:
        """Numerators by tensor name, for the tensors that a layer names."""
        return {name: numerators for names, numerators in self.layers for name in names}


class FisherSoup(Record, tag="fisher_soup", frozen=True, kw_only=True):
    """theta_j = sum_i F_ij theta_ij / sum_i F_ij (Matena and Raffel, arXiv:2111.09832).

    `parts` lists (weights, their diagonal Fisher information, 1), both by SHA-256. The 1 was once a
    factor; it stays because it is in the digests of stored candidates.
    """

    parts: tuple[tuple[str, str, Literal[1]], ...]

    @property
    def digest(self) -> str:
        """As `WeightSoup.digest`."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """As `WeightSoup.checkpoints`."""
        return tuple(sha for sha, _, _ in self.parts)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Equal shares: what they would be if all Fishers were equal."""
        return (1 / len(self.parts),) * len(self.parts)

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """As `WeightSoup.members`."""
        return (self,)


WeightCandidate = WeightSoup | LayerSoup | FisherSoup
"""One model: one forward pass a sample."""


class OutputEnsemble(Record, tag="output_ensemble", frozen=True, kw_only=True):
    """Mean of its members' logits, or of their probabilities; one forward pass a member.

    `parts` lists (model, n, temperature): logits are divided by the temperature before anything
    else. Its own logits are the mean of logits, or the logarithm of the mean of probabilities.
    """

    parts: tuple[tuple[WeightCandidate, int, float], ...]
    denominator: int
    space: OutputSpace

    @property
    def digest(self) -> str:
        """As `WeightSoup.digest`."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """As `WeightSoup.checkpoints`; each once, however many members hold it."""
        return tuple(_shares(self))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The share of each checkpoint: its member's, times its own in the member."""
        return tuple(_shares(self).values())

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs."""
        return tuple(member for member, _, _ in self.parts)


class VRFEnsemble(Record, tag="vrf_ensemble", frozen=True, kw_only=True):
    """omega p_ft + (1 - omega) p_ref, omega = sigmoid(-(d - a) / b) (VRF, arXiv:2411.06966).

    d(x) is the squared L2 distance of the fine-tuned model's normalised features to their k-th
    nearest neighbour among `failures`: training samples that it gets right and the reference
    wrong. Both models' probabilities are calibrated by their temperatures. `distance` has one
    value; it stays because it is in the digests of stored candidates.
    """

    fine_tuned: WeightCandidate
    reference: WeightCandidate
    temperatures: tuple[float, float]
    failures: BlobRef
    k: int
    a: float
    b: float
    distance: Literal["squared_l2"] = "squared_l2"

    @property
    def digest(self) -> str:
        """As `WeightSoup.digest`."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """As `WeightSoup.checkpoints`."""
        return tuple(dict.fromkeys(c for m in self.members for c in m.checkpoints))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """None: they differ from sample to sample."""
        return ()

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs."""
        return (self.fine_tuned, self.reference)


OutputCandidate = OutputEnsemble | VRFEnsemble
Candidate = WeightCandidate | OutputCandidate
"""Any soup or ensemble under consideration."""


def _shares(ensemble: OutputEnsemble) -> dict[str, float]:
    shares: dict[str, float] = {}
    for member, n, _ in ensemble.parts:
        for sha, own in zip(member.checkpoints, member.coefficients, strict=True):
            shares[sha] = shares.get(sha, 0.0) + own * n / ensemble.denominator
    return shares


def weight_soup(parts: Sequence[tuple[str, int]], denominator: int) -> WeightSoup:
    """A soup in lowest terms; equal checkpoints are joined, those with coefficient 0 dropped.

    Raises:
        ValueError: if no part is left or the coefficients do not sum to one.
    """
    if sum(n for _, n in parts) != denominator or denominator <= 0:
        raise ValueError(f"coefficients {[n for _, n in parts]} / {denominator} do not sum to 1")
    joined: dict[str, int] = {}
    for sha, n in parts:
        joined[sha] = joined.get(sha, 0) + n
    kept = [(sha, n) for sha, n in joined.items() if n != 0]
    common = math.gcd(denominator, *(n for _, n in kept))
    return WeightSoup(
        parts=tuple((sha, n // common) for sha, n in kept), denominator=denominator // common
    )


def mean_of(checkpoints: Sequence[str]) -> WeightSoup:
    """The plain mean of checkpoints, in the order given."""
    return weight_soup([(sha, 1) for sha in checkpoints], len(checkpoints))


def ensemble_of(
    parts: Sequence[tuple[WeightCandidate, int, float]], denominator: int, space: OutputSpace
) -> OutputEnsemble:
    """An ensemble in lowest terms; equal members are joined, those with coefficient 0 dropped.

    Raises:
        ValueError: if no part is left or the coefficients do not sum to one.
    """
    if sum(n for _, n, _ in parts) != denominator or denominator <= 0:
        raise ValueError(f"coefficients {[n for _, n, _ in parts]} / {denominator} not of sum 1")
    joined: dict[tuple[WeightCandidate, float], int] = {}
    for member, n, temperature in parts:
        joined[member, temperature] = joined.get((member, temperature), 0) + n
    kept = [(member, n, t) for (member, t), n in joined.items() if n != 0]
    common = math.gcd(denominator, *(n for _, n, _ in kept))
    return OutputEnsemble(
        parts=tuple((member, n // common, t) for member, n, t in kept),
        denominator=denominator // common,
        space=space,
    )


QUANTUM = 1_000_000
"""Learnt coefficients are stored as multiples of 1e-6. Products n * theta stay exact in float64:
n has 20 bits and theta 24, of 53."""


def quantised(shares: Sequence[float]) -> tuple[int, ...]:
    """Numerators over QUANTUM of shares that sum to one: rounded, the largest takes the rest."""
    numerators = [round(s * QUANTUM) for s in shares]
    numerators[max(range(len(shares)), key=lambda i: shares[i])] += QUANTUM - sum(numerators)
    return tuple(numerators)


class Step(Record, frozen=True, kw_only=True):
    """One decision of a recipe: what was tried, how it scored, whether it was kept."""

    candidate: Candidate
    result: Scores | Tally | Rejected
    accepted: bool


class Outcome(Record, frozen=True, kw_only=True):
    """A recipe's choice, with the whole way there. Frozen before anything is reported."""

    name: str
    recipe: str
    options: dict[str, str | int | float]
    candidate: Candidate
    held_out: Scores
    trace: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
