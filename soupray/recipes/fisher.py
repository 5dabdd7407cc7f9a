"""Fisher-weighted average (Matena and Raffel, arXiv:2111.09832).

theta_j = sum_i F_ij theta_ij / sum_i F_ij: what a model is sure of counts for more. The diagonal
Fisher information of each ingredient comes from training samples, one gradient a sample.
"""

from __future__ import annotations

from soupray.core.candidates import FisherSoup, Outcome
from soupray.core.ports import Selection
from soupray.core.requests import Fisher

SAMPLES = 100
"""Training samples for each ingredient."""


def fisher(
    selection: Selection, earlier: tuple[Outcome, ...], *, samples: int = SAMPLES
) -> list[Outcome]:
    """The Fisher-weighted mean of the whole pool."""
    pool = selection.pool.checkpoints
    known = selection.measure([Fisher(checkpoint=sha, samples=samples) for sha in pool])
    candidate = FisherSoup(
        parts=tuple((sha, f.sha256, 1) for sha, f in zip(pool, known, strict=True))
    )
    (scores,) = selection.scores([candidate])
    return [
        Outcome(
            name="fisher",
            recipe="fisher",
            options={"samples": samples},
            candidate=candidate,
            held_out=scores,
        )
    ]
