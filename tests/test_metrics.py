"""Scores and statistics against numbers worked out by hand or taken from tables."""

import math

import msgspec
import numpy as np
import pytest

from soupray.core.records import Predictions, Split, Tally
from soupray.maths.metrics import (
    as_read,
    clopper_pearson,
    discordant,
    expected_calibration_error,
    logit,
    margins,
    mcnemar,
    on_classes_of,
    score,
    value,
)

SPLIT = Split(name="held_out", role="held_out", digest="d", size=4, classes=2)


def predictions(logits, labels):
    return Predictions(
        split=SPLIT,
        logits=np.asarray(logits, dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
    )


def test_count_and_nll_by_hand():
    # log-odds 0, ln 3, -ln 3 and 0: p(label) = 1/2, 3/4, 1/4, 1/2
    a = math.log(3)
    scored = score(predictions([[0, 0], [a, 0], [0, a], [0, 0]], [0, 0, 0, 1]))
    assert (scored.n, scored.correct) == (4, 2)
    assert scored.right_mask().tolist() == [True, True, False, False]
    by_hand = -(2 * math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 4)) / 4
    assert scored.nll == pytest.approx(by_hand, rel=1e-6)


def test_a_tie_goes_to_the_lower_class():
    assert score(predictions([[1, 1]], [0])).correct == 1
    assert score(predictions([[1, 1]], [1])).correct == 0


def test_huge_logits_do_not_overflow():
    assert score(predictions([[1e30, -1e30]], [0])).nll == 0.0


def test_ece_by_hand_with_two_bins():
    # sorted by confidence: (.6, wrong), (.7, right) | (.8, right), (.9, right)
    confidence = np.array([0.9, 0.6, 0.8, 0.7])
    right = np.array([True, False, True, True])
    # |.65 - .5| * 2/4 + |.85 - 1| * 2/4
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (98, 100, 0.9296, 0.9976),
    ],
)
def test_clopper_pearson_against_published_tables(correct, n, low, high):
    assert clopper_pearson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_mcnemar_by_hand():
    # 6 discordant samples, 1 against 5: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(4, 0) == pytest.approx(2 / 16)
    assert mcnemar(0, 0) == 1.0


def test_discordant_counts_who_alone_is_right():
    a = score(predictions([[1, 0], [1, 0], [1, 0], [0, 1]], [0, 0, 0, 0]))
    b = score(predictions([[1, 0], [0, 1], [0, 1], [1, 0]], [0, 0, 0, 0]))
    assert discordant(a, b) == (2, 1)


def test_logit_is_clipped_by_half_a_sample():
    assert logit(0.5, 10) == 0
    assert logit(1.0, 10) == pytest.approx(math.log(0.95 / 0.05))
    assert logit(0.0, 10) == pytest.approx(-math.log(0.95 / 0.05))


def test_metrics_by_class_by_hand():
    # Labels 0 0 0 0 1 1 2; answers 0 0 0 1 1 0 2. Class 3 has no sample and is never answered.
    labels, answers = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 0, 2]
    logits = np.eye(4)[answers]
    scored = score(predictions(logits, labels))
    assert scored.by_class == ((4, 4, 3), (2, 2, 1), (1, 1, 1), (0, 0, 0))
    assert value(scored, "accuracy") == 5 / 7
    assert value(scored, "balanced_accuracy") == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert value(scored, "worst_class") == 0.5
    # F1: 6/8, 2/4, 2/2
    assert value(scored, "macro_f1") == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert value(scored, "nll") == -scored.nll


def test_a_count_alone_has_no_other_metric():
    tally = Tally(n=4, correct=3, right="4A==")
    assert value(tally, "accuracy") == 0.75
    with pytest.raises(ValueError, match="a count alone has no macro_f1"):
        value(tally, "macro_f1")


def test_bins_of_uneven_size_count_by_their_samples():
    # Five samples in two bins: three, then two. |.2 - 1/3| * 3/5 + |.75 - 1/2| * 2/5
    confidence = np.array([0.1, 0.2, 0.3, 0.7, 0.8])
    right = np.array([True, False, False, False, True])
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.08 + 0.1)
    # More bins than samples: each is a bin of its own. .9 + .2 + .3 + .7 + .2 over 5
    assert expected_calibration_error(confidence, right, bins=9) == pytest.approx(2.3 / 5)
    # 15 bins of 16 samples: the first has two, .1 and .1, one of them right.
    confidence = np.array([0.1, 0.1, *[0.5] * 14])
    right = np.array([True, False] * 8)
    assert expected_calibration_error(confidence, right) == pytest.approx((0.8 + 14 * 0.5) / 16)


def test_an_interval_of_another_level_by_hand():
    # 0 of n: the upper end solves (1 - p)^n = tail. 90 %: .05^(1/10); n of n: the mirror image.
    assert clopper_pearson(0, 10, 0.9) == pytest.approx((0, 1 - 0.05 ** (1 / 10)))
    assert clopper_pearson(10, 10, 0.9) == pytest.approx((0.05 ** (1 / 10), 1))
    # 1 of 2: P(X >= 1) = 1 - (1 - p)^2 = .025 and P(X <= 1) = 1 - p^2 = .025
    assert clopper_pearson(1, 2) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))


def test_the_ece_of_a_score_is_of_the_answers_probabilities():
    # p of the answer 3/4, right, and 9/10, wrong: |.75 - 1| and |.9 - 0|, halves of the mass.
    scored = score(predictions([[math.log(3), 0], [math.log(9), 0]], [0, 1]))
    assert scored.ece == pytest.approx((0.25 + 0.9) / 2, rel=1e-6)


def test_margins_by_hand():
    found = margins(predictions([[3, 1, 0], [2, 5, 4], [1, 1, 0]], [0, 2, 1]))
    assert found.tolist() == [2, -1, 0]


def test_nll_is_read_with_its_own_sign_and_all_else_as_it_is():
    assert as_read(-0.5, "nll") == 0.5
    assert as_read(0.75, "worst_class") == 0.75


def test_a_class_that_means_the_same_twice_is_the_first_that_says_so():
    test = msgspec.structs.replace(SPLIT, size=3, classes=4)
    made = Predictions(split=test, logits=np.zeros((3, 4), np.float32), labels=np.array([3, 0, 2]))
    shift = msgspec.structs.replace(SPLIT, name="r", classes=2, label_map=((0, 3), (3, 1)))
    found = on_classes_of(made, shift)
    assert found.labels.tolist() == [0, 0]
    assert (found.split.size, found.split.classes) == (2, 2)
