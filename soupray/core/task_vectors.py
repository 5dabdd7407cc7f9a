"""Soups of task vectors tau_i = theta_i - theta_0 that are made sparse before they are added."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from soupray.core.names import Sha256
from soupray.core.records import Record, digest


class TiesSoup(Record, tag="ties_soup", frozen=True, kw_only=True):
    """theta_0 + scale * TIES(tau_1, ..., tau_K) (TIES-Merging, arXiv:2306.01708, algorithm 1).

    Of each task vector, the entries are kept whose magnitude reaches its threshold. For each entry,
    the sign of the sum of the kept ones is elected; the mean is over those that have this sign. An
    entry without an elected sign stays that of theta_0.

    Attributes:
        origin: SHA-256 of theta_0.
        parts: (SHA-256 of theta_i, threshold) for each ingredient.
        scale: lambda of the paper.
    """

    origin: Sha256
    parts: Annotated[
        tuple[tuple[Sha256, Annotated[float, Meta(ge=0)]], ...],
        Meta(min_length=1),
    ]
    scale: float

    def __post_init__(self) -> None:
        """Refuse (ValueError) numbers that are not finite."""
        _check_finite("scale", self.scale)
        for _, threshold in self.parts:
            _check_finite("threshold", threshold)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def models(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each theta_i."""
        return tuple(sha for sha, _ in self.parts)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of theta_0 and of each theta_i."""
        return (self.origin, *self.models)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Those of the whole task vectors: the true ones differ from element to element."""
        return _coefficients(self.scale, len(self.parts))

    @property
    def members(self) -> tuple[TiesSoup, ...]:
        """The models that inference runs: the soup is one model."""
        return (self,)


class DareSoup(Record, tag="dare_soup", frozen=True, kw_only=True):
    """theta_0 + scale / K * sum_i m_i tau_i / (1 - drop) (DARE, arXiv:2311.03099, section 3).

    m_i is 0 for an entry with the probability `drop`, else 1. It follows from the seed, the
    checkpoint, and the name and position of the entry: it is the same on every machine.

    Attributes:
        origin: SHA-256 of theta_0.
        models: SHA-256 of the K models theta_i.
        drop: p of the paper.
        seed: of the random numbers.
        scale: the factor of the mean of the task vectors.
    """

    origin: Sha256
    models: Annotated[tuple[Sha256, ...], Meta(min_length=1)]
    drop: Annotated[float, Meta(ge=0, lt=1)]
    seed: Annotated[int, Meta(ge=0)]
    scale: float

    def __post_init__(self) -> None:
        """Refuse (ValueError) a scale that is not finite."""
        _check_finite("scale", self.scale)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the record: the candidate's name in caches and recipe files."""
        return digest(self)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """SHA-256 (hex) of theta_0 and of each theta_i."""
        return (self.origin, *self.models)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Those of the whole task vectors: the true ones differ from element to element."""
        return _coefficients(self.scale, len(self.models))

    @property
    def members(self) -> tuple[DareSoup, ...]:
        """The models that inference runs: the soup is one model."""
        return (self,)


TaskVectorSoup = TiesSoup | DareSoup
"""A model whose task vectors are made sparse: it always differs from all its checkpoints."""


def _coefficients(scale: float, k: int) -> tuple[float, ...]:
    return (1 - scale, *(scale / k for _ in range(k)))


def _check_finite(name: str, number: float) -> None:
    if not math.isfinite(number):
        raise ValueError(f"the {name} {number} is not a finite number")
