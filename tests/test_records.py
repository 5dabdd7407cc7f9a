"""Records: equal content has equal digests, and JSON keeps everything."""

import pickle

import msgspec
import numpy as np
import pytest

from soupray.core.candidates import Step, WeightSoup, mean_of, weight_soup
from soupray.core.records import CheckpointRef, Rejected, Scores, decode, digest, encode, pack_right


def scores(correct: int = 3, n: int = 4) -> Scores:
    right = np.arange(n) < correct
    return Scores(
        split="s", n=n, correct=correct, nll=0.5, ece=0.1, right=pack_right(right), by_class=()
    )


def test_a_soup_is_in_lowest_terms_so_that_equal_soups_are_equal_records():
    assert weight_soup([("a", 2), ("b", 2)], 4) == mean_of(["a", "b"])
    assert weight_soup([("a", 5), ("b", 15)], 20) == WeightSoup(
        parts=(("a", 1), ("b", 3)), denominator=4
    )
    assert weight_soup([("a", 0), ("b", 20)], 20) == mean_of(["b"])
    assert hash(weight_soup([("a", 2), ("b", 2)], 4)) == hash(mean_of(["a", "b"]))


@pytest.mark.parametrize("parts", [[("a", 1), ("b", 1)], [("a", 4)], []])
def test_coefficients_that_do_not_sum_to_one_are_refused(parts):
    with pytest.raises(ValueError, match="do not sum to 1"):
        weight_soup(parts, 3)


def test_records_survive_json_and_pickle():
    step = Step(
        candidate=mean_of(["a", "b"]), result=Rejected(seen=3, correct=1, bound=9), accepted=False
    )
    assert decode(encode(step), Step) == step
    assert pickle.loads(pickle.dumps(step)) == step
    other = Step(candidate=mean_of(["a"]), result=scores(), accepted=True)
    assert decode(encode(other), Step) == other


def test_unknown_or_mistyped_fields_are_refused_by_name():
    with pytest.raises(msgspec.ValidationError, match="size_byte"):
        decode(b'{"sha256": "x", "size_byte": 1}', CheckpointRef)
    with pytest.raises(msgspec.ValidationError, match=r"size_bytes"):
        decode(b'{"sha256": "x", "size_bytes": "1"}', CheckpointRef)


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        scores().n = 7  # type: ignore[misc]


def test_the_digest_of_plain_data_does_not_depend_on_key_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    # sha256 of {"a":1,"b":2}
    assert digest({"a": 1, "b": 2}).startswith("43258cff783fe703")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_right_is_kept_per_sample(n):
    right = np.random.default_rng(n).random(n) < 0.5
    kept = Scores(
        split="s", n=n, correct=int(right.sum()), nll=0, ece=0, right=pack_right(right), by_class=()
    )
    assert (kept.right_mask() == right).all()


def test_accuracy_and_its_standard_error():
    # p = .75, n = 4: sqrt(.75 * .25 / 4) = .2165
    assert scores().accuracy == 0.75
    assert scores().standard_error == pytest.approx(0.2165, abs=1e-4)
