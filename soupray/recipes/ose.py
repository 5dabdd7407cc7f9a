"""Output-space ensemble of a fine-tuned model and the anchor (WiSE-FT, arXiv:2109.01903).

a f_ft + (1 - a) f_anchor, of logits, or of probabilities that are calibrated by temperatures. The
best a on held-out data is chosen, end points included; with `dial` there is another outcome for
each curve (`recipes/dial.py`). Inference takes two forward passes per sample; WiSE-FT in weight
space takes one.
"""

from __future__ import annotations

from soupray.core.candidates import (
    Candidate,
    Outcome,
    OutputEnsemble,
    OutputSpace,
    WeightCandidate,
    ensemble_of,
)
from soupray.core.ports import Selection
from soupray.core.requests import Temperature
from soupray.recipes.dial import Curve, DialOption, dialled
from soupray.recipes.recipe import ENSEMBLE, ONE_CLASS, Cost, Earlier, Options, PoolSize, Recipe
from soupray.recipes.starts import LINES, anchor_of, curve, starts

GRID = 20
"""Number of steps of the grid a = 0, .05, ..., 1."""

SHORT: dict[OutputSpace, str] = {"logits": "logits", "probabilities": "probs"}
"""Names of the spaces in the names of entries."""


class OseOptions(Options, frozen=True, kw_only=True):
    """Options of ose."""

    dial: DialOption = None


def _ose(selection: Selection, earlier: Earlier, options: OseOptions) -> list[Outcome]:
    """Return the best a in both spaces for each fine-tuned model, and the dials."""
    anchor = anchor_of(selection)
    outcomes = []
    for name, fine_tuned in starts(selection, earlier):
        asked = [Temperature(candidate=fine_tuned), Temperature(candidate=anchor)]
        hot, cold = selection.measure(asked)
        for space in SHORT:
            t = (hot, cold) if space == "probabilities" else (1.0, 1.0)
            candidates: list[Candidate] = [
                mixed(fine_tuned, anchor, t, k, space) for k in range(GRID + 1)
            ]
            scores = selection.scores(candidates)
            best = max(range(GRID + 1), key=lambda k: (selection.value(scores[k]), -k))
            outcomes.append(
                Outcome(
                    name=f"ose({name}, {SHORT[space]})",
                    recipe="ose",
                    options={"theta_1": name, "space": space, "alpha": best / GRID},
                    candidate=candidates[best],
                    held_out=scores[best],
                    trace=curve(candidates, scores, best),
                )
            )
            if options.dial is not None:
                said: dict[str, str | int | float] = {"theta_1": name, "space": space}
                title, alphas = (
                    f"ose({name}, {SHORT[space]}, dial)",
                    [k / GRID for k in range(GRID + 1)],
                )
                along = Curve(title, "ose", said, alphas, candidates, scores)
                outcomes.append(dialled(selection, along, options.dial))
    return outcomes


def mixed(
    fine_tuned: WeightCandidate,
    anchor: WeightCandidate,
    temperatures: tuple[float, float],
    k: int,
    space: OutputSpace,
) -> OutputEnsemble:
    """Return the ensemble at a = k / GRID; a model with coefficient 0 is left out.

    Args:
        fine_tuned: the model with coefficient a.
        anchor: the model with coefficient 1 - a.
        temperatures: temperatures of the two models, in this order.
        k: numerator of a, from 0 to GRID.
        space: what is averaged.
    """
    parts = [(fine_tuned, k, temperatures[0]), (anchor, GRID - k, temperatures[1])]
    return ensemble_of(parts, GRID, space)


def _cost(pool: PoolSize, options: OseOptions) -> Cost:
    """Count the members on proxy shifts: on held-out data they are scored already."""
    return Cost(scored=pool.proxies * (LINES + 1) if options.dial is not None else 0)


OSE = Recipe(
    name="ose",
    summary="mix the outputs of anchor and fine-tuned model, one alpha for all samples",
    when="Where two forward passes are affordable: the same idea as `wise_ft`, on outputs.",
    paper="Wortsman et al. 2021, arXiv:2109.01903",
    kind="ensemble",
    costs="0: from stored logits",
    uses="held-out counts and NLL",
    passes="2",
    objectives=(ONE_CLASS,),  # class probabilities
    options=OseOptions,
    choose=_ose,
    cost=_cost,
    style=ENSEMBLE,
)
