"""Graded metrics: values by hand, decisions of a plain loop, tests that McNemar's is a case of."""

import base64
import itertools
import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from soupray.core.candidates import mean_of
from soupray.core.errors import CheckpointError, EvaluationError
from soupray.core.plugins import load
from soupray.core.records import (
    UNITS,
    Objective,
    Predictions,
    Rejected,
    Scores,
    Split,
    Tally,
    decode,
    digest,
    encode,
    pack_right,
    pack_units,
    unpack_units,
)
from soupray.diagnostics.diversity import diagnosis
from soupray.evaluation.evidence import check_scores
from soupray.evaluation.schedule import Answer, FirstReaching, Goal
from soupray.maths import graded
from soupray.maths.graded import mean_interval, overlap, sign_flip_p
from soupray.maths.losses import loss_sum
from soupray.maths.metrics import (
    discordant,
    interval,
    margins,
    mcnemar,
    paired_difference,
    paired_p,
    right_mask,
    sample_values,
    score,
    value,
)
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import Earlier
from soupray.reporting.ranking import measured
from soupray.testing.linear import toy

MASKS = Objective(kind="segmentation")


def said(outputs, targets) -> Predictions:
    outputs = np.asarray(outputs, np.float32)
    split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(outputs),
                  classes=1, objective=MASKS)  # fmt: skip
    return Predictions(split=split, logits=outputs, labels=np.asarray(targets, np.uint8))


def scores(values, name: str = "iou") -> Scores:
    values = np.asarray(values, np.uint16)
    total = int(values.sum(dtype=int))
    return Scores(split=digest("x"), n=len(values), correct=total, nll=0.0, ece=0.0,
                  right=pack_units(values), by_class=(), others={}, graded=name)  # fmt: skip


THREE = said(
    [[1, 1, -1, -1], [1, 0, -1, -1], [-1, -1, -1, -1], [-1, 2, -1, -1]],
    [[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]],
)
"""IoU 2/3, 0 (a logit of 0 says no), 1 (both masks are empty) and 1."""


def test_masks_have_their_intersection_over_union():
    found = score(THREE)
    # 2/3 is 6666.7 units: the nearest is 6667.
    assert sample_values(THREE).tolist() == [6667, 0, 10_000, 10_000]
    assert (found.n, found.correct, found.most) == (4, 26_667, 40_000)
    assert value(found, "iou") == found.accuracy == 0.666675
    assert found.others == {"dice": (4 / 5 + 0 + 1 + 1) / 4, "pixel_accuracy": (3 + 2 + 4 + 4) / 16}
    assert value(found, "dice") == pytest.approx(0.7)
    losses = np.logaddexp(0, np.where(THREE.labels == 1, -1.0, 1.0) * THREE.logits)
    assert found.nll == pytest.approx(losses.mean())
    assert margins(THREE).tolist() == [0.6667, 0, 1, 1]
    assert found.standard_error == pytest.approx(np.std([0.6667, 0, 1, 1]) / 2)
    assert measured(found).read("iou") == found.accuracy
    with pytest.raises(ValueError, match="these scores have no accuracy"):
        value(found, "accuracy")
    for wrong in (lambda: right_mask(THREE), found.right_mask):
        with pytest.raises(ValueError, match=r"intersection over union|value of iou each"):
            wrong()


def test_the_loss_of_masks_is_the_binary_cross_entropy_of_pixels():
    outputs, targets = torch.from_numpy(THREE.logits), torch.from_numpy(THREE.labels)
    assert float(loss_sum(outputs, targets, MASKS)) / 4 == pytest.approx(score(THREE).nll)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_overlap_is_that_of_exact_fractions_and_of_scikit_learn(seed, n, pixels):
    from fractions import Fraction

    from sklearn.metrics import jaccard_score

    draw = np.random.default_rng(seed)
    outputs = draw.normal(size=(n, pixels)).astype(np.float32) - 0.5
    targets = (draw.random((n, pixels)) < draw.random()).astype(np.uint8)
    for row, units in enumerate(overlap(outputs, targets).tolist()):
        yes, there = outputs[row] > 0, targets[row] == 1
        union = int((yes | there).sum())
        exact = Fraction(int((yes & there).sum()), union) if union else Fraction(1)
        assert units == (2 * UNITS * exact + 1) // 2  # half a unit is rounded upwards
        assert float(exact) == pytest.approx(jaccard_score(there, yes, zero_division=1))


def test_records_of_values_are_read_again_and_those_of_counts_do_not_change():
    found = score(THREE)
    assert decode(encode(found), Scores) == found
    assert found.values().tolist() == [0.6667, 0, 1, 1]
    assert base64.b64decode(found.right) == bytes.fromhex("0b1a000010271027")  # 6667 is 0x1a0b
    counted = Tally(n=3, correct=2, right=pack_right(np.array([1, 0, 1], bool)))
    assert encode(counted) == b'{"correct":2,"n":3,"right":"oA==","type":"tally"}'
    assert counted.accuracy == 2 / 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"correct": 26_666}, "the values in right give 26667"),
        ({"right": pack_units(np.array([6667, 0, 10_001, 9_999]))}, "has the value 10001"),
        ({"n": 5}, "does not have the values of n = 5 samples"),
        ({"graded": msgspec.UNSET}, "right is not a mask of n = 4"),
    ],
)
def test_values_that_contradict_their_sum_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        msgspec.structs.replace(score(THREE), **wrong)


# ---- decisions


@given(st.integers(0, 2**31), st.sampled_from(["ge", "gt"]))
@settings(max_examples=300, deadline=None)
def test_decisions_are_those_of_a_plain_loop(seed, accept):
    """Tables of random values, random bounds near their sums, workers in any order."""
    draw = np.random.default_rng(seed)
    n, models, batch = (int(draw.integers(1, high)) for high in (25, 6, 7))
    table = draw.integers(0, UNITS + 1, (models, n)).astype(np.uint16)
    if draw.random() < 0.3:
        table = (table > UNITS // 2).astype(np.uint16) * UNITS  # yes or no, in units
    sums = table.sum(axis=1, dtype=int)
    bound = int(np.clip(draw.choice(sums) + draw.integers(-1, 2), 0, n * UNITS))
    orders = [tuple(draw.permutation(n).tolist()) for _ in range(models)]
    schedule = FirstReaching(models, orders.__getitem__, batch, Goal(bound, accept, "iou"), "fp32")
    running = []
    while (reached := schedule.answer()) is None:
        while len(running) < 3 and (unit := schedule.next()) is not None:
            running.append(unit)
        unit = running.pop(int(draw.integers(len(running))))
        values = table[unit.candidate][list(unit.rows)]
        schedule.take(unit, Answer(values, np.zeros(len(values), bool)))
    hits = [s > bound if accept == "gt" else s >= bound for s in sums]
    assert reached.hit == any(hits)
    for k, result in enumerate(reached.results):
        if isinstance(result, Rejected):
            assert not hits[k]
            counted = list(orders[k][: result.seen])
            assert result.correct == table[k][counted].sum(dtype=int)
            assert result.bound == bound
            # It was hopeless then, and not one batch earlier.
            needed = bound + (accept == "gt")
            assert result.correct + (n - result.seen) * UNITS < needed
            before = max(0, result.seen - (result.seen % batch or batch))
            kept = table[k][list(orders[k][:before])].sum(dtype=int)
            assert before == 0 or kept + (n - before) * UNITS >= needed
        else:
            assert (result.correct, result.graded) == (sums[k], "iou")
            assert result.right == pack_units(table[k])


def test_yes_or_no_in_units_is_decided_as_yes_or_no():
    """The same batches, the same number of samples, the same decisions: only the unit differs."""
    draw = np.random.default_rng(0)
    for _ in range(100):
        table = draw.random((4, 20)) < 0.8
        bound = int(draw.integers(12, 20))

        def run(goal: Goal, unit: int, table=table):
            schedule = FirstReaching(4, lambda _: tuple(range(20)), 3, goal, "fp32")
            while (reached := schedule.answer()) is None:
                some = schedule.next()
                mask = table[some.candidate][list(some.rows)]
                values = mask if unit == 1 else mask.astype(np.uint16) * unit
                schedule.take(some, Answer(values, np.zeros(len(mask), bool)))
            counts = [(type(r), getattr(r, "seen", 0), r.correct // unit) for r in reached.results]
            return reached.hit, counts, schedule.samples

        assert run(Goal(bound, "ge"), 1) == run(Goal(bound * UNITS, "ge", "iou"), UNITS)


def test_early_rejection_of_masks_decides_as_a_plain_loop(tmp_path):
    world = toy(tmp_path, 8, objective=MASKS)
    held_out = world.basis.split("held_out")
    draw = np.random.default_rng(0)
    given_up = 0
    for _ in range(100):
        some = draw.choice(world.pool.checkpoints, size=(4, 2))
        candidates = [mean_of(sorted(set(pair.tolist()))) for pair in some]
        sums = [score(world.workers.predictions(c, held_out)).correct for c in candidates]
        bound, accept = int(draw.choice(sums)), str(draw.choice(["ge", "gt"]))
        selection = world.selection(metric="iou")
        reached = selection.first_reaching(candidates, bound / (90 * UNITS), accept)
        hits = [s > bound if accept == "gt" else s >= bound for s in sums]
        assert reached.hit == any(hits)
        assert len(reached.results) == (hits.index(True) + 1 if any(hits) else 4)
        if reached.hit:
            assert reached.results[-1].correct == sums[hits.index(True)]
        given_up += sum(isinstance(r, Rejected) for r in reached.results)
    assert given_up > 20


@pytest.mark.parametrize("metric", ["iou", "dice", "nll"])
def test_greedy_on_masks_is_greedy_by_hand(tmp_path, metric):
    world = toy(tmp_path, 5, objective=MASKS)
    held_out = world.basis.split("held_out")
    (outcome,) = GREEDY.run(world.selection(metric=metric), Earlier(), {"accept": "ge"})

    def worth(parts) -> float:
        return value(score(world.workers.predictions(mean_of(parts), held_out)), metric)

    ranked = sorted(world.pool.checkpoints, key=lambda sha: -worth([sha]))
    kept = ranked[:1]
    for sha in ranked[1:]:
        if worth([*kept, sha]) >= worth(kept):
            kept.append(sha)
    assert sorted(outcome.candidate.checkpoints) == sorted(kept)


# ---- tests and intervals


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5), st.integers(1, UNITS))
@settings(max_examples=200, deadline=None)
def test_mcnemar_is_the_permutation_test_of_yes_or_no(only_a, only_b, same, unit):
    differences = np.array([unit] * only_a + [-unit] * only_b + [0] * same, np.int64)
    assert sign_flip_p(differences) == pytest.approx(mcnemar(only_a, only_b), rel=1e-9)


def test_scores_of_yes_or_no_have_the_p_value_of_mcnemar_itself():
    draw = np.random.default_rng(1)
    for _ in range(100):
        a, b = (draw.random(40) < p for p in (0.7, 0.8))
        plain = [Scores(split=digest("x"), n=40, correct=int(m.sum()), nll=0.0, ece=0.0,
                        right=pack_right(m), by_class=()) for m in (a, b)]  # fmt: skip
        assert paired_p(*plain) == mcnemar(*discordant(*plain))  # to the last bit
        both = [scores(m.astype(int) * UNITS) for m in (a, b)]
        assert paired_p(*both) == pytest.approx(paired_p(*plain), rel=1e-9)
        assert discordant(*both) == discordant(*plain)
        assert paired_difference(*both)[0] == pytest.approx(paired_difference(*plain)[0])


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_the_exact_test_counts_all_exchanges(differences):
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    far = [abs(sum(s * d for s, d in zip(row, differences, strict=True))) for row in signs]
    expected = sum(f >= abs(sum(differences)) for f in far) / len(signs)
    assert sign_flip_p(np.array(differences)) == pytest.approx(expected)


def test_random_exchanges_are_near_the_exact_test_and_the_same_each_time(monkeypatch):
    draw = np.random.default_rng(2)
    for shift in (0, 3, 6):
        differences = draw.integers(-20, 21, 60) + shift
        exact = sign_flip_p(differences)
        with monkeypatch.context() as patched:
            patched.setattr(graded, "EXACT_WORK", 0)
            drawn = sign_flip_p(differences)
            assert drawn == sign_flip_p(differences)
        # Five standard errors of a share of 9 999 draws, and one draw.
        assert abs(drawn - exact) <= 5 * np.sqrt(exact * (1 - exact) / 9_999) + 1e-4
    assert sign_flip_p(np.zeros(4, int)) == 1.0


def test_the_bootstrap_interval_is_that_of_scipy_and_covers_the_mean():
    values = np.random.default_rng(3).beta(5, 1, 200)
    low, high = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9_999,
                             rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    assert (low, high) == mean_interval(values)
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.003)
    assert mean_interval(np.full(7, 0.25)) == (0.25, 0.25)
    # Of 200 samples of 50, 95 % of the intervals contain the true mean 5/6: 180 or more do.
    draw = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        low, high = mean_interval(draw.beta(5, 1, 50))
        covered += low <= 5 / 6 <= high
    assert covered >= 180


def test_a_graded_score_has_its_interval_by_the_bootstrap():
    found = score(THREE)
    assert interval(found) == mean_interval(found.values())
    plain = measured(found)
    assert (plain.low, plain.high) == interval(found)
    assert paired_difference(found, found) == (0.0, 0.0, 0.0)


# ---- metrics of the user


MEASURES = '''
import numpy as np

def near(outputs, targets):
    """The probability of the class that is there."""
    p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p[np.arange(len(targets)), targets]

near.per_sample = True

def whole(outputs, targets):
    return near(outputs, targets)

def one(outputs, targets):
    return 0.5

one.per_sample = True

def beyond(outputs, targets):
    return near(outputs, targets) + 1

beyond.per_sample = True

def ranks(outputs, targets):
    return np.argsort(np.argsort(outputs[:, 0])) / len(outputs)

ranks.per_sample = True

def broken(outputs, targets):
    return near(outputs, targets) * np.nan

broken.per_sample = True
'''


@pytest.fixture
def measures(tmp_path, monkeypatch):
    """Names a metric of a module that is on the path, with the digest of its code."""
    from soupray.core.plugins import METRICS

    (tmp_path / "graded_measures.py").write_text(MEASURES)
    monkeypatch.syspath_prepend(tmp_path)
    load.cache_clear()

    def named(name: str) -> tuple[str, str]:
        full = f"graded_measures:{name}"
        return full, load(METRICS, full).digest

    yield named
    load.cache_clear()


PLAIN = ((0, 0), (0, 100), (0, math.log(3)))


def of_class(metric, logits=PLAIN) -> Predictions:
    split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(logits), classes=2,
                  metric=metric)  # fmt: skip
    labels = np.array([0, 1, 0, 1])[: len(logits)]
    return Predictions(split=split, logits=np.array(logits, np.float32), labels=labels)


def test_a_metric_that_says_so_is_graded(measures):
    named = measures("near")
    found = score(of_class(named))
    assert (found.graded, found.correct) == (named[0], 5000 + 10_000 + 2500)
    assert value(found, named[0]) == pytest.approx(0.175 / 0.3)
    # Two are right: the first of two equal logits is taken, and 1 is less likely than log 3.
    assert found.others == {"accuracy": 2 / 3}
    assert measured(found).read("accuracy") == 2 / 3
    assert value(found, "worst_class") == 0.5  # by class all is as it was
    assert right_mask(of_class(named)).tolist() == [True, True, False]
    plain = score(of_class(measures("whole")))
    assert not plain.graded
    assert plain.correct == 2
    assert plain.others == {"graded_measures:whole": pytest.approx(0.175 / 0.3)}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", r"graded_measures:one.* returned one number, but per_sample says"),
        ("beyond", r"graded_measures:beyond.* returned 1\.5 for sample 0"),
        ("broken", r"graded_measures:broken.* returned a value that is NaN"),
    ],
)
def test_a_graded_metric_that_breaks_its_word_is_named(measures, name, says):
    for ask in (score, sample_values):
        with pytest.raises(EvaluationError, match=says):
            ask(of_class(measures(name)))


def test_a_graded_metric_that_looks_at_other_samples_is_refused(measures):
    with pytest.raises(EvaluationError, match=r"has 0\.25 among all 4 samples, and 0\.5 among 2"):
        score(of_class(measures("ranks"), [[1, 0], [0, 0], [2, 0], [3, 0]]))


def test_greedy_by_a_metric_of_the_user_is_rejected_early_as_a_plain_loop_is(tmp_path, measures):
    from soupray.testing import linear

    named = measures("near")
    world = linear.toy(tmp_path / "world", 6, metric=named)
    held_out = world.basis.split("held_out")
    selection = world.selection(metric=named[0])
    (outcome,) = GREEDY.run(selection, Earlier(), {"accept": "ge"})
    steps = [s.result for s in outcome.trace]
    assert any(isinstance(r, Rejected) for r in steps)

    def total(parts) -> int:
        return score(world.workers.predictions(mean_of(parts), held_out)).correct

    ranked = sorted(world.pool.checkpoints, key=lambda sha: -total([sha]))
    kept = ranked[:1]
    for sha in ranked[1:]:
        if total([*kept, sha]) >= total(kept):
            kept.append(sha)
    assert sorted(outcome.candidate.checkpoints) == sorted(kept)


# ---- stored scores


@pytest.mark.parametrize("kind", ["masks", "metric"])
def test_graded_scores_that_contradict_their_logits_are_found(tmp_path, measures, kind):
    named = measures("near")
    about = {"objective": MASKS} if kind == "masks" else {"metric": named}
    world = toy(tmp_path / "world", 2, **about)
    held_out = world.basis.split("held_out")
    check_scores(world.pool.ingredients, held_out, world.checkpoints)
    first = world.pool.ingredients[0]
    values = unpack_units(first.held_out.right).astype(int)
    low, high = int(values.argmin()), int(values.argmax())
    swapped = values.copy()
    swapped[[low, high]] = swapped[[high, low]]  # the same sum
    for lie in ({"right": pack_units(swapped)}, {"nll": first.held_out.nll + 1}):
        wrong = msgspec.structs.replace(first.held_out, **lie)
        edited = msgspec.structs.replace(first, held_out=wrong)
        with pytest.raises(CheckpointError, match="contradicts its stored logits"):
            check_scores([edited], held_out, world.checkpoints)
    # Another machine may round a function of floats to the next unit.
    near = values.copy()
    near[high] -= 1
    wrong = msgspec.structs.replace(
        first.held_out, right=pack_units(near), correct=first.held_out.correct - 1
    )
    check_scores([msgspec.structs.replace(first, held_out=wrong)], held_out, world.checkpoints)


def test_a_diagnosis_of_a_graded_pool_is_about_its_answers(tmp_path, measures):
    world = toy(tmp_path / "world", 3, metric=measures("near"))
    held_out = world.basis.split("held_out")
    answers = [
        right_mask(world.evaluator.predictions(mean_of([sha]), held_out))
        for sha in world.pool.checkpoints
    ]
    made = diagnosis(world.pool, [], answers)
    apart = (answers[0] != answers[1]).mean()
    assert made.error_inconsistency[0][1] == pytest.approx(apart)
    with pytest.raises(ValueError, match="no yes or no"):
        diagnosis(world.pool, [])


def test_a_cascade_of_a_graded_metric_decides_in_float32(tmp_path, measures):
    named = measures("near")
    world = toy(tmp_path / "world", 4, metric=named)
    selection = world.selection(cascade=True, metric=named[0])
    plain = world.selection(metric=named[0])
    candidates = [mean_of(world.pool.checkpoints[:k]) for k in (2, 3)]
    bound = plain.value(world.pool.ingredients[0].held_out)
    assert selection.first_reaching(candidates, bound, "ge") == plain.first_reaching(
        candidates, bound, "ge"
    )
    assert selection.tau is None
