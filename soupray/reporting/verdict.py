"""What to take from a leaderboard, and why: the answer before the table (pure)."""

from __future__ import annotations

from typing import NamedTuple

from soupray.core.records import Metric, Record
from soupray.reporting.ranking import Champion, Entry, Gain, Measured, cost, ranked_on

NAMED = 3
"""Entries of the Pareto front that a line names."""


class Verdict(Record, frozen=True, kw_only=True):
    """The entry to take, what it gains over the best single model, and what that costs.

    Attributes:
        take: name of the entry.
        first: name of the entry that ranks first; it may be another one, see `Champion`.
        helps: the entry is made of several models.
        test: accuracy on ID test, 0 to 1.
        test_gain: over `best_single`, paired; None in leaderboards of older versions.
        p: McNemar's exact test against `best_single` on ID test.
        shifts: mean accuracy over the shifts; None without shifts.
        shift_gain: over `best_single`, paired; None without shifts, and in older leaderboards.
        forward_passes: for a sample.
        size_bytes: of all models that inference needs.
        front: other entries on the Pareto front of ranking score, shifts, passes and bytes.
        lines: all of this in words.
    """

    take: str
    first: str
    helps: bool
    test: float
    test_gain: Gain | None
    p: float
    shifts: float | None
    shift_gain: Gain | None
    forward_passes: int
    size_bytes: int
    front: tuple[str, ...]
    lines: tuple[str, ...]


class _Board(NamedTuple):
    """A leaderboard with its champion, and what the words about it need."""

    entries: list[Entry]
    champion: Champion
    metric: Metric

    def by_name(self, name: str) -> Entry:
        return next(e for e in self.entries if e.name == name)

    @property
    def best(self) -> Entry:
        """The best single model."""
        return next(e for e in self.entries if e.recipe == "best_single")

    @property
    def taken(self) -> Entry:
        return self.by_name(self.champion.name)


def verdict(entries: list[Entry], champion: Champion, sweep: str, metric: Metric) -> Verdict:
    """Return what to take from a leaderboard.

    Args:
        entries: the leaderboard, best first.
        champion: the entry to take.
        sweep: name of the sweep.
        metric: the metric that ranks the entries.
    """
    board = _Board(entries, champion, metric)
    taken = board.taken
    others = [e for e in front(entries, metric) if e.candidate != taken.candidate]
    lines = [_take(board, sweep), _result(board), _cost(board)]
    if others:
        named = "; ".join(map(_short, others[:NAMED]))
        more = f"; and {len(others) - NAMED} more" if len(others) > NAMED else ""
        lines.append(f"Also on the Pareto front (ranked on, shifts, cost): {named}{more}.")
    lines.append(
        f"Next: soupray predict {sweep}@champion INPUT...; soupray rank --calibrated has "
        "probabilities that fit."
    )
    return Verdict(
        take=taken.name,
        first=champion.first,
        helps=_is_soup(taken),
        test=taken.test.accuracy,
        test_gain=taken.test_gain or None,
        p=taken.test_versus_best_single.p or 0.0,
        shifts=taken.shift_mean if taken.shifts else None,
        shift_gain=taken.shift_gain or None,
        forward_passes=taken.forward_passes_per_sample,
        size_bytes=taken.size_bytes,
        front=tuple(e.name for e in others),
        lines=tuple(line for line in lines if line),
    )


def front(entries: list[Entry], metric: Metric) -> list[Entry]:
    """Return the entries that no other entry beats on everything, best first, each model once.

    An entry is beaten by one that is as good or better in the score that ranks, in the mean over
    the shifts, in forward passes and in bytes, and better in one of these.

    Args:
        entries: the leaderboard, best first.
        metric: the metric that ranks the entries.
    """
    different: dict[str, Entry] = {}
    for entry in entries:
        different.setdefault(entry.candidate, entry)

    def values(e: Entry) -> tuple[float, ...]:
        passes, size = cost(e)
        return (ranked_on(e).by(metric), e.shift_mean, -passes, -size)

    def beaten(e: Entry) -> bool:
        mine = values(e)
        theirs = [values(other) for other in different.values()]
        return any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
            for other in theirs
        )

    return [e for e in different.values() if not beaten(e)]


def _take(board: _Board, sweep: str) -> str:
    taken, champion = board.taken, board.champion
    said = f"Take {taken.name} ({sweep}@champion), {_what(taken)}."
    if taken.name != champion.first:
        said += (
            f" {champion.first} ranks first, but {champion.samples} samples cannot tell the two "
            "apart (McNemar's test, corrected for all entries), and this one is cheaper."
        )
    return said


def _what(entry: Entry) -> str:
    count, passes = len(entry.ingredients), entry.forward_passes_per_sample
    if entry.recipe == "anchor":
        return "the model from which all trials start"
    if entry.recipe == "update_bn":
        return "one trial with estimated BatchNorm statistics"
    if count == 1:
        return "the best single model"
    if passes == 1:
        return f"one model of {count} checkpoints"
    return f"{passes} models whose outputs are joined"


def _result(board: _Board) -> str:
    taken = board.taken
    if not _is_soup(taken):
        reported = f"It has {_percent(taken.test.accuracy)} % on ID test"
        if taken.shifts:
            reported += f" and {_percent(taken.shift_mean)} % under shift"
        return f"{reported}. No soup helps here: {_why_none(board)}."
    test = (
        f"On ID test it has {_percent(taken.test.accuracy)} %"
        f"{_gained(taken.test_gain or None, taken.test_versus_best_single.p)}"
    )
    if not taken.shifts:
        return f"{test}.{_misled(taken)}"
    shifts = f"under shift {_percent(taken.shift_mean)} %{_gained(taken.shift_gain or None)}"
    return f"{test}; {shifts}.{_misled(taken)}"


def _misled(taken: Entry) -> str:
    """What to say where the data that chose an entry do not hold on test.

    It is taken all the same: an entry chosen after a look at test has no honest score there.
    """
    if not taken.test_gain or taken.test_gain.high >= 0:
        return ""
    return (
        " The samples that chose it promised more: keep a `rank` split or more held-out samples, "
        "and consider best_single."
    )


def _gained(gain: Gain | None, p: float | None = None) -> str:
    """The difference to the best single model, and whether it is more than chance."""
    if gain is None:
        return ""
    points = abs(100 * gain.difference)
    how = "more" if gain.difference >= 0 else "less"
    between = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    chance = "which may be chance" if gain.is_chance else "more than chance"
    tested = "" if p is None else f", p = {p:.2g}"
    return f", {points:.1f} points {how} than the best single model ({between}, {chance}{tested})"


def _why_none(board: _Board) -> str:
    """Why no entry of several models is taken."""
    soups = [e for e in board.entries if _is_soup(e)]
    if not soups:
        return "no recipe made one of several models"
    best, first = ranked_on(board.taken), ranked_on(soups[0])
    ahead = first.by(board.metric) - best.by(board.metric)
    by = f"{abs(ahead):.3f} nats" if board.metric == "nll" else f"{abs(100 * ahead):.1f} points"
    where = f"on the {best.n} samples that rank"
    if ahead > 0:
        said = (
            f"{soups[0].name} is {by} ahead {where}, which they cannot tell from chance, and it "
            "costs more"
        )
    else:
        said = f"the best one, {soups[0].name}, is {by} behind {where}"
    uniform = next((e for e in soups if e.recipe == "uniform"), None)
    if uniform is not None and _far_below(ranked_on(uniform), best):
        said += (
            f". The mean of all trials has {_percent(ranked_on(uniform).accuracy)} %: the weights "
            "do not average well, and `soupray check` says which"
        )
    return said


def _far_below(one: Measured, other: Measured) -> bool:
    """Whether the accuracy of `one` is more than two standard errors lower."""
    return other.accuracy - one.accuracy > 2 * other.standard_error


def _cost(board: _Board) -> str:
    taken, best = board.taken, board.best
    if not _is_soup(taken):
        return ""
    if cost(taken) == cost(best):
        return "It costs the same at inference as one model."
    passes, megabytes = taken.forward_passes_per_sample, taken.size_bytes / 1e6
    return (
        f"It costs {passes} forward pass{'es' if passes > 1 else ''} a sample instead of "
        f"{best.forward_passes_per_sample}, and {megabytes:.1f} MB of models instead of "
        f"{best.size_bytes / 1e6:.1f}."
    )


def _short(entry: Entry) -> str:
    score, passes = _percent(ranked_on(entry).accuracy), entry.forward_passes_per_sample
    shifts = f", {_percent(entry.shift_mean)}" if entry.shifts else ""
    return f"{entry.name} ({score}{shifts}; {passes} pass{'es' if passes > 1 else ''})"


def _is_soup(entry: Entry) -> bool:
    return len(entry.ingredients) > 1


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
