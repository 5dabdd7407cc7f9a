"""Match the samples and the classes of two specs by name, never by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET

from soupray.core.arrays import Indices, Labels
from soupray.core.errors import EvaluationError
from soupray.core.records import Predictions
from soupray.diagnostics.annotations import SHOWN
from soupray.diagnostics.measure import Inputs
from soupray.spec.class_numbers import class_numbers

CALLED = {"held_out": "held-out samples", "test": "samples of ID test"}
"""The splits that are compared."""


class Match(NamedTuple):
    """Where another spec has the samples and the classes of ours.

    Attributes:
        specs: names of our spec and of the other one.
        rows: the row of each of our samples in the other split, [N].
        columns: the column of each of our classes in the other logits, [C].
    """

    specs: tuple[str, str]
    rows: Indices
    columns: Indices

    def labels(self, theirs: Labels) -> Labels:
        """Return labels of the other spec as ours, in the order of our samples, [N]."""
        named: Labels = np.argsort(self.columns)[theirs[self.rows]]
        return named

    def aligned(self, theirs: Predictions, ours: Predictions) -> Predictions:
        """Return predictions of a model of the other spec as one of ours would give them.

        Args:
            theirs: of their model, on their split.
            ours: of any of our models, on our split.

        Raises:
            EvaluationError: a sample has another class there.
        """
        labels = self.labels(theirs.labels)
        differ = np.flatnonzero(labels != ours.labels)
        if len(differ):
            raise EvaluationError(
                f"{self.specs[1]} and {self.specs[0]} name {len(differ)} of {len(labels)} "
                f"{CALLED[ours.split.name]} differently, in our order the numbers "
                f"{', '.join(map(str, differ[:SHOWN]))}: these are not the same data."
            )
        logits = theirs.logits[self.rows][:, self.columns]
        return Predictions(split=ours.split, logits=logits, labels=labels)


def matched(ours: Inputs, theirs: Inputs, split: str) -> Match:
    """Return where `theirs` has our samples and classes.

    Splits with the same fingerprint have the same samples in the same order. Others are matched by
    the ids of their samples.

    Args:
        ours: of our spec.
        theirs: of the other one.
        split: held_out or test.

    Raises:
        CannotMeasure: the data are not on this machine, and the ids of their samples are needed.
        ConfigError: other classes.
        EvaluationError: other samples, ids that are not unique, or targets that are no classes.
    """
    names = (ours.spec.name, theirs.spec.name)
    mine, other = ours.basis.split(split), theirs.basis.split(split)
    if mine.objective is not UNSET or other.objective is not UNSET:
        raise EvaluationError(f"{names[0]} and {names[1]} are compared on one class a sample only.")
    numbers = class_numbers(
        theirs.spec.task.classes,
        ours.spec.task.classes,
        f"the classes of {names[1]}, which is compared with {names[0]}",
        " Name the same classes in both specs, in any order.",
    )
    columns = np.argsort(numbers)
    if mine.digest == other.digest:
        return Match(names, np.arange(mine.size), columns)
    ids = (ours.samples.ids(mine), theirs.samples.ids(other))
    rows = _rows(ids, names, CALLED[split])
    return Match(names, rows, columns)


def _rows(ids: tuple[Sequence[str], Sequence[str]], names: tuple[str, str], what: str) -> Indices:
    """Return the row of each of the first ids in the second ones."""
    for name, some in zip(names, ids, strict=True):
        twice = [one for one, times in Counter(some).items() if times > 1]
        if twice:
            raise EvaluationError(
                f"{len(twice)} ids of the {what} of {name} are there twice, the first "
                f"{', '.join(twice[:SHOWN])}: they cannot be matched by name."
            )
    known = [dict.fromkeys(some) for some in ids]
    only = [
        [i for i in some if i not in other] for some, other in zip(ids, known[::-1], strict=True)
    ]
    if any(only):
        each = "; ".join(
            f"only in {name}: {len(some)}" + (f" ({', '.join(some[:SHOWN])})" if some else "")
            for name, some in zip(names, only, strict=True)
        )
        raise EvaluationError(
            f"{names[1]} has other {what} than {names[0]}: {len(ids[1])} and {len(ids[0])}; {each}"
            ". Models are compared on the same samples: write the same data, seed and held_out in "
            "both specs."
        )
    at = {one: row for row, one in enumerate(ids[1])}
    return np.array([at[one] for one in ids[0]])


def refuse_unlike(ours: Inputs, theirs: Inputs) -> None:
    """Raise the errors of `matched` and of `Match.aligned`, as far as nothing must be computed."""
    for split in CALLED:
        matched(ours, theirs, split)
    first, other = (next(iter(of.trials.values())) for of in (ours, theirs))
    known = ours.answers.predictions(first, ours.held_out)  # each trial stored its own
    stored = theirs.answers.predictions(other, theirs.held_out)
    matched(ours, theirs, "held_out").aligned(stored, known)
