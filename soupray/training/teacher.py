"""The teacher of a sweep: what a model of an earlier leaderboard says of the training samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from soupray.core.arrays import Labels, Logits
from soupray.core.candidates import Candidate
from soupray.core.errors import ConfigError
from soupray.core.records import Predictions, Split, Teacher
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec

if TYPE_CHECKING:  # the driver names teachers, and never imports torch
    from soupray.store.checkpoints import Checkpoints


class TeacherSource(NamedTuple):
    """Where a teacher is, and what its leaderboard says of it.

    Attributes:
        entry: the model, SWEEP:ENTRY.
        spec: of its sweep.
        place: where its sweep stores its data.
        candidate: the model.
        train: digest of the train split of its sweep.
        passes: forward passes that it needs for one sample.
        scores: as in `Teacher`.
    """

    entry: str
    spec: SweepSpec
    place: Place
    candidate: Candidate
    train: str
    passes: int
    scores: dict[str, tuple[float, float]]


class Known(NamedTuple):
    """The labelled samples of a train split, in order.

    Attributes:
        classes: names of the classes, or of the outputs of a regression.
        split: the split.
        ids: ids of the samples in their source.
        labels: classes [N], or [N, C].
    """

    classes: tuple[str, ...]
    split: Split
    ids: list[str]
    labels: Labels


def for_samples(said: Predictions, theirs: Known, mine: Known, entry: str) -> Logits:
    """Return the teacher's logits in the order of a sweep's samples and classes, [N, C].

    Samples are matched by their ids, classes by their names.

    Args:
        said: by the teacher, of its own train split.
        theirs: the train split of the teacher's sweep.
        mine: the train split of the sweep that learns.
        entry: the teacher, for messages.

    Raises:
        ConfigError: the teacher has other classes or another objective, has not seen a sample, or
            has seen it with another label.
    """
    where = f"teacher: {entry}"
    if theirs.split.objective != mine.split.objective:
        raise ConfigError(f"{where} was trained for another objective than this sweep.")
    if sorted(theirs.classes) != sorted(mine.classes):
        raise ConfigError(
            f"{where} has the classes {', '.join(theirs.classes)}; this sweep has "
            f"{', '.join(mine.classes)}. A teacher has the same classes, in any order."
        )
    there = {sample: row for row, sample in enumerate(theirs.ids)}
    missing = [sample for sample in mine.ids if sample not in there]
    if missing:
        raise ConfigError(
            f"{where} knows {len(mine.ids) - len(missing)} of the {len(mine.ids)} training samples "
            f"of this sweep; the first that it lacks is {missing[0]!r}. Write the same data, "
            "held_out and seed as its sweep has."
        )
    rows = np.array([there[sample] for sample in mine.ids])
    columns = np.array([theirs.classes.index(name) for name in mine.classes])
    labels = np.asarray(theirs.labels)[rows]
    if labels.ndim == 1 and mine.split.objective is msgspec.UNSET:
        labels = np.argsort(columns)[labels]  # their class to mine
    else:
        labels = labels[:, columns]
    other = (labels != np.asarray(mine.labels)).reshape(len(rows), -1).any(axis=1)
    if other.any():
        raise ConfigError(
            f"{where} has another label for {int(other.sum())} of the {len(rows)} training "
            f"samples, the first is {mine.ids[int(other.argmax())]!r}. Write the same data as its "
            "sweep has."
        )
    logits: Logits = np.ascontiguousarray(said.logits[rows][:, columns])
    if not np.isfinite(logits).all():
        raise ConfigError(f"{where} says NaN or infinite values of training samples.")
    return logits


def stored_teacher(
    source: TeacherSource, logits: Logits, checkpoints: Checkpoints, split: Split
) -> Teacher:
    """Store what a teacher says, and return its record.

    Args:
        source: the teacher.
        logits: of the train split, [N, C].
        checkpoints: of the sweep that learns.
        split: its train split.
    """
    import torch

    blob = checkpoints.save_blob({"logits": torch.from_numpy(logits)}, {"split": split.digest})
    return Teacher(
        entry=source.entry,
        candidate=source.candidate.digest,
        logits=blob,
        passes=source.passes,
        scores=source.scores,
    )
