"""The models from which other recipes continue: the best single model and the best soup."""

from __future__ import annotations

from soupray.core.candidates import (
    Candidate,
    LayerSoup,
    Step,
    WeightSoup,
    mean_of,
    weight_soup,
)
from soupray.core.errors import ConfigError
from soupray.core.ports import Selection
from soupray.core.records import Scores
from soupray.recipes.recipe import Earlier

Model = WeightSoup | LayerSoup
"""A model given by coefficients, which can be interpolated exactly."""


def starts(selection: Selection, earlier: Earlier) -> list[tuple[str, Model]]:
    """Return (name, theta_1) for the best single model and for the best soup on held-out data.

    A soup that equals the best single model is left out.
    """
    (single,) = (o for o in earlier.outcomes if o.recipe == "best_single")
    soups = [o for o in earlier.soups if isinstance(o.candidate, Model)]
    best = sorted(soups, key=lambda o: (-selection.value(o.held_out), o.name))[:1]
    chosen = [single] + [o for o in best if o.candidate != single.candidate]
    return [(o.name, o.candidate) for o in chosen if isinstance(o.candidate, Model)]


def named(selection: Selection, earlier: Earlier, name: str) -> tuple[str, Model]:
    """Return (name, theta_1) of the outcome called `name`, or of the trial whose key starts so.

    Args:
        selection: the pool.
        earlier: outcomes of the recipes that ran before.
        name: name of an outcome, or the start of a trial's key.

    Raises:
        ConfigError: no outcome or trial has this name, or several trials have it.
    """
    offered = {
        o.name: o.candidate
        for o in earlier.outcomes
        if isinstance(o.candidate, Model) and o.recipe != "anchor"
    }
    if name in offered:
        return name, offered[name]
    trials = {i.trial.key: i.checkpoint.sha256 for i in selection.pool.ingredients}
    found = [key for key in trials if key.startswith(name)]
    if len(found) != 1:
        keys = found or list(trials)
        raise ConfigError(
            f"theta_1 = {name!r} names no soup of this run, and {len(found)} trials' keys begin "
            f"so. Soups: {', '.join(offered)}; ask for others too (--all). Trials: "
            f"{', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}."
        )
    return found[0], mean_of([trials[found[0]]])


LINES = 2
"""Largest number of models that `starts` returns, and so of lines of a recipe."""


def curve(candidates: list[Candidate], scores: list[Scores], chosen: int) -> tuple[Step, ...]:
    """Return the trace of a grid of candidates.

    Args:
        candidates: the points of the grid.
        scores: their held-out scores.
        chosen: index of the chosen point.
    """
    return tuple(
        Step(candidate=c, result=s, accepted=i == chosen)
        for i, (c, s) in enumerate(zip(candidates, scores, strict=True))
    )


def interpolate(anchor: str, theta_1: Model, numerator: int, grid: int) -> Model:
    """Return (1 - a) anchor + a theta_1 for a = numerator / grid, as exact fractions.

    For a = 0 and a = 1, the result is the record of the anchor and theta_1 itself, so the bytes are
    equal too.

    Args:
        anchor: digest of the anchor.
        theta_1: the other end of the line.
        numerator: from 0 to `grid`.
        grid: number of steps of the grid.
    """
    if numerator == 0:
        return mean_of([anchor])
    if numerator == grid:
        return theta_1
    rest = (grid - numerator) * theta_1.denominator
    if isinstance(theta_1, WeightSoup):
        parts = [(anchor, rest), *((sha, numerator * n) for sha, n in theta_1.parts)]
        return weight_soup(parts, grid * theta_1.denominator)

    def mixed(numerators: tuple[int, ...]) -> tuple[int, ...]:
        return (rest, *(numerator * n for n in numerators))

    return LayerSoup(
        checkpoints=(anchor, *theta_1.checkpoints),
        layers=tuple((names, mixed(numerators)) for names, numerators in theta_1.layers),
        rest=mixed(theta_1.rest),
        denominator=grid * theta_1.denominator,
    )
