"""Proxy shifts: changed copies of held-out data, of other kinds than the shifts that are reported.

A model that is chosen by blurred images is better on blurred images: a report of those would show
the choice, not robustness. Two changes are of one kind if they differ mostly in strength, or damage
the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from soupray.core.errors import ConfigError
from soupray.core.records import PROXY
from soupray.recipes import BY_NAME

KINDS: Mapping[str, str] = {
    "inverted": "inversion",
    "rotated": "geometry",
    "moved": "geometry",
    "noise": "noise",
    "grainy": "noise",
    "low_contrast": "contrast",
    "faded": "contrast",
    "thickened": "strokes",
    "blurred": "detail",
    "pixelated": "detail",
    "occluded": "occlusion",
}
"""The kind of each corruption. The kind of any other shift is not known: it is its own name."""


def check_kinds(proxies: Sequence[str], reported: Sequence[str]) -> None:
    """Raise ValueError if a proxy shift is listed twice, or a reported shift is of its kind.

    Args:
        proxies: corruptions.
        reported: names of the reported shifts.
    """
    if len(set(proxies)) < len(proxies):
        raise ValueError("a proxy shift is listed twice; leave out one of the two")
    for name in proxies:
        if f"{PROXY}{name}" in reported:
            raise ValueError(
                f"the split of the proxy shift {name} is called {PROXY}{name}, and so is a "
                "reported shift; give that one another name"
            )
        same = [other for other in reported if KINDS.get(other) == KINDS[name]]
        if same:
            raise ValueError(
                f"{name} is of the same kind as the reported shift {same[0]}, so that a choice by "
                f"it would show in the report. Proxy shifts: {_listed(proxies)}. Reported: "
                f"{_listed(reported)}. Of other kinds are: {_listed(_free(reported)) or 'none'}"
            )


def check_dials(recipes: Mapping[str, Mapping[str, Any]], data: Any, source: str) -> None:
    """Raise ConfigError if a recipe has a dial, and the data have no proxy shifts.

    Args:
        recipes: options by the name of the recipe, as in a spec.
        data: the `data` of the spec.
        source: names the spec in messages.
    """
    own = {name: options for name, options in recipes.items() if name in BY_NAME}
    asked = [name for name, options in own.items() if options.get("dial") is not None]
    if not asked or data.proxy_shifts:
        return
    tables = data.kind in ("text", "captions")
    shifts = () if tables else data.shifts
    free = _free([s if isinstance(s, str) else s.split for s in shifts])
    advice = (
        f"Add data.proxy_shifts: [{', '.join(free[:2])}] and run `soupray sweep` again, which "
        "trains no trial again; or leave dial out"
    )
    if tables:
        advice = f"There are none for {data.kind.removesuffix('s')}s: leave dial out"
    elif not free:
        advice = "All kinds are reported: take a shift out of data.shifts, or leave dial out"
    raise ConfigError(
        f"{source}: recipes.{asked[0]}.dial: the dial chooses by proxy shifts, and the spec has "
        f"none. {advice}."
    )


def _free(reported: Sequence[str]) -> list[str]:
    """The corruptions whose kinds are not reported."""
    taken = {KINDS.get(name) for name in reported}
    return [name for name, kind in KINDS.items() if kind not in taken]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{n} ({KINDS[n]})" if n in KINDS else n for n in names)
