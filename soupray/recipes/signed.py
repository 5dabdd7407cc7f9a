"""Signed learned soup (MEHL-Soup, arXiv:2407.03641): coefficients by block that sum to one.

theta = centre + sum_i x_bi d_bi in each block b, where the centre is the mean of the models and
d_bi is the unit vector from the centre to model i. Coefficients may be negative: the soup can leave
the hull of the models. The x are found by Adam on held-out loss, as in `learned`, from 0, the
uniform soup.

The paper holds a mini-batch of models in memory, and centres anew for each. Here a gradient takes
the memory of two models in any case (see `learned`), so that all x move at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from soupray.core.blocks import by_block
from soupray.core.candidates import QUANTUM, LayerSoup, Outcome, Step, quantised
from soupray.core.ports import Selection
from soupray.core.requests import Gradient, Gram, Matrix, TensorNames
from soupray.recipes.learned import LearnedOptions, bytes_read, cost_of_steps
from soupray.recipes.recipe import (
    MULTI_LABEL,
    ONE_CLASS,
    REGRESSION,
    SEGMENTATION,
    Earlier,
    Recipe,
    single,
)

if TYPE_CHECKING:
    from soupray.core.arrays import Float64

# NumPy and `descent` are imported on use: they would make `--help` slow.


STEPS = 100
"""Steps without `epochs`. On the demo, the loss is then that of `learned_by_layer` after 500."""


class SignedOptions(LearnedOptions, frozen=True, kw_only=True):
    """Options of learned_signed."""

    lr: Annotated[
        float, Meta(ge=1e-5, le=10.0, description="learning rate of Adam: a length in weights")
    ] = 0.01
    steps: Annotated[int, Meta(ge=1, le=10**5, description="steps of Adam")] = STEPS


def _learned_signed(
    selection: Selection, earlier: Earlier, options: SignedOptions
) -> list[Outcome]:
    import numpy as np

    from soupray.recipes.descent import Adam, batches

    pool = selection.pool
    models, n = pool.checkpoints, pool.ingredients[0].held_out.n
    (names,) = selection.measure([TensorNames(checkpoint=models[0])])
    (grams,) = selection.measure([Gram(checkpoints=tuple(models), origin=pool.init.sha256)])
    groups = by_block(names)
    lengths = np.array([distances(grams, group) for group in groups])
    x, loss = np.zeros(lengths.shape), float("nan")
    adam = Adam(options.lr, x.size)
    for rows in batches(n, options.batch_size, options.total(n)):
        soup = _soup(models, groups, shares_of(x, lengths))
        (slope,) = selection.measure([Gradient(soup=soup, beta=1.0, rows=rows)])
        step = adam.step(by_x(np.asarray(slope.coefficients)[:-1], lengths).ravel())
        x, loss = x + step.reshape(x.shape), slope.loss
    candidate = _soup(models, groups, shares_of(x, lengths))
    long = {"steps": options.steps} if options.epochs is None else {"epochs": options.epochs}
    used = {**long, "loss": round(loss, 6)}
    (made,) = single(selection, "learned_signed", candidate, used)
    last = Step(candidate=candidate, result=made.held_out, accepted=True)
    return [msgspec.structs.replace(made, trace=(last,))]


def distances(grams: Mapping[str, Matrix], group: Sequence[str]) -> Float64:
    """Return the distance of each model to the mean of all models, over a group of tensors.

    |theta_i - mean|^2 = G_ii - 2 mean_j G_ij + mean_jk G_jk for inner products G around any origin.

    Args:
        grams: [K, K] inner products of theta_i - theta_0 by the name of the tensor.
        group: names of tensors. Those without inner products (BatchNorm statistics) do not count.

    Returns:
        [K].
    """
    import numpy as np

    found = [np.asarray(grams[name]) for name in group if name in grams]
    gram = np.sum(found, axis=0) if found else np.zeros((len(next(iter(grams.values()))),) * 2)
    squares: Float64 = np.diag(gram) - 2 * gram.mean(axis=1) + gram.mean()
    # Rounding makes about 1e-16 of |theta_i - theta_0|^2 of what should be 0.
    zero = squares <= 1e-12 * np.diag(gram)
    return np.sqrt(np.where(zero, 0.0, squares))


def shares_of(x: Float64, lengths: Float64) -> Float64:
    """Return the coefficients of the models: 1/K + c_i - mean(c) with c = x / lengths.

    Args:
        x: [groups, K] coordinates along unit vectors.
        lengths: [groups, K] distances of the models to their mean. Where one is 0, x has no effect.

    Returns:
        [groups, K]; each row sums to one.
    """
    c = _divided(x, lengths)
    shares: Float64 = 1 / x.shape[1] + c - c.mean(axis=1, keepdims=True)
    return shares


def by_x(gradient: Float64, lengths: Float64) -> Float64:
    """Return the gradient by x, from the gradient by the coefficients. See `shares_of`.

    Args:
        gradient: [groups, K] by the coefficients.
        lengths: [groups, K].
    """
    return _divided(gradient - gradient.mean(axis=1, keepdims=True), lengths)


def _divided(numbers: Float64, lengths: Float64) -> Float64:
    import numpy as np

    quotients: Float64 = np.divide(numbers, lengths, out=np.zeros(numbers.shape), where=lengths > 0)
    return quotients


def _soup(models: list[str], groups: Sequence[tuple[str, ...]], shares: Float64) -> LayerSoup:
    rows = [quantised(row) for row in shares.tolist()]
    return LayerSoup(
        checkpoints=tuple(models),
        layers=tuple(zip(groups, rows, strict=True)),
        rest=rows[0],
        denominator=QUANTUM,
    )


LEARNED_SIGNED = Recipe(
    name="learned_signed",
    summary="as learned, by block, and coefficients may be negative",
    when="As `learned_by_layer`, where the best weights may lie beyond those that were trained.",
    paper="Li et al. 2024, arXiv:2407.03641",
    kind="soup",
    costs="100 steps, forward and backward",
    uses="held-out loss",
    options=SignedOptions,
    choose=_learned_signed,
    with_all=False,
    cost=cost_of_steps,
    reads=bytes_read,
    objectives=(ONE_CLASS, MULTI_LABEL, REGRESSION, SEGMENTATION),  # losses of samples add up
)
