"""Records: equal content has equal digests, and JSON keeps everything."""

import pickle

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from soupray.core.candidates import (
    FisherSoup,
    LayerSoup,
    Outcome,
    OutputEnsemble,
    Step,
    VRFEnsemble,
    WeightSoup,
    ensemble_of,
    mean_of,
    weight_soup,
)
from soupray.core.records import CheckpointRef, Rejected, Scores, decode, digest, encode, pack_right

A, B = "a" * 64, "b" * 64


def scores(correct: int = 3, n: int = 4) -> Scores:
    right = np.arange(n) < correct
    return Scores(
        split="5" * 64, n=n, correct=correct, nll=0.5, ece=0.1, right=pack_right(right), by_class=()
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
        candidate=mean_of([A, B]), result=Rejected(seen=3, correct=1, bound=9), accepted=False
    )
    assert decode(encode(step), Step) == step
    assert pickle.loads(pickle.dumps(step)) == step
    other = Step(candidate=mean_of([A]), result=scores(), accepted=True)
    assert decode(encode(other), Step) == other


def test_unknown_or_mistyped_fields_are_refused_by_name():
    with pytest.raises(msgspec.ValidationError, match="size_byte"):
        decode(encode({"sha256": A, "size_byte": 1}), CheckpointRef)
    with pytest.raises(msgspec.ValidationError, match=r"size_bytes"):
        decode(encode({"sha256": A, "size_bytes": "1"}), CheckpointRef)


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


def test_what_each_kind_of_candidate_is_made_of_by_hand():
    a, mixed = mean_of(["a"]), weight_soup([("a", 1), ("b", 3)], 4)
    layered = LayerSoup(
        checkpoints=("a", "b"),
        layers=((("x", "y"), (1, 3)), (("z",), (4, 0))),
        rest=(2, 2),
        denominator=4,
    )
    fisher = FisherSoup(parts=(("a", "f", 1), ("b", "g", 1)))
    ensemble = OutputEnsemble(
        parts=((a, 1, 1.0), (mixed, 2, 1.0), (layered, 1, 2.0)), denominator=4, space="logits"
    )
    vrf = VRFEnsemble(
        fine_tuned=mixed,
        reference=mean_of(["z"]),
        temperatures=(1.0, 2.0),
        failures=CheckpointRef(sha256="f", size_bytes=1),
        k=1,
        a=0.5,
        b=2.0,
    )
    shares = {
        mixed: (0.25, 0.75),
        layered: ((1 / 4 + 4 / 4) / 2, (3 / 4) / 2),  # the mean over the rows of layers
        replace(layered, layers=()): (0.5, 0.5),  # no layer has its own: the rest's
        fisher: (0.5, 0.5),
        # a: 1/4 + 2/4 * 1/4 + 1/4 * 5/8; b: 2/4 * 3/4 + 1/4 * 3/8
        ensemble: (0.53125, 0.46875),
        vrf: (),
    }
    for candidate, expected in shares.items():
        assert candidate.coefficients == pytest.approx(expected), candidate
        assert candidate.digest == digest(candidate)
    for candidate in (mixed, layered, fisher, ensemble):
        assert candidate.checkpoints == ("a", "b")
    assert vrf.checkpoints == ("a", "b", "z")
    for model in (mixed, layered, fisher):
        assert model.members == (model,)
    assert ensemble.members == (a, mixed, layered)
    assert vrf.members == (mixed, mean_of(["z"]))
    assert layered.numerators() == {"x": (1, 3), "y": (1, 3), "z": (4, 0)}


def test_an_ensemble_is_in_lowest_terms_and_of_equal_members_joined():
    a, b = mean_of(["a"]), mean_of(["b"])
    made = ensemble_of([(a, 2, 1.0), (b, 0, 1.0), (b, 4, 1.0), (a, 2, 1.0)], 8, "logits")
    assert (made.parts, made.denominator) == (((a, 1, 1.0), (b, 1, 1.0)), 2)
    # Another temperature makes another member; what has no share is not run.
    made = ensemble_of([(a, 1, 1.0), (a, 1, 2.0), (b, 0, 1.0)], 2, "probabilities")
    assert (made.parts, made.denominator) == (((a, 1, 1.0), (a, 1, 2.0)), 2)
    for parts, denominator in (([(a, 1, 1.0)], 2), ([], 0), ([(a, -1, 1.0)], -1)):
        with pytest.raises(ValueError, match="do not sum to 1"):
            ensemble_of(parts, denominator, "logits")
    for wrong, denominator in (([], 0), ([("a", -1)], -1)):
        with pytest.raises(ValueError, match="do not sum to 1"):
            weight_soup(wrong, denominator)
    assert weight_soup([("a", 3), ("b", -1)], 2).coefficients == (1.5, -0.5)
    assert ensemble_of([(a, 3, 1.0), (b, -1, 1.0)], 2, "logits").coefficients == (1.5, -0.5)


def test_the_parts_of_an_outcome_that_are_seldom_told_are_empty():
    made = Outcome(name="x", recipe="x", options={}, candidate=mean_of("a"), held_out=scores())
    assert (made.trace, made.notes) == ((), ())
