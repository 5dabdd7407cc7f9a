"""Effective robustness: lines and distances worked out by hand, and a file of standard models."""

import json

import msgspec
import numpy as np
import pytest
from shared import DIGITS, Given, board, demo, ingredient, inputs_of, scores
from test_findings import noisy

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError
from soupray.core.records import Basis, CheckpointRef, Predictions, Split
from soupray.core.trials import pool_of
from soupray.diagnostics.baseline import Baseline, read_baseline
from soupray.diagnostics.measure import CannotMeasure, Inputs, Options
from soupray.diagnostics.robustness import EFFECTIVE_ROBUSTNESS, measure_robustness
from soupray.maths.metrics import paired_difference
from soupray.maths.robustness import fit_line, interval, logits_of, resampled
from soupray.reporting.notes import points
from soupray.testing.linear import toy, truth

SAME = Baseline(
    source="same.csv",
    models=("a", "b", "c"),
    columns={"test": (0.2, 0.5, 0.9), "far": (0.2, 0.5, 0.9)},
)
"""Standard models that are as good under the shift: the line is the diagonal."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy"), noisy(5, 1.2))


def of_world(world, baseline: Baseline | None = SAME) -> Inputs:
    shas = world.pool.checkpoints
    models = {"best_single": mean_of(shas[:1]), "uniform": mean_of(shas)}
    made = board("uniform", **models, again=mean_of(shas[:1]))
    return inputs_of(world, made, Options(baseline=baseline))


def test_a_line_by_hand():
    """x = -1, 0, 1 and y = 0, 2, 1: slope 1/2, intercept 1; rests 1/4 + 1 + 1/4 of a total of 2."""
    line = fit_line(np.array([-1.0, 0, 1]), np.array([0.0, 2, 1]))
    assert line == pytest.approx((0.5, 1, 1 - 1.5 / 2))
    assert line.expected(np.array([-2.0])) == 0.5


def test_a_line_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40))
    line = fit_line(x, y)
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


@pytest.mark.parametrize("x", [[1.0, 2], [1.0, 1, 1]])
def test_two_models_or_one_accuracy_determine_no_line(x):
    assert fit_line(np.array(x), np.arange(float(len(x)))) is None


def test_resamples_are_the_same_for_masks_of_equal_length():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50)) < 0.5
    both, other = resampled([a, b], 300, 7), resampled([a], 300, 7)
    assert (both[:, 0] == other[:, 0]).all()
    assert both.mean(axis=0) == pytest.approx([a.mean(), b.mean()], abs=0.02)
    # Its spread is that of a share.
    assert both[:, 0].std() == pytest.approx(np.sqrt(a.mean() * (1 - a.mean()) / 50), rel=0.15)


def test_with_the_diagonal_as_line_rho_is_a_paired_difference(world):
    made = measure_robustness(of_world(world))
    (shift,) = made.shifts
    assert (shift.slope, shift.intercept, shift.r2) == pytest.approx((1, 0, 1), abs=1e-9)
    assert [r.name for r in shift.entries] == ["best_single", "uniform"]  # equal models once
    for rho in shift.entries:
        model = of_world(world).frozen.models[rho.name]
        test, far = (
            world.evaluator.scores([model], world.basis.split(name))[0] for name in ("test", "far")
        )
        assert (rho.on_id, rho.shifted) == (test.accuracy, far.accuracy)
        assert rho.expected == pytest.approx(test.accuracy)
        assert rho.rho == pytest.approx(far.accuracy - test.accuracy)
        # Both splits have 70 samples, which are resampled together: the interval is a paired one.
        difference, low, high = paired_difference(far, test)
        assert rho.low < difference < rho.high
        assert rho.high - rho.low == pytest.approx(high - low, rel=0.15)
    assert [m.rho for m in made.means] == [r.rho for r in shift.entries]  # there is one shift


def test_the_own_line_is_that_of_the_trials_and_said_to_be(world):
    made = measure_robustness(of_world(world, None))
    (shift,) = made.shifts
    assert made.own
    accuracies = [
        [
            s.accuracy
            for s in world.evaluator.scores(
                [mean_of([sha]) for sha in world.pool.checkpoints], world.basis.split(name)
            )
        ]
        for name in ("test", "far")
    ]
    x, y = (logits_of(np.array(a), 70) for a in accuracies)
    slope, intercept = np.polyfit(x, y, 1)
    assert (shift.slope, shift.intercept) == pytest.approx((slope, intercept))
    best = shift.entries[0]
    at = logits_of(np.array(best.on_id), 70)
    assert best.rho == pytest.approx(best.shifted - 1 / (1 + np.exp(-slope * at - intercept)))
    said = " ".join(EFFECTIVE_ROBUSTNESS.section(made).sentences)
    assert "The line is that of the pool's own trials, not of standard models" in said
    first = made.means[0]
    for outside in (True, False):  # a rho where the line is drawn beyond its models is named
        row = msgspec.structs.replace(best, name=first.name, outside=outside)
        edited = msgspec.structs.replace(
            made,
            means=(msgspec.structs.replace(first, low=0.01),),
            shifts=(msgspec.structs.replace(shift, entries=(row,)),),
        )
        said = " ".join(EFFECTIVE_ROBUSTNESS.section(edited).sentences)
        assert (f"For 1 of these 1 ({first.name}) the line is drawn beyond" in said) == outside


def test_the_figure_and_the_table_have_the_same_numbers(world):
    made = measure_robustness(of_world(world))
    section = EFFECTIVE_ROBUSTNESS.section(made)
    (figure,), (table,) = section.figures, section.tables
    rows = [row for data in figure.spec["datasets"].values() for row in data]
    drawn = {row["entry"]: row["rho"] for row in rows if row.get("rho")}
    shown = {row[0]: row[table.columns.index("far")].rstrip("*") for row in table.rows}
    assert drawn == shown
    assert shown == {r.name: points(r.rho) for r in made.shifts[0].entries}


def test_a_shift_of_some_classes_is_compared_on_them():
    """Three classes, a shift of classes 1 and 2 alone: four of six test samples count."""
    test = Split(name="test", role="test", digest="1" * 64, size=6, classes=3)
    shift = Split(name="some", role="shift", digest="2" * 64, size=2, classes=2,
                  label_map=((1,), (2,)))  # fmt: skip
    held_out = Split(name="held_out", role="held_out", digest="3" * 64, size=4, classes=3)
    ref = CheckpointRef(sha256="a" * 64, size_bytes=1)
    basis = Basis(key="b", splits=(held_out, test, shift), init=ref, anchor=ref)
    one = ingredient("t", scores([1, 1, 0, 0]))
    model = mean_of([one.checkpoint.sha256])
    labels = np.array([0, 0, 1, 1, 2, 2])
    answers = np.eye(3, dtype=np.float32)[[1, 1, 1, 1, 2, 0]]
    answers[5, 1] = 0.5  # of classes 1 and 2 alone, the wrong one
    known = {
        (model, "test"): Predictions(split=test, logits=answers, labels=labels),
        (model, "some"): Predictions(
            split=shift, logits=np.eye(3, dtype=np.float32)[[1, 1]], labels=np.array([0, 1])
        ),
    }
    line = Baseline(source="f.csv", models=("a", "b", "c"), columns={
        "val": (0.1, 0.2, 0.3), "val-on-some-classes": (0.2, 0.5, 0.9), "some": (0.2, 0.5, 0.9),
    })  # fmt: skip
    inputs = Inputs(
        spec=demo(), pool=pool_of(basis, [one]), basis=basis,
        board=board("m", m=model), answers=Given(known), options=Options(baseline=line),
    )  # fmt: skip
    (found,) = measure_robustness(inputs).shifts
    assert found.on_id_n == 4
    assert found.entries[0].on_id == 0.75
    assert found.entries[0].rho == pytest.approx(0.5 - 0.75)
    columns = {k: v for k, v in line.columns.items() if "on" not in k}
    lacking = msgspec.structs.replace(line, columns=columns)
    with pytest.raises(CannotMeasure, match=r"f\.csv has no column 'val-on-some-classes'"):
        measure_robustness(
            Inputs(spec=inputs.spec, pool=inputs.pool, basis=basis, board=inputs.board,
                   answers=inputs.answers, options=Options(baseline=lacking))
        )  # fmt: skip


def test_trials_that_are_all_alike_and_too_few_trials_are_left_out_by_name(tmp_path):
    world = toy(tmp_path, [truth()] * 3)
    with pytest.raises(CannotMeasure, match="far: the models of the line do not determine one"):
        measure_robustness(of_world(world, None))
    few = toy(tmp_path / "few", noisy(2, 1.0))
    assert "a line through its own trials needs 3" in EFFECTIVE_ROBUSTNESS.left_out(
        of_world(few, None)
    )
    assert EFFECTIVE_ROBUSTNESS.left_out(of_world(few)) is None
    without = inputs_of(few)
    assert "run `soupray soup` first" in EFFECTIVE_ROBUSTNESS.left_out(without)


def test_the_example_is_read(tmp_path):
    made = read_baseline(DIGITS.parent / "baseline_example.csv")
    assert made.on_id == "test"
    assert made.columns["inverted"][0] == 0.3
    assert made.columns["thickened"][2] is None
    assert len(made.pairs("test", "thickened")) == 4
    # The layout of the testbed: `val`, and ID test on the classes of a shift.
    (tmp_path / "b.csv").write_text(
        "model,imagenet-a,val,val-on-imagenet-a-classes\nresnet50,0.0,76.13,90.0\nvit,,80.0,\n"
    )
    made = read_baseline(tmp_path / "b.csv")
    assert made.on_id == "val"
    assert made.pairs("val-on-imagenet-a-classes", "imagenet-a") == [("resnet50", 0.9, 0.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the first column must be 'model'"),
        ("name,val\na,1\n", "the first column must be 'model'"),
        ("model,far\na,70\n", "one column must be ID test, named 'val' or 'test'. There are: far"),
        ("model,val,test\na,70,70\n", "one column must be ID test"),
        ("model,val,far,far\na,70,1,1\n", "column 'far' is there twice"),
        ("model,val,far\na,70\n", "the row of 'a' has 2 cells, and the first line 3"),
        ("model,val,far\na,70,good\n", "'a', column 'far': 'good'. Allowed: a number from 0"),
        ("model,val,far\na,70,nan\n", "'a', column 'far': 'nan'"),
        ("model,val,far\na,70,101\n", "'a', column 'far': '101'"),
        ("model,val,far\na,0.7,0.5\n", "all accuracies are at most 1. Write them in %"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path, text, said):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_baseline(tmp_path / "b.csv")
    assert said in str(error.value)
    assert "b.csv" in str(error.value)


def test_an_interval_has_the_middle_95_percent():
    assert interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))


def test_numbers_are_read_back(world):
    made = measure_robustness(of_world(world))
    assert msgspec.json.decode(json.dumps(msgspec.to_builtins(made)), type=type(made)) == made
