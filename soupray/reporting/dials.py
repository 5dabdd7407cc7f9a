"""What the dials of a leaderboard chose, in words and as tables."""

from __future__ import annotations

from collections.abc import Sequence

from soupray.core.candidates import Dial
from soupray.reporting.notes import percent
from soupray.reporting.ranking import Entry, measure_of
from soupray.reporting.sections import Table


def of_dials(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence or two for each dial of a leaderboard.

    Args:
        entries: the leaderboard.
    """
    return [f"{e.name}: {_said(e.dial)}" for e in entries if e.dial]


def _said(dial: Dial) -> str:
    best, chosen = dial.points[dial.best], dial.points[dial.chosen]
    sure = f"with {100 * dial.confidence:g} % confidence"
    proxies = f"copies of held-out data ({', '.join(dial.proxies)})"
    if dial.best == dial.chosen:
        others = [p for k, p in enumerate(dial.points) if k != dial.best]
        near = any(p.excess <= dial.eps for p in others)
        why = (
            f"no point that is near it is more robust on {proxies}"
            if near
            else f"no other is within {percent(dial.eps)} points of it {sure} (n = {dial.samples})"
        )
        return f"the best point, alpha {best.alpha:g}: {why}."
    return (
        f"alpha {chosen.alpha:g}, on {proxies} {percent(chosen.proxy)} against "
        f"{percent(best.proxy)} of the best point, alpha {best.alpha:g}. On held-out data it loses "
        f"at most {percent(chosen.excess)} points to any point of the curve, {sure}."
    )


def dial_table(entry: Entry) -> Table | None:
    """Return the curve of a dial as a table; None if no dial chose the entry.

    Args:
        entry: of the leaderboard.
    """
    dial = entry.dial
    if not dial:
        return None
    measure = measure_of(entry.held_out)
    return Table(
        columns=("alpha", "held-out", "proxies", "loses at most", ""),
        numbers=("alpha", "held-out", "proxies", "loses at most"),
        rows=tuple(
            (
                f"{point.alpha:g}",
                percent(point.held_out),
                percent(point.proxy),
                percent(point.excess),
                ", ".join(_marks(dial, k)),
            )
            for k, point in enumerate(dial.points)
        ),
        meaning=(
            f"held-out: {measure} in %, n = {dial.samples}. proxies: its mean over changed copies "
            f"of the held-out data: {', '.join(dial.proxies)}. loses at most: to the best point of "
            f"the curve, in points; all of these bounds hold together with "
            f"{100 * dial.confidence:g} % confidence. dial: the most robust of the best point and "
            f"those that lose at most {percent(dial.eps)}. dominated: another point is at least as "
            "good on both, and better on one. No test or shift data chose anything."
        ),
    )


def _marks(dial: Dial, k: int) -> list[str]:
    found = {"dial": k == dial.chosen, "best": k == dial.best}
    return [*(n for n, yes in found.items() if yes), *["dominated"] * dial.points[k].dominated]
