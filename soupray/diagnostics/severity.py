"""How bad the mistakes of two models are, where people have judged mistakes (arXiv:2205.04596)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from soupray.core.arrays import Indices, Mask
from soupray.core.records import Record
from soupray.diagnostics.annotations import SHOWN, Annotations, Assessed, rows_of
from soupray.diagnostics.measure import CannotMeasure
from soupray.reporting.sections import Table
from soupray.spec.class_numbers import number_of, numbers_by_name

UNKNOWN = "not assessed"


class Severity(Record, frozen=True, kw_only=True):
    """Mistakes of one kind.

    Attributes:
        severity: major, minor, another word of the file, or UNKNOWN.
        category: of the file; empty for UNKNOWN.
        mistakes: number of them, of the other model and of the entry to take.
    """

    severity: str
    category: str
    mistakes: tuple[int, int]


def severities(
    said: Annotations,
    ids: Sequence[str],
    names: Sequence[str],
    two: Sequence[tuple[Indices, Mask]],
) -> tuple[Severity, ...]:
    """Return the mistakes of two models by severity and category, the worst first.

    A mistake is assessed if the file has this answer to this sample.

    Args:
        said: what people say, with `mistakes`.
        ids: of the samples.
        names: of the classes.
        two: of each model the answers, [N], and which of them are mistakes, [N].

    Raises:
        CannotMeasure: the file names other samples or classes.
    """
    found = _assessments(said, ids, names)
    counts: list[Counter[tuple[str, str]]] = []
    for answers, wrong in two:
        kinds: Counter[tuple[str, str]] = Counter()
        for row in np.flatnonzero(wrong).tolist():
            one = found.get((row, int(answers[row])))
            kinds[(one.severity, one.category) if one else (UNKNOWN, "")] += 1
        counts.append(kinds)
    first = {"major": 0, "minor": 1, UNKNOWN: 3}
    order = sorted({*counts[0], *counts[1]}, key=lambda kind: (first.get(kind[0], 2), kind))
    return tuple(
        Severity(severity=s, category=c, mistakes=(counts[0][s, c], counts[1][s, c]))
        for s, c in order
    )


def _assessments(
    said: Annotations, ids: Sequence[str], names: Sequence[str]
) -> dict[tuple[int, int], Assessed]:
    """Return what people say of an answer, by the numbers of sample and class."""
    rows, missing = rows_of(said.mistakes, ids)
    if not rows:
        raise CannotMeasure(
            f"none of the {len(said.mistakes)} samples whose mistakes {said.source} assesses is "
            f"in ID test; the first are {', '.join(missing[:SHOWN])}, ids here are "
            f"{', '.join(ids[:SHOWN])}"
        )
    known = numbers_by_name(names)
    found: dict[tuple[int, int], Assessed] = {}
    strange = set()
    for sample, row in rows.items():
        for one in said.mistakes[sample]:
            number = number_of(one.answer, known)
            if number is None:
                strange.add(one.answer)
            elif found.setdefault((row, number), one) != one:
                raise CannotMeasure(
                    f"{said.source} assesses the answer {names[number]} to {ids[row]} twice: "
                    f"{found[row, number].severity}, and {one.severity} under {sample!r}"
                )
    if strange:
        raise CannotMeasure(
            f"{said.source} assesses answers of {len(strange)} classes that the task has not, the "
            f"first are {', '.join(sorted(strange)[:SHOWN])}; task.classes are "
            f"{', '.join(list(names)[:SHOWN])}, ..."
        )
    return found


def severity_table(made: Sequence[Severity], models: tuple[str, str]) -> Table:
    """Return the table of two models' mistakes side by side.

    Args:
        made: from `severities`.
        models: names of the entry to take and of the other model.
    """
    totals = [sum(one.mistakes[k] for one in made) for k in (0, 1)]
    rows = [(one.severity, one.category or "-", *map(str, one.mistakes)) for one in made]
    return Table(
        columns=("severity", "category", "before", "after"),
        numbers=("before", "after"),
        rows=(*rows, ("all", "-", *map(str, totals))),
        meaning=(
            f"Mistakes of {models[1]} (before) and of {models[0]} (after). Severity and category "
            f"are those that people gave to this answer to this sample; {UNKNOWN}: the file has "
            "another answer or none. Borderline counts as minor, as in the paper."
        ),
    )
