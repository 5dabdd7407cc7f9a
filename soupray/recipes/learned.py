"""Learned soup (Model soups, arXiv:2203.05482, appendix): coefficients by gradient descent.

Minimise over w and beta the mean of CE(beta * f(x; sum_i softmax(w)_i theta_i), y) on held-out
data, with one w for the whole model or one for each tensor. The gradient by alpha_i is <d loss / d
theta, theta_i>; the evaluator computes it from one forward and backward pass. This takes the memory
of two models, and each step reads every ingredient twice (from the page cache, if all of them fit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from soupray.core.requests import TensorNames
from soupray.core.trials import Ingredient
from soupray.recipes.recipe import (
    MULTI_LABEL,
    ONE_CLASS,
    SEGMENTATION,
    Cost,
    Earlier,
    Option,
    Options,
    PoolSize,
    Recipe,
    single,
)

if TYPE_CHECKING:
    from soupray.recipes.descent import Point

# `descent` is imported on use: NumPy and SciPy would make `--help` slow.


STEPS = 500
"""Steps without `epochs`: the five epochs of the paper were 510 steps (26 000 samples). Epochs of a
few samples are few steps, after which the coefficients have hardly moved."""


class LearnedOptions(Options, frozen=True, kw_only=True):
    """Options of learned and learned_by_layer."""

    lr: Annotated[float, Meta(ge=1e-5, le=10.0, description="learning rate of Adam")] = 0.05
    steps: Annotated[int, Meta(ge=1, le=10**5, description="steps of Adam")] = STEPS
    epochs: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        Meta(description="passes over the held-out data, in place of `steps`"),
    ] = None
    batch_size: Annotated[
        int, Meta(ge=1, le=10**6, description="held-out samples in each step")
    ] = 256

    def total(self, held_out: int) -> int:
        """Return the number of steps for this number of held-out samples."""
        each = -(-held_out // self.batch_size)
        return self.steps if self.epochs is None else self.epochs * each


def _complete(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return the options with the number of steps, if nothing says how long to descend.

    Choices from before there were steps, when the default was five epochs, are then other choices.
    """
    return {**({} if "epochs" in options else {"steps": STEPS}), **options}


def _learned(selection: Selection, earlier: Earlier, options: LearnedOptions) -> list[Outcome]:
    """Learn one coefficient for each ingredient."""
    pool = selection.pool.checkpoints
    point = _descend(selection, [()], options)
    shares = quantised(point.shares[0])
    candidate = weight_soup(list(zip(pool, shares, strict=True)), QUANTUM)
    return [_outcome("learned", selection, candidate, point, options)]


def _learned_by_layer(
    selection: Selection, earlier: Earlier, options: LearnedOptions
) -> list[Outcome]:
    """Learn one coefficient for each ingredient and tensor."""
    from soupray.recipes.descent import soup_at

    pool = selection.pool.checkpoints
    (names,) = selection.measure([TensorNames(checkpoint=pool[0])])
    groups = [(name,) for name in names]
    point = _descend(selection, groups, options)
    candidate = soup_at(pool, groups, point.w)
    return [_outcome("learned_by_layer", selection, candidate, point, options)]


def _descend(
    selection: Selection, groups: Sequence[tuple[str, ...]], options: LearnedOptions
) -> Point:
    from soupray.recipes.descent import descend

    steps = options.total(selection.pool.ingredients[0].held_out.n)
    return descend(selection, groups, lr=options.lr, steps=steps, batch_size=options.batch_size)


def _outcome(
    name: str,
    selection: Selection,
    candidate: WeightCandidate,
    point: Point,
    options: LearnedOptions,
) -> Outcome:
    long = {"steps": options.steps} if options.epochs is None else {"epochs": options.epochs}
    used = {**long, "beta": point.beta, "loss": point.loss}
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
    steps = options.total(ingredients[0].held_out.n)
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


def cost_of_steps(pool: PoolSize, options: LearnedOptions) -> Cost:
    """Return the largest cost of a learned soup.

    What reads as many samples as the held-out data have counts as one candidate. Each step has
    another soup.

    Args:
        pool: the size of the pool.
        options: with the number of steps.
    """
    steps = options.total(pool.held_out)
    passes = -(-steps // max(1, -(-pool.held_out // options.batch_size)))
    return Cost(decided=passes, scored=1, models=1, mixtures=steps + 1)


LEARNED = Recipe(
    name="learned",
    summary="coefficients by gradient descent on held-out loss",
    when="Where held-out data are plenty: it may give trials shares that no greedy choice can.",
    paper="Wortsman et al. 2022, arXiv:2203.05482, appendix",
    kind="soup",
    costs="500 steps, forward and backward",
    uses="held-out loss",
    options=LearnedOptions,
    objectives=(ONE_CLASS, MULTI_LABEL, SEGMENTATION),  # beta scales logits
    choose=_learned,
    cost=cost_of_steps,
    reads=bytes_read,
    complete=_complete,
)

LEARNED_BY_LAYER = Recipe(
    name="learned_by_layer",
    summary="as learned, with coefficients of its own for each tensor",
    when="As `learned`, where the layers of the trials differ in quality. It has the most freedom,"
    " so look at the test column.",
    paper="Wortsman et al. 2022, arXiv:2203.05482, appendix",
    kind="soup",
    costs="500 steps, forward and backward",
    uses="held-out loss",
    options=LearnedOptions,
    objectives=(ONE_CLASS, MULTI_LABEL, SEGMENTATION),  # beta scales logits
    choose=_learned_by_layer,
    cost=cost_of_steps,
    reads=bytes_read,
    complete=_complete,
)
