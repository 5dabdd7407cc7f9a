"""Learned soup (Model soups, arXiv:2203.05482, appendix): coefficients by gradient descent.

Minimise over w and beta the mean of CE(beta * f(x; sum_i softmax(w)_i theta_i), y) on held-out
data, with one w for the whole model or one for each tensor. The gradient by alpha_i is <d loss / d
theta, theta_i>; the evaluator computes it from one forward and backward pass. This takes the memory
of two models, and each step reads every ingredient twice (from the page cache, if all of them fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from soupray.core.candidates import (
    QUANTUM,
    Outcome,
    Step,
    WeightCandidate,
    quantised,
    weight_soup,
)
from soupray.core.ports import Selection
from soupray.core.records import Ingredient
from soupray.core.requests import TensorNames
from soupray.recipes.recipe import Cost, Earlier, Options, PoolSize, Recipe, single

if TYPE_CHECKING:
    from soupray.recipes.descent import Point

# `descent` is imported on use: NumPy and SciPy would make `--help` slow.


class LearnedOptions(Options, frozen=True, kw_only=True):
    """`lr` of Adam, `epochs` over the held-out data in batches of `batch_size`."""

    lr: Annotated[float, Meta(ge=1e-5, le=10.0)] = 0.05
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Meta(ge=1, le=10**6)] = 256


def _learned(selection: Selection, earlier: Earlier, options: LearnedOptions) -> list[Outcome]:
    """Learn one coefficient for each ingredient."""
    from soupray.recipes.descent import descend

    pool = selection.pool.checkpoints
    point = descend(selection, [()], **msgspec.structs.asdict(options))
    shares = quantised(point.shares[0])
    candidate = weight_soup(list(zip(pool, shares, strict=True)), QUANTUM)
    return [_outcome("learned", selection, candidate, point)]


def _learned_by_layer(
    selection: Selection, earlier: Earlier, options: LearnedOptions
) -> list[Outcome]:
    """Learn one coefficient for each ingredient and tensor."""
    from soupray.recipes.descent import descend, soup_at

    pool = selection.pool.checkpoints
    (names,) = selection.measure([TensorNames(checkpoint=pool[0])])
    groups = [(name,) for name in names]
    point = descend(selection, groups, **msgspec.structs.asdict(options))
    return [_outcome("learned_by_layer", selection, soup_at(pool, groups, point.w), point)]


def _outcome(name: str, selection: Selection, candidate: WeightCandidate, point: Point) -> Outcome:
    used = {"epochs": point.epochs, "beta": point.beta, "loss": point.loss}
    (made,) = single(selection, name, candidate, used)
    last = Step(candidate=candidate, result=made.held_out, accepted=True)
    return msgspec.structs.replace(made, trace=(last,))


def bytes_read(ingredients: Sequence[Ingredient], options: LearnedOptions) -> int:
    """Return how many bytes of weights a learned soup reads from disk.

    Each step needs every ingredient twice: for the soup and for its gradient. If all ingredients
    fit in the available memory, they stay in the page cache and are read once. The memory is that
    of the driver's machine; other nodes may have less.
    """
    size = sum(i.checkpoint.size_bytes for i in ingredients)
    steps = options.epochs * -(-ingredients[0].held_out.n // options.batch_size)
    return size if size <= available_memory() else 2 * steps * size


def available_memory() -> int:
    """Return the memory in bytes that this machine can give without swapping; 0 if unknown.

    The page cache counts as available.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(ln.split()[1]) * 1024 for ln in lines if ln.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0


def _cost(pool: PoolSize, options: LearnedOptions) -> Cost:
    """Count an epoch as one pass over the held-out data; each of its steps has another soup."""
    steps = options.epochs * -(-pool.held_out // options.batch_size)
    return Cost(decided=options.epochs, scored=1, models=1, mixtures=steps + 1)


LEARNED = Recipe(
    name="learned",
    summary="coefficients by gradient descent on held-out loss",
    paper="Wortsman et al. 2022, arXiv:2203.05482, appendix",
    kind="soup",
    costs="epochs, forward and backward",
    uses="held-out loss",
    options=LearnedOptions,
    choose=_learned,
    cost=_cost,
    reads=bytes_read,
)

LEARNED_BY_LAYER = Recipe(
    name="learned_by_layer",
    summary="the same, with coefficients of its own for each tensor",
    paper="Wortsman et al. 2022, arXiv:2203.05482, appendix",
    kind="soup",
    costs="epochs, forward and backward",
    uses="held-out loss",
    options=LearnedOptions,
    choose=_learned_by_layer,
    cost=_cost,
    reads=bytes_read,
)
