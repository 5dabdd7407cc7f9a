"""The dial of a curve: the point that is most robust under proxy shifts, at no loss that matters.

A curve leads from the anchor to a fine-tuned model. Its best point on held-out data is often not
the most robust one, and held-out data do not know which is. Proxy shifts, changed copies of the
held-out data, say something about that. The dial takes the most robust point of those whose
held-out loss is, with a given confidence, at most `eps` above that of the best point of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from soupray.core.candidates import Candidate, Dial, DialPoint, Outcome
from soupray.core.errors import ConfigError
from soupray.core.ports import Selection
from soupray.core.records import Scores
from soupray.recipes.recipe import allows
from soupray.recipes.starts import curve


class DialOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a dial."""

    eps: Annotated[
        float,
        Meta(ge=0, le=1, description="how much more held-out loss than the best point it may have"),
    ] = 0.01
    confidence: Annotated[
        float, Meta(ge=0.5, lt=1, description="the probability with which it has not more")
    ] = 0.95


DialOption = Annotated[
    DialOptions | None,
    allows(
        "a mapping of eps, 0 to 1, and confidence, 0.5 to below 1",
        "one more point for each curve: the most robust one under `data.proxy_shifts` of those"
        " whose held-out loss is within eps of the best, with confidence; left out: no such point",
    ),
]


class Curve(NamedTuple):
    """A curve that was scored on held-out data.

    Attributes:
        name: of the outcome.
        recipe: name of the recipe.
        options: to record, without those of the point.
        alphas: of each point, from the anchor on.
        candidates: the points.
        scores: their held-out scores.
    """

    name: str
    recipe: str
    options: dict[str, str | int | float]
    alphas: Sequence[float]
    candidates: list[Candidate]
    scores: list[Scores]


def dialled(selection: Selection, along: Curve, options: DialOptions) -> Outcome:
    """Return the point of a curve that the dial chooses, with the whole curve.

    Args:
        selection: has held-out data and proxy shifts.
        along: the curve.
        options: of the dial.

    Raises:
        ConfigError: there are no proxy shifts.
    """
    made = _measured(selection, along, options)
    chosen = made.chosen
    return Outcome(
        name=along.name,
        recipe=along.recipe,
        options={
            **along.options,
            "alpha": along.alphas[chosen],
            "eps": options.eps,
            "confidence": options.confidence,
        },
        candidate=along.candidates[chosen],
        held_out=along.scores[chosen],
        trace=curve(along.candidates, along.scores, chosen),
        notes=_notes(along.name, made),
        dial=made,
    )


def _measured(selection: Selection, along: Curve, options: DialOptions) -> Dial:
    """Return all points of a curve, and which of them the dial chooses."""
    found = selection.proxy_scores(along.candidates)
    if not found[0]:
        raise ConfigError(
            f"{along.recipe}: the dial chooses by proxy shifts, and the spec has none. Add "
            "data.proxy_shifts to the spec and run `soupray sweep` again, or leave dial out."
        )
    # All proxy shifts have the same samples: sums order as means do, and exactly.
    proxies = [sum(one.correct for one in of.values()) for of in found]
    held_out = [one.correct for one in along.scores]
    excess = selection.excess(along.scores, options.confidence)
    best, chosen = choose(held_out, proxies, excess, options.eps)
    most = along.scores[0].most
    points = tuple(
        DialPoint(
            alpha=along.alphas[k],
            held_out=held_out[k] / most,
            proxy=proxies[k] / (most * len(found[0])),
            excess=excess[k],
            dominated=is_dominated(k, held_out, proxies),
        )
        for k in range(len(held_out))
    )
    return Dial(
        eps=options.eps,
        confidence=options.confidence,
        samples=along.scores[0].n,
        proxies=tuple(found[0]),
        points=points,
        best=best,
        chosen=chosen,
    )


def choose(
    held_out: Sequence[int], proxies: Sequence[int], excess: Sequence[float], eps: float
) -> tuple[int, int]:
    """Return the best point on held-out data, and the one that the dial chooses.

    Of points that are equal on held-out data, the first one is best. Of points that are equal under
    the proxy shifts, the dial takes the better one on held-out data, then the first one, which is
    closer to the anchor.

    Args:
        held_out: correct held-out samples of each point, from the anchor on.
        proxies: the same, summed over the proxy shifts.
        excess: the most by which the loss of each point exceeds the least one.
        eps: the largest excess that is allowed. The best point is allowed in any case.
    """
    points = range(len(held_out))
    best = max(points, key=lambda k: (held_out[k], -k))
    near = [k for k in points if k == best or excess[k] <= eps]
    return best, max(near, key=lambda k: (proxies[k], held_out[k], -k))


def is_dominated(k: int, held_out: Sequence[int], proxies: Sequence[int]) -> bool:
    """Return whether another point is at least as good as point k on both, and better on one."""
    return any(
        h >= held_out[k] and p >= proxies[k] and (h, p) != (held_out[k], proxies[k])
        for h, p in zip(held_out, proxies, strict=True)
    )


def _notes(name: str, made: Dial) -> tuple[str, ...]:
    others = [p.excess for k, p in enumerate(made.points) if k != made.best]
    if min(others) <= made.eps:
        return ()
    return (
        f"{name}: on {made.samples} held-out samples no other point is within eps = {made.eps:g} "
        f"of the best one with {100 * made.confidence:g} % confidence, so that the dial is the "
        f"best point. The first other one would be allowed at eps = {_up(min(others))}",
    )


def _up(share: float) -> str:
    """A share with three decimals, rounded up: as eps it allows what has it."""
    return f"{math.ceil(1000 * share) / 1000:.3f}"
