"""What is left of a teacher's gain in the models that learned from it (distillation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from soupray.core.records import Basis, Record
from soupray.reporting.notes import percent
from soupray.reporting.ranking import Entry


class Kept(Record, frozen=True, kw_only=True):
    """Accuracies on ID test, or their means over shifts.

    Attributes:
        teacher: of the teacher.
        before: of the best single model of the teacher's sweep.
        here: of models that learned from it, by name.
        share: by name, (here - before) / (teacher - before): 1 keeps the whole gain. Empty if the
            teacher has no gain.
    """

    teacher: float
    before: float
    here: dict[str, float]
    share: dict[str, float]


class Taught(Record, frozen=True, kw_only=True):
    """What is left of a teacher's gain.

    Attributes:
        teacher: SWEEP:ENTRY.
        passes: forward passes that the teacher needs for one sample.
        test: on ID test; None if the teacher was reported on other data.
        shifts: under the shifts on which both were reported; None if there are none.
    """

    teacher: str
    passes: int
    test: Kept | None
    shifts: Kept | None


def taught(entries: Sequence[Entry], basis: Basis, champion: str | None) -> Taught | None:
    """Return what is left of the teacher's gain, or None if there is no teacher.

    Args:
        entries: the leaderboard.
        basis: has the teacher and its scores.
        champion: name of the entry to take; the best single model stands beside it.
    """
    if not basis.teacher:
        return None
    models = {e.name: e for e in entries if e.recipe == "best_single" or e.name == champion}
    splits = {s.name: s.digest for s in basis.reported}
    scores = basis.teacher.scores
    common = [n for s in basis.reported if (n := s.name) != "test" and splits[n] in scores]
    common = [n for n in common if all(n in e.shifts for e in models.values())]
    test = None
    if splits["test"] in scores:
        test = _kept([scores[splits["test"]]], {n: [e.test.accuracy] for n, e in models.items()})
    here = {n: [e.shifts[shift].accuracy for shift in common] for n, e in models.items()}
    shifts = _kept([scores[splits[n]] for n in common], here) if common else None
    return Taught(
        teacher=basis.teacher.entry, passes=basis.teacher.passes, test=test, shifts=shifts
    )


def _kept(theirs: Sequence[tuple[float, float]], here: Mapping[str, Sequence[float]]) -> Kept:
    teacher, before = (sum(both) / len(theirs) for both in zip(*theirs, strict=True))
    means = {name: sum(values) / len(values) for name, values in here.items()}
    gain = teacher - before
    share = {n: (value - before) / gain for n, value in means.items()} if gain > 0 else {}
    return Kept(teacher=teacher, before=before, here=means, share=share)


def of_teacher(found: Taught | None) -> str:
    """Say what is left of a teacher's gain; empty without a teacher.

    Args:
        found: of the leaderboard.
    """
    if found is None:
        return ""
    passes = f"{found.passes} forward pass{'es' if found.passes > 1 else ''}"
    said = f"The trials also learned from {found.teacher} ({passes})."
    for kept, where in ((found.test, "On ID test"), (found.shifts, "Under shift")):
        if kept is not None:
            said += f" {where}: {_of(kept)}."
    if found.test is None:
        said += " It was reported on other ID test data, so that nobody can compare them."
    return said


def _of(kept: Kept) -> str:
    gain = kept.teacher - kept.before
    said = (
        f"teacher {percent(kept.teacher)}, {100 * gain:+.1f} to the best single model of its sweep"
    )
    if not kept.share:
        here = ", ".join(f"{name} here {percent(value)}" for name, value in kept.here.items())
        return f"{said}: no gain to keep; {here}"
    left = ", ".join(
        f"{name} here has {percent(value)} and keeps {100 * kept.share[name]:.0f} % of it"
        for name, value in kept.here.items()
    )
    return f"{said}; {left}"
