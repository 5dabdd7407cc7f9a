"""Shifts of clothes, by hand. Those of the digits are in test_data.py."""

import math

import numpy as np
import pytest
from shared import shifted_images


def image(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)[None, None]


def test_faded_by_hand():
    assert shifted_images("faded", image([[0, 10, 100, 200]]), 0).tolist() == [[[[0, 3, 30, 60]]]]


def test_pixelated_by_hand():
    # Blocks of 3 x 3, 3 x 1, 1 x 3 and 1 x 1 pixels, each its mean.
    before = image([[9, 0, 0, 30], [0, 90, 0, 0], [0, 0, 0, 0], [1, 2, 6, 77]])
    after = [[11, 11, 11, 10], [11, 11, 11, 10], [11, 11, 11, 10], [3, 3, 3, 77]]
    assert shifted_images("pixelated", before, 0)[0, 0].tolist() == after


def test_moved_by_a_seventh_of_the_side_in_each_of_four_directions():
    dots = np.zeros((40, 1, 14, 21), np.uint8)
    dots[:, 0, 7, 10] = 200
    dots[:, 0, 0, 0] = 100  # comes in nowhere else; goes out half of the time
    shifted = shifted_images("moved", dots, 0)
    assert ((shifted == 200).sum(axis=(1, 2, 3)) == 1).all()
    _, _, rows, columns = np.nonzero(shifted == 200)
    # 14 / 7 = 2 rows, 21 / 7 = 3 columns
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (5, 10),
        (9, 10),
        (7, 7),
        (7, 13),
    }
    _, _, rows, columns = np.nonzero(shifted == 100)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(2, 0), (0, 3)}


def test_occluded_hides_one_square_of_three_sevenths_somewhere():
    white = np.full((60, 1, 14, 14), 255, np.uint8)
    places = set()
    for picture in shifted_images("occluded", white, 0)[:, 0]:
        rows, columns = np.nonzero(picture == 0)
        assert len(rows) == 6 * 6
        assert (np.ptp(rows), np.ptp(columns)) == (5, 5)
        assert set(np.unique(picture)) == {0, 255}
        places.add((int(rows.min()), int(columns.min())))
    assert {row for row, _ in places} == {column for _, column in places} == set(range(9))


def test_blurred_spreads_a_dot_as_a_gaussian():
    dot = np.zeros((1, 1, 21, 21), np.uint8)
    dot[0, 0, 10, 10] = 255
    weights = [math.exp(-(d**2) / (2 * 1.5**2)) for d in range(-4, 5)]
    kernel = np.array(weights) / sum(weights)
    expected = np.zeros((21, 21))
    expected[6:15, 6:15] = 255 * np.outer(kernel, kernel)
    assert np.abs(shifted_images("blurred", dot, 0)[0, 0] - expected).max() <= 0.5


def test_grainy_has_a_standard_deviation_of_a_tenth():
    grey = np.full((20, 1, 64, 64), 128, np.uint8)
    noisy = shifted_images("grainy", grey, 0).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.01)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
