"""Uniform soup: the mean of all ingredients (Model soups, arXiv:2203.05482). Uses no data."""

from __future__ import annotations

from soupray.core.candidates import Outcome, mean_of
from soupray.core.ports import Selection


def uniform(selection: Selection, earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """Mean of the whole pool; the held-out score is for the ranking only."""
    candidate = mean_of(selection.pool.checkpoints)
    (scores,) = selection.scores([candidate])
    return [
        Outcome(name="uniform", recipe="uniform", options={}, candidate=candidate, held_out=scores)
    ]
