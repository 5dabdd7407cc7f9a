"""Soups and ensembles as records: coefficients and digests, never tensors.

A candidate is hashable, takes a few hundred bytes and is equal on every machine. It names its
ingredients by the SHA-256 of their weights, so that the model can be made again from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, structs

from soupray.core.names import Sha256
from soupray.core.records import BlobRef, Record, Rejected, Scores, Tally, digest
from soupray.core.task_vectors import DareSoup, TiesSoup
from soupray.core.trials import Pool

OutputSpace = Literal["logits", "probabilities"]


class WeightSoup(Record, tag="weight_soup", frozen=True, kw_only=True):
    """theta = sum_i n_i theta_i / d over stored checkpoints, in the order of `parts`.

    A single model is a soup of one part. Coefficients are fractions, so that equal soups are
    equal records. `weight_soup` reduces the fractions to lowest terms.

    Attributes:
        parts: (SHA-256 of theta_i, numerator n_i) for each ingredient.
        denominator: d, the sum of the numerators.
        statistics: "estimated": a single model whose BatchNorm statistics are not those of its
            training: they are estimated as those of a soup. Unset in all other records, so that
            these keep the digests that they had before there was this field.
    """

    parts: tuple[tuple[Sha256, int], ...]
    denominator: int
    statistics: Literal["estimated"] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse (ValueError) wrong coefficients, and `statistics` of several parts.

        A soup has estimated statistics in any case: with `statistics`, one model would be two
        records.
        """
        _check_sum([n for _, n in self.parts], self.denominator)
        if self.statistics is not UNSET and len(self.parts) > 1:
            raise ValueError(f"statistics is for one part, and the soup has {len(self.parts)}")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each ingredient's weights, in the order of the candidate."""
        return tuple(sha for sha, _ in self.parts)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One coefficient for each checkpoint. Their sum is one."""
        return tuple(n / self.denominator for _, n in self.parts)

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs: the soup is one model."""
        return (self,)


class LayerSoup(Record, tag="layer_soup", frozen=True, kw_only=True):
    """theta_t = sum_i n_ti theta_ti / d: each tensor t has its own numerators.

    Attributes:
        checkpoints: SHA-256 of each ingredient's weights.
        layers: (names of tensors, their numerators in the order of `checkpoints`).
        rest: the numerators of every tensor that no layer names.
        denominator: d, the sum of each list of numerators.
    """

    checkpoints: tuple[Sha256, ...]
    layers: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    rest: tuple[int, ...]
    denominator: int

    def __post_init__(self) -> None:
        """Refuse (ValueError) coefficients that do not sum to one, and a tensor in two layers."""
        for row in (self.rest, *(row for _, row in self.layers)):
            if len(row) != len(self.checkpoints):
                raise ValueError(f"{len(row)} coefficients for {len(self.checkpoints)} checkpoints")
            _check_sum(row, self.denominator)
        names = [name for layer, _ in self.layers for name in layer]
        if len(set(names)) < len(names):
            raise ValueError("a tensor is in two layers")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One coefficient for each checkpoint: the mean over the layers."""
        rows = [numerators for _, numerators in self.layers] or [self.rest]
        return tuple(sum(c) / len(rows) / self.denominator for c in zip(*rows, strict=True))

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs: the soup is one model."""
        return (self,)

    def numerators(self) -> dict[str, tuple[int, ...]]:
        """The numerators of each tensor that a layer names, by the tensor's name."""
        return {name: numerators for names, numerators in self.layers for name in names}


class FisherSoup(Record, tag="fisher_soup", frozen=True, kw_only=True):
    """theta_j = sum_i F_ij theta_ij / sum_i F_ij (Matena and Raffel, arXiv:2111.09832).

    j counts the elements of the weights, i the ingredients.

    Attributes:
        parts: (SHA-256 of the weights, SHA-256 of their diagonal Fisher information, 1). The 1 was
            once a factor. It stays because the digests of stored candidates contain it.
    """

    parts: Annotated[tuple[tuple[Sha256, Sha256, Literal[1]], ...], Meta(min_length=1)]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each ingredient's weights, in the order of the candidate."""
        return tuple(sha for sha, _, _ in self.parts)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Equal coefficients: the true ones differ from element to element."""
        return (1 / len(self.parts),) * len(self.parts)

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs: the soup is one model."""
        return (self,)


WeightCandidate = WeightSoup | LayerSoup | FisherSoup | TiesSoup | DareSoup
"""A candidate that is one model: inference runs one forward pass for each sample."""


class OutputEnsemble(Record, tag="output_ensemble", frozen=True, kw_only=True):
    """Mean of its members' logits, or of their probabilities.

    Inference runs one forward pass for each member. The ensemble's own logits are the mean of the
    members' logits, or the logarithm of the mean of their probabilities.

    Attributes:
        parts: (model, numerator n, temperature). A member's logits are first divided by its
            temperature.
        denominator: the sum of the numerators.
        space: the mean is over logits or over probabilities.
    """

    parts: tuple[tuple[WeightCandidate, int, float], ...]
    denominator: int
    space: OutputSpace

    def __post_init__(self) -> None:
        """Refuse (ValueError) coefficients that do not sum to one, and impossible temperatures."""
        _check_sum([n for _, n, _ in self.parts], self.denominator)
        check_temperatures(t for _, _, t in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each ingredient's weights, each one once."""
        return tuple(_shares(self))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """One for each checkpoint: its member's coefficient times its own in that member.

        A checkpoint in several members has the sum of these products.
        """
        return tuple(_shares(self).values())

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs."""
        return tuple(member for member, _, _ in self.parts)


class VRFEnsemble(Record, tag="vrf_ensemble", frozen=True, kw_only=True):
    """omega p_ft + (1 - omega) p_ref, omega = sigmoid(-(d - a) / b) (VRF, arXiv:2411.06966).

    d(x) is the squared L2 distance from the fine-tuned model's normalised features of x to their
    k-th nearest neighbour in the failure set. The failure set contains the training samples that
    the fine-tuned model gets right and the reference model gets wrong.

    Attributes:
        fine_tuned, reference: the two models.
        temperatures: of the fine-tuned model and of the reference. They calibrate p_ft and p_ref.
        failures: normalised features of the failure set, in the store.
        k, a, b: parameters of the formula.
        distance: has one value. It stays because the digests of stored candidates contain it.
    """

    fine_tuned: WeightCandidate
    reference: WeightCandidate
    temperatures: tuple[float, float]
    failures: BlobRef
    k: Annotated[int, Meta(ge=1)]
    a: float
    b: float
    distance: Literal["squared_l2"] = "squared_l2"

    def __post_init__(self) -> None:
        """Refuse (ValueError) parameters for which the formula has no value."""
        check_temperatures(self.temperatures)
        if not (math.isfinite(self.a) and math.isfinite(self.b) and self.b > 0):
            raise ValueError(f"a = {self.a}, b = {self.b}: write finite numbers, and b above 0")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each ingredient's weights, in the order of the candidate."""
        return tuple(dict.fromkeys(c for m in self.members for c in m.checkpoints))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Empty: the coefficients differ from sample to sample."""
        return ()

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs."""
        return (self.fine_tuned, self.reference)


class EntropyEnsemble(Record, tag="entropy_ensemble", frozen=True, kw_only=True):
    """sum_i w_i(x) p_i(x), w_i(x) = exp(-H_i(x)) / sum_j exp(-H_j(x)) (DaWin, arXiv:2410.03782).

    H_i(x) is the entropy of p_i(x), in nats: the surer a member is of a sample, the more it counts.

    Attributes:
        parts: (model, temperature). A member's logits are first divided by its temperature.
    """

    parts: Annotated[tuple[tuple[WeightCandidate, float], ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse (ValueError) impossible temperatures."""
        check_temperatures(t for _, t in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each ingredient's weights, each one once."""
        return tuple(dict.fromkeys(c for m in self.members for c in m.checkpoints))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Empty: the coefficients differ from sample to sample."""
        return ()

    @property
    def members(self) -> tuple[WeightCandidate, ...]:
        """The models that inference runs."""
        return tuple(member for member, _ in self.parts)


OutputCandidate = OutputEnsemble | VRFEnsemble | EntropyEnsemble
"""A candidate that mixes the outputs of its members."""

Candidate = WeightCandidate | OutputCandidate
"""Any soup or ensemble under consideration."""


LARGEST = 2**62
"""Larger numerators do not fit into the integers of torch."""


def _check_sum(numerators: Sequence[int], denominator: int) -> None:
    """Raise ValueError unless numerators / denominator are coefficients that sum to one."""
    if sum(numerators) != denominator or denominator <= 0:
        raise ValueError(f"coefficients {list(numerators)} / {denominator} do not sum to 1")
    if max(map(abs, numerators)) > LARGEST:
        raise ValueError(f"the coefficients {list(numerators)} / {denominator} are too large")


def check_temperatures(temperatures: Iterable[float]) -> None:
    """Raise ValueError unless all temperatures are finite and above 0."""
    for temperature in temperatures:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"the temperature {temperature} is not a finite number above 0")


def _shares(ensemble: OutputEnsemble) -> dict[str, float]:
    shares: dict[str, float] = {}
    for member, n, _ in ensemble.parts:
        for sha, own in zip(member.checkpoints, member.coefficients, strict=True):
            shares[sha] = shares.get(sha, 0.0) + own * n / ensemble.denominator
    return shares


def weight_soup(parts: Sequence[tuple[str, int]], denominator: int) -> WeightSoup:
    """A soup in lowest terms.

    Equal checkpoints are joined. Checkpoints with coefficient 0 are dropped.

    Args:
        parts: (SHA-256 of the weights, numerator) for each ingredient.
        denominator: the sum of the numerators.

    Raises:
        ValueError: no part is left, or the coefficients do not sum to one.
    """
    _check_sum([n for _, n in parts], denominator)
    joined: dict[str, int] = {}
    for sha, n in parts:
        joined[sha] = joined.get(sha, 0) + n
    kept = [(sha, n) for sha, n in joined.items() if n != 0]
    common = math.gcd(denominator, *(n for _, n in kept))
    return WeightSoup(
        parts=tuple((sha, n // common) for sha, n in kept), denominator=denominator // common
    )


def mean_of(checkpoints: Sequence[str]) -> WeightSoup:
    """The uniform soup of checkpoints (SHA-256 of their weights), in the given order."""
    return weight_soup([(sha, 1) for sha in checkpoints], len(checkpoints))


def estimated(checkpoint: str) -> WeightSoup:
    """A single model (SHA-256 of its weights) whose BatchNorm statistics are estimated."""
    return structs.replace(mean_of([checkpoint]), statistics="estimated")


def soups_of_one(checkpoints: Sequence[str], pool: Pool) -> list[WeightSoup]:
    """Single models with BatchNorm statistics as the soups of their pool have them.

    They are estimated for checkpoints whose training moved them.

    Args:
        checkpoints: SHA-256 of the weights of each model.
        pool: the pool of the models.
    """
    moved = pool.moved
    return [estimated(sha) if sha in moved else mean_of([sha]) for sha in checkpoints]


def is_estimated(model: WeightCandidate) -> bool:
    """Whether a model is one checkpoint with estimated BatchNorm statistics."""
    return isinstance(model, WeightSoup) and model.statistics is not UNSET


def as_trained(model: WeightCandidate) -> bool:
    """Whether a model is one checkpoint with the BatchNorm statistics of its own training."""
    return len(model.checkpoints) == 1 and not is_estimated(model)


def ensemble_of(
    parts: Sequence[tuple[WeightCandidate, int, float]], denominator: int, space: OutputSpace
) -> OutputEnsemble:
    """An ensemble in lowest terms.

    Equal members are joined. Members with coefficient 0 are dropped.

    Args:
        parts: (model, numerator, temperature) for each member.
        denominator: the sum of the numerators.
        space: the mean is over logits or over probabilities.

    Raises:
        ValueError: no part is left, or the coefficients do not sum to one.
    """
    _check_sum([n for _, n, _ in parts], denominator)
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
"""Learned coefficients are stored as multiples of 1e-6. A product n * theta is then exact in
float64: n has 20 bits and theta 24, and float64 has 53."""


def quantised(shares: Sequence[float]) -> tuple[int, ...]:
    """Rounded numerators, over the denominator QUANTUM, of shares that sum to one.

    The largest share takes the rest of the rounding, so that the numerators sum to QUANTUM.
    """
    numerators = [round(s * QUANTUM) for s in shares]
    numerators[max(range(len(shares)), key=lambda i: shares[i])] += QUANTUM - sum(numerators)
    return tuple(numerators)


class Step(Record, frozen=True, kw_only=True):
    """One decision of a recipe: the candidate, its result, and whether the recipe kept it."""

    candidate: Candidate
    result: Scores | Tally | Rejected
    accepted: bool


class DialPoint(Record, frozen=True, kw_only=True):
    """A point of a curve between the anchor and a fine-tuned model.

    Attributes:
        alpha: 0 is the anchor, 1 the fine-tuned model.
        held_out: accuracy on held-out data, or the mean of the graded metric.
        proxy: the mean of the same over the proxy shifts.
        excess: the most by which its loss exceeds that of the best point, with the confidence of
            the dial; see `maths.excess`.
        dominated: another point is at least as good on both, and better on one.
    """

    alpha: float
    held_out: float
    proxy: float
    excess: float
    dominated: bool


class Dial(Record, frozen=True, kw_only=True):
    """The choice of a point of a curve by proxy shifts.

    Attributes:
        eps: how much more loss than the best point the chosen one may have.
        confidence: with which it has not more.
        samples: number of held-out samples.
        proxies: names of the proxy shifts.
        points: the curve, from the anchor on.
        best: place in `points` of the best point on held-out data.
        chosen: place in `points` of the chosen one.
    """

    eps: float
    confidence: float
    samples: int
    proxies: tuple[str, ...]
    points: tuple[DialPoint, ...]
    best: int
    chosen: int


class Outcome(Record, frozen=True, kw_only=True):
    """A recipe's choice, with every step to it. It is fixed before any split is reported.

    Attributes:
        name: unique among the outcomes of a sweep.
        recipe: name of the recipe.
        options: the recipe's options, with their values.
        candidate: the chosen soup or ensemble.
        held_out: its scores on held-out data.
        trace: the decisions of the recipe, in order.
        notes: remarks for the report.
        dial: the curve that it was chosen from. Unset: by no dial.
    """

    name: str
    recipe: str
    options: dict[str, str | int | float]
    candidate: Candidate
    held_out: Scores
    trace: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    dial: Dial | UnsetType = UNSET
