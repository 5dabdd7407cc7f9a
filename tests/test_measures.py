"""Measures of mixtures: what all ends get wrong, what is near a soup, distances to failures."""

import msgspec
import numpy as np
import pytest
import torch
from conftest import ROOT
from shared import board, inputs_of
from test_findings import noisy

from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.errors import ConfigError
from soupray.core.records import Objective
from soupray.core.requests import Failures, Surroundings
from soupray.diagnostics.both_wrong import BOTH_WRONG, ends_of, measure_both_wrong, mixture, shares
from soupray.diagnostics.failure_distance import (
    FAILURE_DISTANCE,
    bucket_rows,
    by_distance,
    measure_failure_distance,
)
from soupray.diagnostics.flatness import AT, FLATNESS, measure_flatness
from soupray.diagnostics.measure import CannotMeasure, Measure, Options
from soupray.diagnostics.measures import MEASURES, find_measures
from soupray.diagnostics.pairs import PAIRS, measure_pairs
from soupray.maths.geometry import cross_entropy
from soupray.reporting.ranking import Entry, Measured, Versus
from soupray.testing.linear import toy, truth


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy"), noisy(4, 1.0))


def mask(text: str):
    return np.array([c == "1" for c in text])


def entry(name: str, recipe: str, **options) -> Entry:
    """A row whose scores nobody reads."""
    scores = Measured(
        n=1, correct=1, accuracy=1, low=0, high=1, standard_error=0, nll=0, ece=0,
        balanced_accuracy=1, macro_f1=1, worst_class=1,
    )  # fmt: skip
    versus = Versus(only_this=0, only_best_single=0, p=None)
    return Entry(
        name=name, recipe=recipe, options=options, ingredients=[], coefficients=[],
        held_out=scores, rank=None, test=scores, shifts={}, shift_mean=0,
        held_out_versus_best_single=versus, test_versus_best_single=versus,
        forward_passes_per_sample=1, size_bytes=1, candidate="c",
    )  # fmt: skip


def test_names_are_unique_and_the_list_is_searched_by_name():
    names = [m.name for m in MEASURES]
    assert len(set(names)) == len(names)
    assert [m.name for m in find_measures(("robustness", "pairs"))] == ["pairs", "robustness"]
    assert find_measures(()) == MEASURES
    with pytest.raises(ConfigError, match=r"no measure 'rho', 'x'. There are: pairs, flatness"):
        find_measures(("rho", "x"))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_every_measure_says_what_it_is(measure: Measure):
    assert "arXiv:" in measure.paper
    assert measure.about.endswith(".")
    assert len(measure.summary) < 90


def test_the_guide_has_a_section_for_each_measure_in_their_order():
    text = (ROOT / "docs" / "guide" / "diagnose.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [*(m.name for m in MEASURES), "In Python"]


def test_the_guide_names_those_that_need_no_leaderboard():
    text = (ROOT / "docs" / "guide" / "diagnose.md").read_text()
    early = [f"`{m.name}`" for m in MEASURES if not m.after_soup]
    assert f"Before the first soup only {', '.join(early[:-1])} and {early[-1]} run" in text


# ---- Both wrong, mean right


def test_both_wrong_by_hand():
    """Ends right on {0, 1} and {0, 2}; the mixture on {1, 3, 4} of six: 0 is lost, 3 and 4 won."""
    ends = [mask("110000"), mask("101000")]
    found = mixture("m", ["a", "b"], {"test": (mask("010110"), ends)})
    (place,) = found.places
    assert (place.rescued, place.lost, place.all_wrong, place.all_right) == (2, 1, 3, 1)
    assert found.net == pytest.approx(1 / 6)
    assert shares(found) == [("ID test", 2 / 6, 1 / 6)]
    assert found.ends == "a and b"


def test_shifts_are_taken_together_by_position():
    ends = [mask("00"), mask("00")]
    each = {"test": (mask("00"), ends), "one": (mask("10"), ends), "two": (mask("10"), ends)}
    found = mixture("m", ["a", "b"], each)
    assert found.net == 0.5
    assert shares(found)[1] == ("shifts", 0.5, 0)
    # At each position both shifts agree: the values are 1 and 0, as of two samples, not of four.
    assert found.high - found.net == pytest.approx(1.959964 * 0.5 / np.sqrt(2))


def test_ends_are_the_anchor_and_theta_1_or_the_checkpoints(world):
    one, two, *_ = (mean_of([sha]) for sha in world.pool.checkpoints)
    anchor = mean_of([world.basis.anchor.sha256])
    line = mean_of([*anchor.checkpoints, *one.checkpoints])
    models = {"best_single": one, "line": line, "uniform": mean_of([*one.checkpoints,
                                                                    *two.checkpoints])}  # fmt: skip
    alone = ensemble_of([(one, 1, 1.0)], 1, "logits")
    made = board("line", **models, alone=alone)._replace(
        entries=(
            entry("line", "wise_ft", theta_1="best_single"),
            entry("alone", "vrf", theta_1="best_single"),
        )
    )
    assert ends_of("line", made, ("zero", anchor)) == {"zero": anchor, "best_single": one}
    assert [*ends_of("uniform", made, ("zero", anchor)).values()] == [one, two]
    assert ends_of("alone", made, ("zero", anchor)) == {}  # it chose one end
    assert len(ends_of("best_single", made, ("zero", anchor))) == 1
    found = measure_both_wrong(inputs_of(world, made))
    assert [m.name for m in found.mixtures] == ["line", "uniform"]
    test = world.basis.split("test")
    right = [s.right_mask() for s in world.evaluator.scores([anchor, one, line], test)]
    assert found.mixtures[0].places[0].rescued == (~right[0] & ~right[1] & right[2]).sum()
    assert found.mixtures[0].places[0].lost == (right[0] & right[1] & ~right[2]).sum()
    (table,) = BOTH_WRONG.section(found).tables
    assert [row[0] for row in table.rows] == ["line", "uniform"]


def test_a_board_of_single_models_is_left_out(world):
    made = board("best_single", best_single=mean_of(world.pool.checkpoints[:1]))
    assert "no entry" in BOTH_WRONG.left_out(inputs_of(world, made))


# ---- Flatness


def test_the_terms_of_linear_models(world):
    """Logits are linear along the line: no difference, so both terms are equal."""
    made = measure_flatness(inputs_of(world))
    pairs = {p.trials: p for p in measure_pairs(inputs_of(world)).pairs}
    assert len(made.pairs) == 3
    for found in made.pairs:
        assert found.measured == pytest.approx(0, abs=1e-6)
        assert found.confidence == pytest.approx(found.curvature, abs=2e-4)
        assert found.confidence > 0.001
        assert found.residual == found.measured - found.predicted
        # The same as the pairs, by another way.
        assert found.predicted == pytest.approx(pairs[found.trials].predicted, abs=1e-5)
        assert found.beta == pytest.approx(pairs[found.trials].beta, rel=1e-4)
        assert found.line[2] == found.beside[2]
        assert found.random > 0  # the loss is convex in the weights
    assert "The loss is convex along the line in 3 of 3 pairs" in " ".join(
        FLATNESS.section(made).sentences
    )


def test_surroundings_are_those_of_the_weights(world):
    """One tensor: theta + s d with d drawn by the seed, as long as the two ends are apart."""
    a, b = world.pool.checkpoints[:2]
    held_out = world.basis.split("held_out")
    request = Surroundings(soup=mean_of([a, b]), ends=(a, b), at=AT, seed=5)
    (found,) = world.evaluator.measure([request], held_out)
    one, two = (world.checkpoints.load(sha)["head.weight"].double() for sha in (a, b))
    drawn = torch.randn(one.shape, generator=torch.Generator().manual_seed(5)).double()
    way = drawn * ((one - two).norm() / drawn.norm())
    images, labels = world.data.samples(held_out)
    x = torch.from_numpy(np.array(images)).flatten(1).double() / 255 - 0.5
    for s, loss in zip(AT, found.losses, strict=True):
        logits = x @ ((one + two) / 2 + s * way).T
        assert loss == pytest.approx(
            cross_entropy(logits.numpy(), np.asarray(labels), found.beta), abs=1e-5
        )
    # The live model is as before: the soup's own loss did not move.
    (scores,) = world.evaluator.scores([mean_of([a, b])], held_out)
    again = world.workers.predictions(mean_of([a, b]), held_out)
    assert cross_entropy(again.logits, np.asarray(labels)) == pytest.approx(scores.nll)


def test_equal_models_are_flat(tmp_path):
    world = toy(tmp_path, [truth()] * 3)
    made = measure_flatness(inputs_of(world))
    assert {p.confidence for p in made.pairs} == {0}
    assert [p.random for p in made.pairs] == pytest.approx([0] * 3, abs=1e-9)
    FLATNESS.section(made)


def test_few_pairs_are_few_passes(world):
    inputs = inputs_of(world, options=Options(pairs=2))
    needed = FLATNESS.needs(inputs)
    assert len(needed.requests) == 2
    assert {samples for _, _, samples in needed.requests} == {5 * 90}
    assert len(PAIRS.needs(inputs).models[0][0]) == 4 + 2 * 3


# ---- Distance to the failure set


def test_accuracies_by_distance_by_hand():
    """Ten ranges of 30 samples: the fine-tuned model knows the near half, the anchor the rest."""
    distances = np.arange(300.0)
    place = by_distance("test", distances, (distances < 150, distances >= 120), None)
    assert [b.n for b in place.buckets] == [30] * 10
    assert [b.fine_tuned for b in place.buckets] == [1] * 5 + [0] * 5
    assert [b.anchor for b in place.buckets] == [0] * 4 + [1] * 6
    assert [b.ratio for b in place.buckets] == [None] * 4 + [1] + [0] * 5
    assert [b.difference for b in place.buckets] == [1] * 4 + [0] + [-1] * 5
    assert place.correlation < -0.8


def test_few_samples_are_joined_and_it_is_said():
    place = by_distance("test", np.arange(60.0), (np.ones(60, bool), np.ones(60, bool)))
    assert [b.n for b in place.buckets] == [30, 30]
    assert place.asked == 10
    assert place.correlation is None  # the two models never differ


def failures_of(world):
    """Trials against theta_0, which is the anchor of the linear world."""
    models = {"best_single": mean_of(world.pool.checkpoints[:1])}
    return inputs_of(world, board("best_single", **models))


def test_distances_are_those_of_vrf(tmp_path):
    """The anchor, upside down, gets most wrong: what the trial knows of these is the set."""
    world = toy(tmp_path, [truth(), truth() + 0.1])
    flipped = world.checkpoints.save({"head.weight": -truth()}, {"init": "toy"})
    basis = msgspec.structs.replace(world.basis, anchor=flipped)
    world = world._replace(basis=basis, pool=msgspec.structs.replace(world.pool, anchor=flipped))
    made = measure_failure_distance(failures_of(world))
    (start,) = made.starts
    asked = Failures(fine_tuned=mean_of(world.pool.checkpoints[:1]),
                     reference=mean_of([flipped.sha256]))  # fmt: skip
    (failed,) = world.evaluator.measure([asked], basis.split("train"))
    assert (start.failures, start.k, start.omega) == (failed.size, 1, None)
    test = start.places[0]
    assert [p.split for p in start.places] == ["test", "far"]
    assert sum(b.n for b in test.buckets) == 70
    right = world.evaluator.scores([mean_of(world.pool.checkpoints[:1])], basis.split("test"))
    assert sum(b.n * b.fine_tuned for b in test.buckets) == pytest.approx(right[0].correct)
    section = FAILURE_DISTANCE.section(made)
    assert len(section.tables[0].rows) == sum(len(p.buckets) for p in start.places)
    assert len(bucket_rows(test, start)) == 2 * len(test.buckets)
    assert "buckets were joined: each has at least 25 samples" in section.tables[0].meaning
    few = msgspec.structs.replace(start, failures=24)
    assert "24 samples, fewer than 25" in " ".join(
        FAILURE_DISTANCE.section(msgspec.structs.replace(made, starts=(few,))).sentences
    )
    assert "fewer than 25: distances" not in " ".join(section.sentences)


def test_an_anchor_that_knows_all_leaves_no_failure_set(tmp_path):
    world = toy(tmp_path, [truth() * 0.5, truth() * 0.4])  # they answer as theta_0 does
    with pytest.raises(CannotMeasure, match="best_single: the failure set is empty"):
        measure_failure_distance(failures_of(world))


def test_the_anchor_itself_is_left_out(tmp_path):
    world = toy(tmp_path, [truth() * 0.3])
    assert world.pool.checkpoints[0] == world.basis.anchor.sha256
    said = FAILURE_DISTANCE.left_out(failures_of(world))
    assert said == "the best single model is the anchor"


def test_without_faiss_it_says_what_to_install(world, monkeypatch):
    monkeypatch.setattr("soupray.diagnostics.failure_distance.find_spec", lambda name: None)
    assert "pip install 'soupray[cpu]'" in FAILURE_DISTANCE.left_out(failures_of(world))


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_what_needs_classes_is_left_out_by_name(tmp_path, kind):
    world = toy(tmp_path, noisy(2, 0.4), objective=Objective(kind=kind, tolerance=0.5))
    inputs = failures_of(world)
    left = {m.name for m in MEASURES if "it is for one_class" in (m.left_out(inputs) or "")}
    assert {"pairs", "flatness", "specialisation", "failure_distance"} <= left
    assert not {"robustness", "inconsistency", "additions", "both_wrong"} & left
