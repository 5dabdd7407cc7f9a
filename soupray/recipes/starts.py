"""The models from which other recipes continue: single models, and the best soup.

A single model has the BatchNorm statistics of its training, or estimated ones as a soup has. Where
recipes compare single models with soups, each single model has those that do better on held-out
data: no soup is then better than it for its statistics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from soupray.core.candidates import (
    Candidate,
    LayerSoup,
    Step,
    WeightSoup,
    estimated,
    mean_of,
    weight_soup,
)
from soupray.core.errors import ConfigError
from soupray.core.ports import Selection
from soupray.core.records import Scores
from soupray.recipes.baselines import BEST_UPDATED, updated
from soupray.recipes.recipe import Earlier

Model = WeightSoup | LayerSoup
"""A model given by coefficients, which can be interpolated exactly."""


class Single(NamedTuple):
    """A single model, and its held-out scores."""

    model: WeightSoup
    scores: Scores

    @property
    def checkpoint(self) -> str:
        """SHA-256 (hex) of its weights."""
        return self.model.checkpoints[0]


def singles(selection: Selection) -> list[Single]:
    """Return each ingredient as a single model, best first. The order of the pool breaks ties."""
    pool = selection.pool
    trained = [Single(mean_of([i.checkpoint.sha256]), i.held_out) for i in pool.ingredients]
    found = _better(selection, trained)
    return sorted(found, key=lambda one: -selection.value(one.scores))


def mean_among(known: Sequence[Single]) -> Callable[[Sequence[str]], WeightSoup]:
    """Return `mean_of`; where one checkpoint is left, the mean is its single model in `known`."""
    models = {one.checkpoint: one.model for one in known}

    def mean(checkpoints: Sequence[str]) -> WeightSoup:
        soup = mean_of(checkpoints)
        return soup if len(soup.checkpoints) > 1 else models[soup.checkpoints[0]]

    return mean


def anchor_of(selection: Selection) -> WeightSoup:
    """Return the anchor as a single model."""
    pool = selection.pool
    model = mean_of([pool.anchor.sha256])
    if pool.anchor.sha256 in pool.moved:
        (scores,) = selection.scores([model])
        ((model, _),) = _better(selection, [Single(model, scores)])
    return model


def _better(selection: Selection, trained: Sequence[Single]) -> list[Single]:
    """Return single models with the statistics that do better; those of their training if equal."""
    moved = selection.pool.moved
    models = [estimated(one.checkpoint) for one in trained if one.checkpoint in moved]
    scored = map(Single, models, selection.scores(models) if models else [])
    others = {one.checkpoint: one for one in scored}
    return [
        max(one, others.get(one.checkpoint, one), key=lambda s: selection.value(s.scores))
        for one in trained
    ]


def starts(selection: Selection, earlier: Earlier) -> list[tuple[str, Model]]:
    """Return (name, theta_1) for the best single model and for the best soup on held-out data.

    A soup that equals the best single model is left out.
    """
    single = max(
        (o for o in earlier.outcomes if o.recipe == "best_single" or o.name == BEST_UPDATED),
        key=lambda o: selection.value(o.held_out),
    )
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
    anchor = selection.pool.anchor_name
    offered = {
        o.name: o.candidate
        for o in earlier.outcomes
        if isinstance(o.candidate, Model) and o.name not in (anchor, updated(anchor))
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
    return found[0], mean_among(singles(selection))([trials[found[0]]])


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


def interpolate(anchor: WeightSoup, theta_1: Model, numerator: int, grid: int) -> Model:
    """Return (1 - a) anchor + a theta_1 for a = numerator / grid, as exact fractions.

    For a = 0 and a = 1, the result is the record of the anchor and theta_1 itself, so the bytes are
    equal too.

    Args:
        anchor: the single model at a = 0.
        theta_1: the other end of the line.
        numerator: from 0 to `grid`.
        grid: number of steps of the grid.
    """
    if numerator == 0:
        return anchor
    if numerator == grid:
        return theta_1
    rest, (start,) = (grid - numerator) * theta_1.denominator, anchor.checkpoints
    if isinstance(theta_1, WeightSoup):
        parts = [(start, rest), *((sha, numerator * n) for sha, n in theta_1.parts)]
        return weight_soup(parts, grid * theta_1.denominator)

    def mixed(numerators: tuple[int, ...]) -> tuple[int, ...]:
        return (rest, *(numerator * n for n in numerators))

    return LayerSoup(
        checkpoints=(start, *theta_1.checkpoints),
        layers=tuple((names, mixed(numerators)) for names, numerators in theta_1.layers),
        rest=mixed(theta_1.rest),
        denominator=grid * theta_1.denominator,
    )
