"""SLERP of the two best ingredients: spherical interpolation of their task vectors.

theta_0 + sin((1 - t) w) / sin(w) tau_1 + sin(t w) / sin(w) tau_2 for each tensor, where w is the
angle between the task vectors tau_i = theta_i - theta_0 of this tensor (Shoemake, SIGGRAPH 1985;
for task vectors: WARP, arXiv:2406.16768). It keeps their length, which a mean makes shorter. The
angle between whole weights, as mergekit takes it, is so small after fine-tuning that its SLERP is
nearly linear interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from soupray.core.candidates import QUANTUM, Candidate, LayerSoup, Outcome
from soupray.core.ports import Selection
from soupray.core.requests import Gram, Matrix
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, single
from soupray.recipes.starts import Single, curve, singles

GRID = 10
"""Number of steps of the grid t = 0, .1, ..., 1."""

PARALLEL = 0.9995
"""Above this |cosine|, interpolation is linear, as in mergekit: the sine would be near 0."""


def _slerp(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the best t on held-out data; the smaller one, nearer to the better model, on a tie."""
    first, *others = singles(selection)
    second = next((o for o in others if o.checkpoint != first.checkpoint), None)
    if second is None:
        note = "slerp: no second model in the pool: it is the best single model"
        return single(selection, "slerp", first.model, {"t": 0.0}, notes=[note])
    init = selection.pool.init.sha256
    pair = (first.checkpoint, second.checkpoint)
    (grams,) = selection.measure([Gram(checkpoints=pair, origin=init)])
    candidates = [_at(k, (first, second), init, grams) for k in range(GRID + 1)]
    scores = selection.scores(candidates)
    best = max(range(GRID + 1), key=lambda k: (selection.value(scores[k]), -k))
    return [
        Outcome(
            name="slerp",
            recipe="slerp",
            options={"t": best / GRID},
            candidate=candidates[best],
            held_out=scores[best],
            trace=curve(candidates, scores, best),
        )
    ]


def _at(k: int, ends: tuple[Single, Single], init: str, grams: Mapping[str, Matrix]) -> Candidate:
    """Return the model at t = k / GRID: one of the ends, or a soup by tensor."""
    if k in (0, GRID):
        return ends[k // GRID].model
    layers: dict[tuple[int, ...], list[str]] = {}
    for name, gram in grams.items():
        shares = [round(s * QUANTUM) for s in shares_at(k / GRID, gram)]
        layers.setdefault((QUANTUM - sum(shares), *shares), []).append(name)
    return LayerSoup(
        checkpoints=(init, *(end.checkpoint for end in ends)),
        layers=tuple((tuple(names), row) for row, names in layers.items()),
        rest=(0, (GRID - k) * QUANTUM // GRID, k * QUANTUM // GRID),
        denominator=QUANTUM,
    )


def shares_at(t: float, gram: Matrix) -> tuple[float, float]:
    """Return the factors of the two task vectors of one tensor.

    A tensor that one of the models did not change has no angle, and opposite task vectors have many
    arcs between them: there, interpolation is linear.

    Args:
        t: 0 for the first model, 1 for the second.
        gram: inner products of the task vectors.
    """
    (a, product), (_, b) = gram
    cos = product / math.sqrt(a * b) if a > 0 and b > 0 else 1.0
    if abs(cos) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cos)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


SLERP = Recipe(
    name="slerp",
    summary="from the best ingredient to the second best, along an arc around the init",
    when="Where two trials are good and differ: it goes as far from the init as they did.",
    paper="Shoemake 1985; Rame et al. 2024, arXiv:2406.16768",
    kind="soup",
    costs="9",
    uses="held-out counts",
    choose=_slerp,
    cost=lambda pool, options: Cost(scored=GRID - 1, models=1, mixtures=GRID - 1),
)
