"""LiNeS (arXiv:2410.17146): WiSE-FT by depth; shallow layers stay closer to theta_0.

theta_0 + lambda_l (theta_1 - theta_0), with lambda_l = alpha + (1 - alpha) l / (L - 1) for block l
of L. The head counts as the last block; other tensors outside the blocks use alpha.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from soupray.core.blocks import BLOCK_NUMBER
from soupray.core.candidates import Candidate, LayerSoup, Outcome
from soupray.core.ports import Selection
from soupray.core.requests import TensorNames
from soupray.recipes.recipe import Cost, Earlier, Options, Recipe
from soupray.recipes.starts import LINES as STARTS
from soupray.recipes.starts import Model, curve, starts

GRID = 10
"""Number of steps of the grid alpha = 0, .1, ..., 1."""


def _lines(selection: Selection, earlier: Earlier, options: Options) -> list[Outcome]:
    """Return the best alpha on held-out data for each theta_1; the smaller one breaks ties."""
    pool = selection.pool
    (names,) = selection.measure([TensorNames(checkpoint=pool.checkpoints[0])])
    depth = depths(names)
    notes = () if any(last for _, last in depth.values()) else (_no_depth(names),)
    outcomes = []
    for name, theta_1 in starts(selection, earlier):
        candidates: list[Candidate] = [
            scaled(pool.init.sha256, theta_1, depth, k) for k in range(GRID + 1)
        ]
        scores = selection.scores(candidates)
        best = max(range(GRID + 1), key=lambda k: (selection.value(scores[k]), -k))
        outcomes.append(
            Outcome(
                name=f"lines({name})",
                recipe="lines",
                options={"theta_1": name, "alpha": best / GRID},
                candidate=candidates[best],
                held_out=scores[best],
                trace=curve(candidates, scores, best),
                notes=notes,
            )
        )
    return outcomes


def _no_depth(names: Sequence[str]) -> str:
    return (
        f"lines: the names of tensors (as {names[0]}) number fewer than two blocks: it is theta_1, "
        "whatever the alpha"
    )


def depths(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return (l, L - 1) by tensor name.

    l is 0 outside the blocks, and L - 1 for the head. L - 1 is 0 if there are fewer than two
    blocks.
    """
    blocks = {n: int(m.group(1)) for n in names if (m := BLOCK_NUMBER.search(n))}
    order = {block: level for level, block in enumerate(sorted(set(blocks.values())))}
    last = max(len(order) - 1, 0)
    return {
        n: (last if n.startswith("head.") else order[blocks[n]] if n in blocks else 0, last)
        for n in names
    }


def scaled(init: str, theta_1: Model, depth: dict[str, tuple[int, int]], k: int) -> Candidate:
    """Return the model at alpha = k / GRID as exact fractions; theta_1 itself at alpha = 1.

    Args:
        init: digest of theta_0.
        theta_1: the fine-tuned model.
        depth: (l, L - 1) by tensor name, from `depths`.
        k: numerator of alpha, from 0 to GRID.
    """
    last = max((total for _, total in depth.values()), default=0)
    if k == GRID or last == 0:
        return theta_1
    unit = GRID * last  # lambda = (k last + (GRID - k) l) / (GRID last)
    own = theta_1.numerators() if isinstance(theta_1, LayerSoup) else {}
    rest = theta_1.rest if isinstance(theta_1, LayerSoup) else tuple(n for _, n in theta_1.parts)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, (level, _) in depth.items():
        share = k * last + (GRID - k) * level
        numerators = tuple(share * n for n in own.get(name, rest))
        row = ((unit - share) * theta_1.denominator, *numerators)
        groups.setdefault(row, []).append(name)
    return LayerSoup(
        checkpoints=(init, *theta_1.checkpoints),
        layers=tuple((tuple(names), row) for row, names in groups.items()),
        rest=(0, *(unit * n for n in rest)),
        denominator=unit * theta_1.denominator,
    )


LINES = Recipe(
    name="lines",
    summary="interpolate by depth, shallow layers closer to the init",
    when="As `wise_ft`, for deep models: shallow layers stay closer to the start.",
    paper="Wang et al. 2024, arXiv:2410.17146",
    kind="line",
    costs="10 a line",
    uses="held-out counts",
    choose=_lines,
    cost=lambda pool, options: Cost(scored=STARTS * GRID, models=STARTS, mixtures=STARTS * GRID),
)
