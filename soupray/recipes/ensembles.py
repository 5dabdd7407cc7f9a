"""Ensembles that mix the outputs of K models; inference takes K forward passes per sample.

The mean of logits (default) or of probabilities, over all ingredients or over ingredients that are
chosen greedily. For probabilities, each model is first calibrated by its temperature
(arXiv:2110.12899).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import (
    Candidate,
    Outcome,
    OutputSpace,
    WeightCandidate,
    ensemble_of,
)
from soupray.core.ports import Accept, Selection
from soupray.core.requests import Temperature
from soupray.recipes.greedy import ACCEPT, Rule, add, begin, one_pass
from soupray.recipes.recipe import ENSEMBLE as STYLE
from soupray.recipes.recipe import Earlier, Options, Recipe, single
from soupray.recipes.starts import Single, singles


class EnsembleOptions(Options, frozen=True, kw_only=True):
    """Options of ensemble."""

    space: Annotated[
        OutputSpace, Meta(description="what is averaged; probabilities are calibrated first")
    ] = "logits"


class GreedyEnsembleOptions(EnsembleOptions, frozen=True, kw_only=True):
    """Options of greedy_ensemble."""

    accept: Annotated[Accept, ACCEPT] = "ge"


def _ensemble(selection: Selection, earlier: Earlier, options: EnsembleOptions) -> list[Outcome]:
    """Mix all ingredients with equal coefficients."""
    space, known = options.space, singles(selection)
    members = _calibrated(selection, known, space)
    candidate = _mean(selection.pool.checkpoints, members, space)
    return single(selection, "ensemble", candidate, {"space": space})


def _greedy_ensemble(
    selection: Selection, earlier: Earlier, options: GreedyEnsembleOptions
) -> list[Outcome]:
    """Choose the members greedily (arXiv:2203.05482), from stored logits."""
    space, known = options.space, singles(selection)
    members = _calibrated(selection, known, space)

    def make(checkpoints: Sequence[str]) -> Candidate:
        return _mean(checkpoints, members, space)

    rule = Rule(add, make, options.accept)
    first, *rest = [one.checkpoint for one in known]
    (scores,) = selection.scores([make([first])])
    kept = one_pass(selection, rule, begin(selection, rule, [first], scores), rest)
    used: dict[str, str | int | float] = {"space": space, "accept": options.accept}
    made = make(kept.checkpoints)
    return single(selection, "greedy_ensemble", made, used, kept.trace)


def _calibrated(
    selection: Selection, known: Sequence[Single], space: OutputSpace
) -> dict[str, tuple[WeightCandidate, float]]:
    """Return (model, temperature) of each single model, by its checkpoint."""
    found = [1.0] * len(known)
    if space == "probabilities":
        found = selection.measure([Temperature(candidate=one.model) for one in known])
    return {one.checkpoint: (one.model, t) for one, t in zip(known, found, strict=True)}


def _mean(
    kept: Sequence[str], members: dict[str, tuple[WeightCandidate, float]], space: OutputSpace
) -> Candidate:
    parts = [(model, 1, t) for model, t in (members[sha] for sha in kept)]
    return ensemble_of(parts, len(kept), space)


ENSEMBLE = Recipe(
    name="ensemble",
    summary="mean of the outputs of all ingredients",
    when="Where inference may cost K times as much: the bar that soups are measured against.",
    paper="Wortsman et al. 2022, arXiv:2203.05482",
    kind="ensemble",
    costs="0: from stored logits",
    passes="K",
    options=EnsembleOptions,
    choose=_ensemble,
    style=STYLE,
)

GREEDY_ENSEMBLE = Recipe(
    name="greedy_ensemble",
    summary="greedy over outputs instead of weights",
    when="As `ensemble`, with fewer members.",
    paper="Wortsman et al. 2022, arXiv:2203.05482",
    kind="ensemble",
    costs="0: from stored logits",
    uses="held-out counts",
    passes="up to K",
    options=GreedyEnsembleOptions,
    choose=_greedy_ensemble,
    style=STYLE,
)
