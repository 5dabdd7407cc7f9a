"""Model Stock (arXiv:2403.19522): how far to go from theta_0 to the mean, from angles alone.

Per tensor: cos = mean pairwise cosine of theta_i - theta_0, t = K cos / (1 + (K - 1) cos),
theta = t mean(theta_i) + (1 - t) theta_0. No data are used.
"""

from __future__ import annotations

import math

from soupray.core.candidates import QUANTUM, LayerSoup, Outcome, mean_of
from soupray.core.ports import Selection
from soupray.core.requests import Gram, Matrix
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, single

ROUNDING = 1e-9
"""Of t in float64; equal models give 1 up to this."""


def _model_stock(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """The soup; a tensor that no trial changed stays that of theta_0."""
    pool = selection.pool
    models = pool.checkpoints
    (grams,) = selection.measure([Gram(checkpoints=tuple(models), origin=pool.init.sha256)])
    layers: dict[int, list[str]] = {}
    clamped = []
    for name, gram in grams.items():
        t = ratio(gram)
        if not -ROUNDING <= t <= 1 + ROUNDING:
            clamped.append(name)
        layers.setdefault(round(min(max(t, 0.0), 1.0) * QUANTUM), []).append(name)
    k = len(models)

    def numerators(t: int) -> tuple[int, ...]:
        return ((QUANTUM - t) * k, *[t] * k)

    candidate = LayerSoup(
        checkpoints=(pool.init.sha256, *models),
        layers=tuple((tuple(names), numerators(t)) for t, names in sorted(layers.items())),
        rest=numerators(0),
        denominator=QUANTUM * k,
    )
    notes = (f"model_stock: t clamped to [0, 1] for {', '.join(clamped)}",) if clamped else ()
    made = candidate if k > 1 else mean_of(models)
    return single(selection, "model_stock", made, notes=notes)


def ratio(gram: Matrix) -> float:
    """The t of one tensor, from the inner products [K, K] of its differences; 0 if none changed it.

    A model that did not change it has no direction there: its cosines count as 0. Where the
    models pull against each other (1 + (K - 1) cos <= 0) t is negative: the caller clamps it.
    """
    k = len(gram)
    norms = [math.sqrt(gram[i][i]) for i in range(k)]
    if k == 1:
        return 1.0
    if max(norms) == 0:
        return 0.0
    pairs = [
        gram[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0
        for i in range(k)
        for j in range(i)
    ]
    cos = sum(pairs) / len(pairs)
    below = 1 + (k - 1) * cos
    return k * cos / below if below > 0 else float("-inf")


MODEL_STOCK = Recipe(
    name="model_stock",
    summary="between init and mean, by the angles among the ingredients",
    paper="Jang et al. 2024, arXiv:2403.19522",
    kind="soup",
    costs="1",
    choose=_model_stock,
    cost=lambda pool, options: Cost(scored=1, models=1, mixtures=1),
)
