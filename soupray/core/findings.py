"""What a pre-flight check found of a pool, as it is stored: records alone."""

from __future__ import annotations

from typing import Literal

from soupray.core.records import CheckpointRef, Record

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "not_finite", "differs", "integer", "duplicate", "unchanged", "far", "apart", "below_init",
    "barrier", "diverged", "alone",
]  # fmt: skip


class Finding(Record, frozen=True, kw_only=True):
    """A problem or fact about some trials of a pool, and advice. One sentence each.

    `error`: no soup can be made. `warning`: these ingredients harm a soup. `note`: useful to know.
    """

    severity: Severity
    kind: Kind
    trials: tuple[str, ...]
    what: str
    advice: str


class IngredientRow(Record, frozen=True, kw_only=True):
    """A row of the report: held-out accuracy, distance |theta_i - theta_0|, angles in degrees.

    `angle_others` is the median angle to the other ingredients. `with_best` is the held-out
    accuracy of the mean with the best ingredient. None: not measured, or no direction. `finds`:
    kinds of the findings of this ingredient.
    """

    trial: str
    hparams: dict[str, float | int | str]
    held_out: float
    standard_error: float
    distance: float | None
    angle_best: float | None
    angle_others: float | None
    with_best: float | None
    finds: tuple[str, ...]


class PairRow(Record, frozen=True, kw_only=True):
    """Held-out accuracy of two ingredients and of the mean of their weights."""

    trials: tuple[str, str]
    ends: tuple[float, float]
    middle: float
    advantage: float


class Report(Record, frozen=True, kw_only=True):
    """The result of a pre-flight check; each entry of `verdict` is one or two sentences."""

    averageable: bool
    init: CheckpointRef
    n: int
    verdict: tuple[str, ...]
    findings: tuple[Finding, ...]
    ingredients: tuple[IngredientRow, ...]
    pairs: tuple[PairRow, ...]
