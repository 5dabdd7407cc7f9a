"""Model Stock (arXiv:2403.19522): interpolate from theta_0 to the mean, using only angles.

Per tensor: cos = mean pairwise cosine of theta_i - theta_0, t = K cos / (1 + (K - 1) cos), theta =
t mean(theta_i) + (1 - t) theta_0. No data are used.
"""

from __future__ import annotations

import math

from soupray.core.candidates import QUANTUM, LayerSoup, Outcome, mean_of
from soupray.core.ports import Selection
from soupray.core.requests import Gram, Matrix
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe, single

ROUNDING = 1e-9
"""Tolerance for t in float64: with equal models, t is 1 up to this rounding error."""


def _model_stock(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the soup; a tensor that no trial changed stays equal to that of theta_0."""
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
    """Return t for one tensor.

    A model that did not change the tensor has no direction: its cosines count as 0. If the models
    move in opposite directions (1 + (K - 1) cos <= 0), the result is minus infinity, which the
    caller limits to 0.

    Args:
        gram: [K, K] inner products of theta_i - theta_0.

    Returns:
        t; 0 if no model changed the tensor, 1 for a single model.
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
    when="Where there are few held-out data, or none to spare: it chooses on none.",
    paper="Jang et al. 2024, arXiv:2403.19522",
    kind="soup",
    costs="1",
    choose=_model_stock,
    cost=lambda pool, options: Cost(scored=1, models=1, mixtures=1),
)
