"""Which answers of a classifier are mistakes, where samples have more than one right class.

Multi-label accuracy of "When does dough become a bagel?" (arXiv:2205.04596).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from soupray.core.arrays import Indices, Labels, Mask

RIGHT, OTHER, UNCLEAR, WRONG, SKIPPED = "right", "other label", "unclear", "wrong", "skipped"
KINDS = (RIGHT, OTHER, UNCLEAR, WRONG, SKIPPED)
"""What an answer is: the class of the sample; another right class of it; one of which nobody is
sure; a mistake; an answer for a sample that is problematic."""

COLLAPSED: dict[int, frozenset[int]] = {
    right: frozenset(also) - {right}
    for rights, also in (
        ((249, 250), (248,)),  # malamutes and Siberian huskies are huskies
        ((836, 837), (836, 837)),  # sunglass, sunglasses
        ((385, 386), (101,)),  # Indian and African elephants with tusks are tuskers
        ((504,), (968,)),  # a coffee mug is a cup
        ((638, 639), (638, 639)),  # maillot, tank suit
        ((657, 744), (657, 744)),  # missile, projectile
        ((620, 681), (620, 681)),  # laptop, notebook
        ((664, 782), (664, 782)),  # monitor, screen
        ((482,), (848,)),  # a cassette player is a tape player
        ((356, 357, 358, 359), (356, 357, 358, 359)),  # weasel, mink, polecat, ferret
        ((435,), (876,)),  # a bathtub is a tub
    )
    for right in rights
}
"""ImageNet's classes that arXiv:2205.04596 joins: where the key is a right class of a sample, the
others are right, too. One way only where a class is a kind of the other: a cup need not be a mug.
The direction is that of the code of arXiv:2401.02430 (eth-sri/automated-error-analysis)."""


class Judged(NamedTuple):
    """What people say of a sample.

    Attributes:
        right: its right classes.
        unclear: classes of which they are not sure.
        problematic: the sample is left out of multi-label accuracy.
    """

    right: frozenset[int]
    unclear: frozenset[int] = frozenset()
    problematic: bool = False


def judge(
    answers: Indices,
    labels: Labels,
    judged: Sequence[Judged | None],
    collapsed: Mapping[int, frozenset[int]],
) -> list[str]:
    """Return what each answer is, one of KINDS.

    Args:
        answers: class that a model names for each sample, [N].
        labels: class of each sample, [N].
        judged: what people say of each sample; None: only its label is known.
        collapsed: by class, the classes that are right, too, where it is right, as in COLLAPSED.
    """
    kinds = []
    for answer, label, said in zip(answers.tolist(), labels.tolist(), judged, strict=True):
        if said is not None and said.problematic:
            kinds.append(SKIPPED)
        elif answer == label and (said is None or not (said.right or said.unclear)):
            kinds.append(RIGHT)
        elif said is None:
            kinds.append(WRONG)
        elif answer in _joined(said.right, collapsed):
            kinds.append(RIGHT if answer == label else OTHER)
        else:
            kinds.append(UNCLEAR if answer in _joined(said.unclear, collapsed) else WRONG)
    return kinds


def _joined(right: frozenset[int], collapsed: Mapping[int, frozenset[int]]) -> frozenset[int]:
    return right.union(*(collapsed.get(one, ()) for one in right))


class Accuracy(NamedTuple):
    """Multi-label accuracy.

    Attributes:
        value: mean over classes of the share of right answers; None without a judged sample.
        n: number of judged samples that are not problematic.
        classes: number of classes that have such a sample.
    """

    value: float | None
    n: int
    classes: int


def multi_label_accuracy(kinds: Sequence[str], labels: Labels, known: Mask) -> Accuracy:
    """Return the multi-label accuracy: right is a right or an unclear class.

    The accuracy of each original class, then the mean over the classes: a class counts as much as
    another one, however many of its samples are problematic.

    Args:
        kinds: what each answer is, from `judge`.
        labels: class of each sample, [N].
        known: samples that people have judged, [N].
    """
    counted = np.array([k != SKIPPED for k in kinds], dtype=bool) & known
    if not counted.any():
        return Accuracy(None, 0, 0)
    good = np.array([k in (RIGHT, OTHER, UNCLEAR) for k in kinds], dtype=bool)
    classes = np.unique(labels[counted])
    shares = [good[counted & (labels == c)].mean() for c in classes]
    return Accuracy(float(np.mean(shares)), int(counted.sum()), len(classes))
