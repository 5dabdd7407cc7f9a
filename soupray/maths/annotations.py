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

COLLAPSED: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((249, 250), (248,)),
    ((836,), (837,)),
    ((837,), (836,)),
    ((385, 386), (101,)),
    ((504,), (968,)),
    ((638,), (639,)),
    ((639,), (638,)),
    ((657,), (744,)),
    ((744,), (657,)),
    ((620,), (681,)),
    ((681,), (620,)),
    ((664,), (782,)),
    ((782,), (664,)),
    ((482,), (848,)),
    ((356, 357, 358, 359), (356, 357, 358, 359)),
    ((435,), (876,)),
)
"""ImageNet's classes that the paper does not tell apart (its appendix): an answer of the left side
is right, too, where one of the right side is."""


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
        collapsed: by class, the other classes that an answer of it means, too.
    """
    kinds = []
    for answer, label, said in zip(answers.tolist(), labels.tolist(), judged, strict=True):
        means = {answer} | collapsed.get(answer, frozenset())
        if said is not None and said.problematic:
            kinds.append(SKIPPED)
        elif answer == label and (said is None or not (said.right or said.unclear)):
            kinds.append(RIGHT)
        elif said is None:
            kinds.append(WRONG)
        elif means & said.right:
            kinds.append(RIGHT if answer == label else OTHER)
        else:
            kinds.append(UNCLEAR if means & said.unclear else WRONG)
    return kinds


def collapse(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[int, frozenset[int]]:
    """Return, by class, the other classes that an answer of it means, too.

    Args:
        pairs: (classes, classes) as in COLLAPSED.
    """
    found: dict[int, frozenset[int]] = {}
    for ours, theirs in pairs:
        for one in ours:
            found[one] = found.get(one, frozenset()) | frozenset(theirs) - {one}
    return found


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
    """Return the multi-label accuracy: right is a right or an unclear class (section 3.1).

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
