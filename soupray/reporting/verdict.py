"""What to take from a leaderboard, and why: the answer before the table (pure)."""

from __future__ import annotations

from typing import NamedTuple

from soupray.core.records import Metric, Record
from soupray.maths.metrics import SHARES
from soupray.reporting.champion import Champion, cost
from soupray.reporting.ranking import Entry, Gain, Measured, ranked_on

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
        p: McNemar's exact test against `best_single` on ID test; of a graded metric the
            permutation test.
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
    others = _others(board)
    lines = [_take(board, sweep), _result(board), _robust(board, others), _cost(board)]
    if others:
        named = "; ".join(map(_short, others[:NAMED]))
        more = f"; and {len(others) - NAMED} more" if len(others) > NAMED else ""
        lines.append(f"Also on the Pareto front (ranked on, shifts, cost): {named}{more}.")
    fit = "; soupray rank --calibrated has probabilities that fit." if taken.calibrated else ""
    lines.append(f"Next: soupray predict {sweep}@champion INPUT...{fit}")
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
    """Return the entries that no other entry beats on everything, best first.

    An entry is beaten by one that is as good or better in the score that ranks, in the mean over
    the shifts, in forward passes and in bytes, and better in one of these.
    Of entries that are equal in all of them, the first one is returned.

    Args:
        entries: the leaderboard, best first.
        metric: the metric that ranks the entries.
    """
    different: dict[tuple[float, ...], Entry] = {}
    for entry in entries:
        different.setdefault(_values(entry, metric), entry)

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
            for other in different
        )

    return [e for mine, e in different.items() if not beaten(mine)]


def _values(entry: Entry, metric: Metric) -> tuple[float, ...]:
    """What is compared, more is better; scores as they are printed, so that equal ones look so."""
    passes, size = cost(entry)
    return (round(ranked_on(entry).by(metric), 3), round(entry.shift_mean, 3), -passes, -size)


def _others(board: _Board) -> list[Entry]:
    """Return the Pareto front without what equals the entry that is taken, or `best_single`."""
    known = [_values(e, board.metric) for e in (board.taken, board.best)]
    return [e for e in front(board.entries, board.metric) if _values(e, board.metric) not in known]


def _take(board: _Board, sweep: str) -> str:
    taken, champion = board.taken, board.champion
    said = f"Take {taken.name} ({sweep}@champion), {_what(board)}."
    if taken.name != champion.first:
        cheaper = cost(taken) < cost(board.by_name(champion.first))
        why = "cheaper" if cheaper else "one model whose outputs are not mixed"
        said += (
            f" {champion.first} ranks first, but {champion.samples} samples cannot tell the two "
            f"apart ({_test(taken)}, corrected for all entries), and this one is {why}."
        )
    return said


def _test(entry: Entry) -> str:
    return "a permutation test" if entry.test.graded else "McNemar's test"


def _what(board: _Board) -> str:
    entry = board.taken
    count, passes = len(entry.ingredients), entry.forward_passes_per_sample
    if entry.recipe == "update_bn":
        return "one trial with estimated BatchNorm statistics"
    if count == 1:
        is_best = entry.ingredients == board.best.ingredients
        said = "the best single model" if is_best else "the model from which all trials start"
        plain = {e.candidate for e in board.entries if e.recipe in ("anchor", "best_single")}
        return said if entry.candidate in plain else f"{said}, as {entry.recipe} uses it"
    if passes == 1:
        return f"one model of {count} checkpoints"
    return f"{passes} models whose outputs are joined"


def _result(board: _Board) -> str:
    taken = board.taken
    if not _is_soup(taken):
        reported = f"It has {_percent(taken.test.accuracy)} % on ID test"
        if taken.shifts:
            reported += f" and {_percent(taken.shift_mean)} % under shift"
        return f"{reported}. {_why_none(board)}."
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
        return "No recipe made one of several models"
    best, first = ranked_on(board.taken), ranked_on(soups[0])
    name, ahead = soups[0].name, first.by(board.metric) - best.by(board.metric)
    said = f"On the {best.n} samples that rank, "
    if ahead > 0:
        said += (
            f"no soup is better than chance tells: {name} is {_distance(ahead, board)} "
            "ahead, and costs more"
        )
    elif ahead == 0:
        said += f"no soup is better: the best one, {name}, is equal"
    else:
        by = _distance(-ahead, board)
        said += f"no soup is better: the best one, {name}, is {by} behind"
    uniform = next((e for e in soups if e.recipe == "uniform"), None)
    if uniform is not None and _far_below(ranked_on(uniform), best):
        said += (
            f". The mean of all trials has {_percent(ranked_on(uniform).accuracy)} %: the weights "
            "do not average well, and `soupray check` says which"
        )
    return said


def _distance(difference: float, board: _Board) -> str:
    """A difference above 0: one that would be printed as 0 is less than the smallest number."""
    metric = board.metric
    if metric == "nll":
        return f"{difference:.3f} nats" if difference >= 0.0005 else "less than 0.001 nats"
    if metric not in (*SHARES, board.taken.test.graded):
        return f"{difference:.2g} of {metric}"
    return f"{100 * difference:.1f} points" if difference >= 0.0005 else "less than 0.1 points"


def _far_below(one: Measured, other: Measured) -> bool:
    """Whether the 95 % interval of the accuracy of `one` is below that of `other`.

    Intervals are exact: an accuracy of 100 % has a standard error of 0, and is not certain.
    """
    return one.high < other.low


def _robust(board: _Board, others: list[Entry]) -> str:
    """What gains most under shift, where no soup is taken: the ranking data do not see shifts."""
    taken = board.taken
    if _is_soup(taken):
        return ""
    gaining = [
        e
        for e in others
        if e.shift_gain and e.shift_gain.low > 0 and e.shift_mean > taken.shift_mean
    ]
    if not gaining:
        return ""
    most = max(gaining, key=lambda e: e.shift_mean)
    return (
        f"If your inputs will differ from these, look at {most.name}: under shift it has "
        f"{_percent(most.shift_mean)} %{_gained(most.shift_gain or None)}; on ID test "
        f"{_percent(most.test.accuracy)} %"
        f"{_gained(most.test_gain or None, most.test_versus_best_single.p)}. These scores name it, "
        "so that they are optimistic."
    )


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
