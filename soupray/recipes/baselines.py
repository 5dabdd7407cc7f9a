"""What every recipe is compared with: the anchor, and the best single ingredient."""

from __future__ import annotations

from soupray.core.candidates import Outcome, mean_of
from soupray.core.ports import Selection


def anchor(selection: Selection, earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """The reference model that the pool descends from, as it is."""
    candidate = mean_of([selection.pool.anchor.sha256])
    (scores,) = selection.scores([candidate])
    name = selection.pool.anchor_name
    return [Outcome(name=name, recipe="anchor", options={}, candidate=candidate, held_out=scores)]


def best_single(selection: Selection, earlier: tuple[Outcome, ...]) -> list[Outcome]:
    """The pool's first ingredient: most held-out samples right, ties by trial key."""
    best = selection.pool.ingredients[0]
    return [
        Outcome(
            name="best_single",
            recipe="best_single",
            options={},
            candidate=mean_of([best.checkpoint.sha256]),
            held_out=best.held_out,
        )
    ]
