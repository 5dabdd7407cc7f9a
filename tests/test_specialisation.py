"""Where each of two models is better, and what a trial would add: worked out by hand."""

import numpy as np
import pytest
from shared import board, inputs_of
from test_findings import noisy

from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.records import Objective, Predictions, Split
from soupray.diagnostics.additions import ADDITIONS, measure_additions
from soupray.diagnostics.specialisation import (
    SPECIALISATION,
    angle_rows,
    compare,
    measure_specialisation,
)
from soupray.maths.disagreement import paired_mean
from soupray.maths.metrics import paired_difference, score
from soupray.testing.linear import toy, truth

CLASSES = ("a", "b", "c")


def predictions(answers: list[int], labels: list[int]) -> Predictions:
    """Probability 0.9 for the answer, 0.05 for the two others."""
    p = np.full((len(labels), 3), 0.05, np.float32)
    p[np.arange(len(labels)), answers] = 0.9
    split = Split(name="test", role="test", digest="1" * 64, size=len(labels), classes=3)
    return Predictions(split=split, logits=np.log(p), labels=np.array(labels))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy"), noisy(4, 1.0))


def test_two_models_by_hand():
    """30 samples of a, 28 of b, 3 of c: the first knows a, the second b, both know c."""
    labels = [0] * 30 + [1] * 28 + [2] * 3
    first = predictions([0] * 30 + [2] * 28 + [2] * 3, labels)
    second = predictions([1] * 15 + [0] * 15 + [1] * 28 + [2] * 3, labels)
    found = compare((("x", first), ("y", second)), CLASSES)
    assert found.accuracies == (33 / 61, pytest.approx(46 / 61))
    by_name = {part.name: part for part in found.classes}
    assert [*by_name] == ["b", "a", "1 smaller classes"]  # -1, then +1/2, then what is joined
    assert by_name["a"].accuracies == (1, 0.5)
    assert by_name["a"].difference == 0.5
    assert by_name["b"].difference == -1
    assert by_name["1 smaller classes"].n == 3
    assert found.joined == 1
    # Where one is right and the other wrong, the angle is arctan2(0.9, 0.05) or its complement.
    angle = np.degrees(np.arctan2(0.9, 0.05))
    assert found.first_surer == 15 / 61
    assert found.second_surer == pytest.approx(28 / 61)
    counts = {row["angle"]: row["samples"] for row in angle_rows(found) if row["samples"]}
    assert counts == {2.5: 28, 47.5: 18, 87.5: 15}
    assert 85 < angle < 90
    # All confidences are 0.9: one bucket has all samples.
    assert [part.n for part in found.buckets] == [61]
    assert (found.asked, found.buckets[0].name) == (5, "90.0 to 90.0 %")


def test_the_interval_of_all_samples_is_the_leaderboards():
    rng = np.random.default_rng(0)
    labels = [0] * 40
    one, two = (predictions(rng.integers(0, 2, 40).tolist(), labels) for _ in range(2))
    (part,) = compare((("x", one), ("y", two)), CLASSES).classes
    assert (part.difference, part.low, part.high) == paired_difference(score(one), score(two))


def test_a_section_names_what_was_joined():
    labels = [0] * 30 + [1] * 3
    one = predictions([0] * 33, labels)
    made = compare((("x", one), ("y", one)), CLASSES, "both")
    section = SPECIALISATION.section(SPECIALISATION.record(pairs=(made,)))
    (table,) = section.tables
    assert "1 classes with fewer than 25 samples are one row" in table.meaning
    assert "5 buckets of confidence became 1: each has at least 25 samples" in table.meaning
    assert "none; y: none" in section.sentences[1]


def test_pairs_are_the_champion_and_the_trials_that_differ_most(world):
    shas = world.pool.checkpoints
    models = {"best_single": mean_of(shas[:1]), "uniform": mean_of(shas)}
    made = measure_specialisation(inputs_of(world, board("uniform", **models)))
    assert made.pairs[0].models == ("uniform", "best_single")
    right = [i.held_out.right_mask() for i in world.pool.ingredients]
    apart = max(
        ((a != b).mean(), i, j) for i, a in enumerate(right) for j, b in enumerate(right) if i < j
    )
    named = {f"trial {world.pool.ingredients[k].trial.key[:8]}" for k in apart[1:]}
    most = (right[0] != right[0]).mean()
    for i, a in enumerate(right):
        for j, b in enumerate(right):
            keys = {f"trial {world.pool.ingredients[k].trial.key[:8]}" for k in (i, j)}
            if keys == set(made.pairs[1].models):
                most = (a != b).mean()
    assert most == apart[0]
    assert len(named) == 2
    # A champion that is the best single model is compared with the next entry.
    single = measure_specialisation(inputs_of(world, board("best_single", **models)))
    assert single.pairs[0].models == ("uniform", "best_single")


def test_one_model_is_left_out(tmp_path):
    alone = toy(tmp_path, [truth()])
    made = board("best_single", best_single=mean_of(alone.pool.checkpoints))
    assert "there is one model" in SPECIALISATION.left_out(inputs_of(alone, made))


def test_a_paired_mean_by_hand():
    """-1, 0, 1, 2: mean 1/2, standard deviation sqrt(5)/2, error sqrt(5)/4."""
    mean, low, high = paired_mean(np.array([-1.0, 0, 1, 2]))
    assert mean == 0.5
    assert high - mean == pytest.approx(1.959964 * np.sqrt(5) / 4)
    assert mean - low == pytest.approx(high - mean)


def test_an_addition_is_the_evaluators_ensemble(world):
    shas = world.pool.checkpoints
    pair = ensemble_of([(mean_of([sha]), 1, 1.0) for sha in shas[:2]], 2, "logits")
    models = {"best_single": mean_of(shas[:1]), "ensemble": pair}
    made = measure_additions(inputs_of(world, board("ensemble", **models)))
    held_out = world.basis.split("held_out")
    (before,) = world.evaluator.scores([pair], held_out)
    assert (made.members, made.accuracy) == (2, before.accuracy)
    by_key = {a.trial: a for a in made.trials}
    for i in world.pool.ingredients:
        parts = [(mean_of([sha]), 1, 1.0) for sha in (*shas[:2], i.checkpoint.sha256)]
        (after,) = world.evaluator.scores([ensemble_of(parts, 3, "logits")], held_out)
        found = by_key[i.trial.key]
        assert found.gain == pytest.approx(after.accuracy - before.accuracy)
        assert found.inside == (i.checkpoint.sha256 in shas[:2])
        assert found.low <= found.gain <= found.high
    assert [a.loss for a in made.trials] == sorted(a.loss for a in made.trials)


def test_how_sure_a_trial_is_does_not_matter_for_what_it_adds(tmp_path):
    """The champion itself, twice as sure, adds nothing: after calibration they are one model."""
    world = toy(tmp_path, [truth() * 0.5, truth()])
    shas = world.pool.checkpoints
    made = measure_additions(inputs_of(world, board("m", best_single=mean_of(shas[:1]),
                                                    m=mean_of(shas[:1]))))  # fmt: skip
    assert [a.loss for a in made.trials] == pytest.approx([0, 0], abs=1e-6)
    said = ADDITIONS.section(made).sentences
    assert said[0].startswith("0 of 2 trials lower the loss of m by more than the interval")


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_additions_are_for_other_objectives_too(tmp_path, kind):
    world = toy(tmp_path, noisy(3, 0.4), objective=Objective(kind=kind, tolerance=0.5))
    models = {"best_single": mean_of(world.pool.checkpoints[:1])}
    inputs = inputs_of(world, board("best_single", **models))
    assert ADDITIONS.left_out(inputs) is None
    assert "it is for one_class" in SPECIALISATION.left_out(inputs)
    made = measure_additions(inputs)
    assert len(made.trials) == 3
    ADDITIONS.section(made)
