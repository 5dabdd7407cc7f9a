"""Leaderboard, figures and tracked runs: every number worked out by hand."""

import csv
import io
import itertools
import math

import msgspec
import pytest
from board import (
    AB,
    BASIS,
    BY_NAME,
    ENTRIES,
    GREEDY,
    NO_SHIFTS,
    OUTCOMES,
    POOL,
    REF,
    REPORTED,
    SPEC,
    A,
    N,
    Reports,
    alpha,
)
from shared import scores, sha, split, trial

from soupray.core.candidates import (
    Candidate,
    FisherSoup,
    Outcome,
    VRFEnsemble,
    ensemble_of,
    mean_of,
)
from soupray.core.findings import Finding
from soupray.core.ports import TrackedRun
from soupray.core.records import CheckpointRef, Scores
from soupray.core.trials import EpochRecord, Tombstone
from soupray.reporting.champion import Champion, champion, one_model
from soupray.reporting.plots import (
    Robustness,
    draw_all,
    greedy_trace,
    id_label,
    percent_label,
    robustness,
)
from soupray.reporting.ranking import (
    Versus,
    as_csv,
    forward_passes,
    leaderboard,
    measured,
    shift_mean,
)
from soupray.reporting.runs import Board, entry_run, sweep_run, trial_run, with_currency, with_flags
from soupray.reporting.verdict import verdict


def test_the_order_is_held_out_then_cost_then_nll_then_name_whatever_comes_first():
    one = mean_of([sha("a")])
    two = ensemble_of([(one, 1, 1.0), (mean_of([sha("b")]), 1, 1.0)], 2, "probabilities")

    def made(name: str, right: int, candidate: Candidate = one) -> Outcome:
        recipe = "best_single" if name == "c" else "x"
        return Outcome(
            name=name, recipe=recipe, options={}, candidate=candidate, held_out=scores(right, N)
        )

    rows = [made("a", 80, two), made("b", 80), made("c", 80), made("d", 81, two), made("e", 3)]
    same = {
        (c, name): scores(5, 10, f"digest of {name}")
        for c in (one, two)
        for name in ("test", "inverted", "noise")
    }
    for shuffled in itertools.permutations(rows):
        entries = leaderboard(list(shuffled), POOL, BASIS, same)
        assert [e.name for e in entries] == ["d", "b", "c", "a", "e"]
    assert [e.size_bytes for e in entries] == [4000, 2000, 2000, 4000, 2000]
    surer = msgspec.structs.replace(rows[2].held_out, nll=0.1)
    rows[2] = msgspec.structs.replace(rows[2], held_out=surer)
    assert [e.name for e in leaderboard(rows, POOL, BASIS, same)] == ["d", "c", "b", "a", "e"]


def test_with_a_rank_split_the_order_is_by_it_and_nothing_else():
    basis = msgspec.structs.replace(BASIS, splits=(*BASIS.splits, split("rank", 10, role="rank")))
    a, b = mean_of([sha("a")]), mean_of([sha("b")])
    outcomes = [
        Outcome(name=n, recipe=r, options={}, candidate=c, held_out=scores(right, N))
        for n, r, c, right in (("x", "best_single", a, 90), ("y", "y", b, 80))
    ]
    reported = Reports({(a, "rank"): scores(6), (b, "rank"): scores(7)})
    entries = leaderboard(outcomes, POOL, basis, reported)
    assert [(e.name, e.rank.correct, e.held_out.correct) for e in entries] == [
        ("y", 7, 80),
        ("x", 6, 90),
    ]


def test_recipes_that_chose_the_same_model_are_all_listed():
    assert [e.name for e in ENTRIES] == [
        "greedy",  # 91
        "best_single",  # 90 from here on, by name
        "uniform",
        "wise_ft(best_single, best)",
        "wise_ft(best_single, within)",  # alpha .95 gives 88, and 89 is the least that is within
        "wise_ft(greedy, best)",
        "wise_ft(greedy, within)",
        "wise_ft(best_single, half)",  # 70
        "wise_ft(greedy, half)",
        "zero_shot",  # 50
    ]
    assert BY_NAME["greedy"].candidate == BY_NAME["uniform"].candidate
    assert BY_NAME["greedy"].ingredients == ["a", "b"]
    assert BY_NAME["zero_shot"].ingredients == ["zero_shot"]
    half = BY_NAME["wise_ft(greedy, half)"]
    assert half.ingredients == ["zero_shot", "a", "b"]
    assert half.coefficients == [0.5, 0.25, 0.25]
    assert (half.size_bytes, BY_NAME["greedy"].size_bytes) == (3000, 2000)


def taken(rows: dict[str, tuple[int, int, int]], metric="accuracy") -> Champion:
    """The champion of entries by name: (held-out samples right, from the first on; passes; bytes).

    Each is a model of its own.
    """
    outcomes = [
        Outcome(name=n, recipe="x", options={}, candidate=mean_of([sha(n)]),
                held_out=scores(right, N))
        for n, (right, _, _) in rows.items()
    ]  # fmt: skip
    entries = [
        msgspec.structs.replace(
            ENTRIES[0], name=o.name, candidate=o.candidate.digest,
            forward_passes_per_sample=rows[o.name][1], size_bytes=rows[o.name][2],
        )
        for o in outcomes
    ]  # fmt: skip
    return champion(entries, outcomes, {}, metric)


def test_the_champion_is_the_cheapest_of_those_that_cannot_be_told_from_the_first():
    # One sample of a hundred tells nothing: p = 1.
    made = taken({"ensemble": (95, 2, 20), "soup": (94, 1, 10)})
    assert (made.name, made.first, made.equals) == ("soup", "ensemble", ("ensemble", "soup"))
    # Fifteen that only the ensemble gets right: p = 2 / 2^15.
    assert taken({"ensemble": (95, 2, 20), "soup": (80, 1, 10)}).name == "ensemble"
    # Six: p = 2 / 2^6 = .031, told apart if it is the only comparison, but not as one of two.
    assert taken({"ensemble": (95, 2, 20), "soup": (89, 1, 10)}).name == "ensemble"
    made = taken({"ensemble": (95, 2, 20), "soup": (89, 1, 10), "bad": (20, 1, 10)})
    assert (made.name, made.equals) == ("soup", ("ensemble", "soup"))
    # Passes count before bytes, and the order of the leaderboard after both.
    rows = {"a": (95, 2, 1), "b": (95, 1, 30), "c": (95, 1, 20), "d": (95, 1, 20)}
    assert taken(rows).name == "c"
    # Of the NLL there is no such test.
    assert taken({"ensemble": (95, 2, 20), "soup": (94, 1, 10)}, "nll").name == "ensemble"


def test_of_equals_with_the_same_cost_one_model_goes_before_outputs():
    """VRF may give one model all the weight: it is no better, and no library loads it."""
    plain = mean_of([sha("a")])
    outputs = ensemble_of([(plain, 1, 2.0)], 1, "probabilities")
    outcomes = [
        Outcome(name=n, recipe="x", options={}, candidate=c, held_out=scores(50, N))
        for n, c in (("vrf", outputs), ("plain", plain))
    ]
    entries = [
        msgspec.structs.replace(ENTRIES[0], name=o.name, candidate=o.candidate.digest)
        for o in outcomes
    ]
    made = champion(entries, outcomes, {})
    assert (made.name, made.first) == ("plain", "vrf")


def test_where_a_split_ranks_the_champion_is_chosen_on_it():
    a, b = mean_of([sha("a")]), mean_of([sha("b")])
    outcomes = [
        Outcome(name=n, recipe="x", options={}, candidate=c, held_out=scores(50, N))
        for n, c in (("a", a), ("b", b))
    ]
    entries = [
        msgspec.structs.replace(
            ENTRIES[0], name=n, candidate=c.digest, forward_passes_per_sample=passes
        )
        for n, c, passes in (("a", a, 2), ("b", b, 1))
    ]
    apart = {(a, "rank"): scores(95, N), (b, "rank"): scores(60, N)}
    assert champion(entries, outcomes, apart).name == "a"
    assert champion(entries, outcomes, {}).name == "b"


def test_the_mean_over_shifts_is_of_accuracies_and_not_pooled():
    # alpha 1: (.5 + .6) / 2 = .55; pooled it would be (50 + 120) / 300 = .567
    assert BY_NAME["greedy"].shift_mean == pytest.approx(0.55)
    assert BY_NAME["zero_shot"].shift_mean == pytest.approx((0.9 + 0.5) / 2)
    assert BY_NAME["greedy"].shifts["noise"].correct == 120


def test_against_the_best_single_model_by_hand():
    # Only greedy is right on samples 5, 6 and 7, only the single model on 4:
    # 2 (C(4,0) + C(4,1)) / 2^4 = 10/16
    greedy = BY_NAME["greedy"]
    expected = Versus(only_this=3, only_best_single=1, p=10 / 16)
    assert greedy.test_versus_best_single == expected
    # Held-out: right are 0..87 and 97..99, of the single model 0..89; no p-value there
    held_out = Versus(only_this=3, only_best_single=2, p=None)
    assert greedy.held_out_versus_best_single == held_out
    itself = Versus(only_this=0, only_best_single=0, p=1.0)
    assert BY_NAME["best_single"].test_versus_best_single == itself


def test_members_that_share_a_body_take_one_pass_together():
    a, b, c = (mean_of([name]) for name in "abc")
    both = mean_of(["a", "b"])
    fisher = FisherSoup(parts=(("a", "fisher of a", 1), ("b", "fisher of b", 1)))
    bodies = {"a": "x", "b": "x", "c": "y"}

    def passes(*members) -> int:
        parts = [(member, 1, 1.0) for member in members]
        return forward_passes(ensemble_of(parts, len(parts), "logits"), bodies)

    assert forward_passes(a, bodies) == 1
    assert passes(a, b) == 1
    assert passes(a, both) == 1  # a mean of equal bodies is that body
    assert passes(a, b, c) == 2
    assert passes(a, c, mean_of(["a", "c"])) == 3  # the mean is a body of its own
    assert passes(a, fisher) == 2  # its quotients need not be
    assert forward_passes(ensemble_of([(a, 1, 1.0), (b, 1, 1.0)], 2, "logits"), {}) == 2


def test_an_ensemble_by_sample_keeps_two_models_and_its_failure_set():
    vrf = VRFEnsemble(
        fine_tuned=AB,
        reference=mean_of(["anchor"]),
        temperatures=(1.0, 1.0),
        failures=CheckpointRef(sha256="f", size_bytes=70),
        k=1,
        a=0.0,
        b=1.0,
    )
    rows = [
        Outcome(name="v", recipe="vrf", options={}, candidate=vrf, held_out=scores(95, N)),
        Outcome(name="s", recipe="best_single", options={}, candidate=SINGLE,
                held_out=scores(90, N)),
    ]  # fmt: skip
    reported = Reports(
        {
            (vrf, name): scores(7, n, f"digest of {name}")
            for name, n in (("test", 10), ("inverted", 100), ("noise", 200))
        }
    )
    first, second = leaderboard(rows, POOL, BASIS, reported)
    assert (first.name, first.size_bytes, first.forward_passes_per_sample) == ("v", 5070, 2)
    assert (first.ingredients, first.coefficients) == (["a", "b", "zero_shot"], [])
    assert (second.name, second.size_bytes) == ("s", 2000)
    assert one_model(vrf) is None
    assert one_model(SINGLE) == SINGLE


def test_what_is_measured_by_hand():
    by_class = ((4, 5, 3), (6, 5, 3), (0, 0, 0))
    made = measured(msgspec.structs.replace(scores(6, 10), by_class=by_class))
    assert (made.n, made.correct, made.accuracy, made.nll, made.ece) == (10, 6, 0.6, 0.5, 0.25)
    assert made.standard_error == pytest.approx((0.6 * 0.4 / 10) ** 0.5)
    # Recalls 3/4 and 3/6; F1 6/9 and 6/11. The interval is of the tables for 6 of 10.
    assert made.balanced_accuracy == 0.625
    assert made.macro_f1 == pytest.approx((6 / 9 + 6 / 11) / 2)
    assert made.worst_class == 0.5
    assert (made.low, made.high) == pytest.approx((0.2624, 0.8784), abs=1e-4)
    assert (made.by("nll"), made.by("accuracy"), made.by("worst_class")) == (-0.5, 0.6, 0.5)
    assert shift_mean({}) == 0.0
    assert shift_mean({"x": made, "y": measured(scores(9, 10))}) == pytest.approx(0.75)


def test_a_row_of_csv_with_rank_data_and_a_shift_of_some_classes_by_hand():
    *rest, noise = BASIS.splits
    basis = msgspec.structs.replace(BASIS, splits=(*rest, noise, split("rank", 10, role="rank")))
    reported = Reports(REPORTED)
    reported[AB, "rank"] = msgspec.structs.replace(scores(8, 16), nll=0.75, ece=0.125)
    reported[AB, "test on noise"] = scores(3, 5, "digest of test on noise")
    reported[SINGLE, "rank"] = scores(4, 16)
    reported[SINGLE, "test on noise"] = scores(2, 5, "digest of test on noise")
    single = next(o for o in OUTCOMES if o.name == "best_single")
    entries = leaderboard([single, GREEDY], POOL, basis, reported)
    header, first, second = csv.reader(io.StringIO(as_csv(entries)))
    row = dict(zip(header, first, strict=True))
    assert header[-5:-2] == ["noise", "test_on_classes_of_noise", "p_vs_best_single"]
    assert (row["rank"], row["name"], row["recipe"]) == ("1", "greedy", "greedy")
    assert (row["rank_accuracy"], row["held_out"], row["test"]) == (
        "0.500000", "0.910000", "0.700000",
    )  # fmt: skip
    # Of rank data, which decide: sqrt(.5 * .5 / 16)
    assert (row["standard_error"], row["nll"], row["ece"]) == ("0.125000", "0.750000", "0.125000")
    assert (row["noise"], row["test_on_classes_of_noise"]) == ("0.600000", "0.600000")
    assert dict(zip(header, second, strict=True))["test_on_classes_of_noise"] == "0.400000"
    plain = next(iter(csv.DictReader(io.StringIO(as_csv(ENTRIES)))))
    assert plain["rank_accuracy"] == ""
    assert as_csv(ENTRIES).startswith(as_csv(ENTRIES[:1]))
    assert float(plain["standard_error"]) == pytest.approx((0.91 * 0.09 / 100) ** 0.5, abs=1e-6)


def test_the_table_survives_csv():
    rows = list(csv.DictReader(io.StringIO(as_csv(ENTRIES))))
    assert [r["name"] for r in rows] == [e.name for e in ENTRIES]
    assert [int(r["rank"]) for r in rows] == list(range(1, 11))
    first = rows[0]
    assert first["held_out"] == "0.910000"
    assert (first["inverted"], first["noise"]) == ("0.500000", "0.600000")
    assert first["shift_mean"] == "0.550000"
    assert (first["ingredients"], first["forward_passes"], first["size_bytes"]) == (
        "2",
        "1",
        "2000",
    )
    assert float(first["p_vs_best_single"]) == 0.625
    for row, entry in zip(rows, ENTRIES, strict=True):
        assert float(row["test_low"]) == pytest.approx(entry.test.low, abs=1e-6)
        assert float(row["held_out_high"]) == pytest.approx(entry.held_out.high, abs=1e-6)


def test_the_greedy_trace_by_hand():
    trace = greedy_trace(GREEDY)
    assert trace.tried == [0.90, 0.91, None, 0.85]
    assert trace.at_most == [None, None, 0.91, None]  # given up: it could not reach the bound
    assert trace.accepted == [True, True, False, False]
    assert trace.best == [0.90, 0.91, 0.91, 0.91]


def test_the_robustness_figure_by_hand():
    numbers = robustness("greedy", OUTCOMES, POOL, BASIS, REPORTED)
    assert (numbers.n, numbers.shift_n) == (10, 100)
    assert sorted(numbers.lines) == ["best_single", "greedy"]
    for points in numbers.lines.values():
        alphas = [float(p.name) for p in points]
        assert alphas == [k / 5 for k in range(6)]
        right = (
            [0.5] * 6
            if "best_single" in numbers.lines and points is numbers.lines["best_single"]
            else [0.5] * 5 + [0.7]
        )
        assert [p.id_accuracy for p in points] == right  # of ID test
        assert [p.shift_mean for p in points] == pytest.approx([0.7 - 0.15 * a for a in alphas])
    models = {(p.kind, p.name): (p.id_accuracy, p.shift_mean) for p in numbers.models}
    assert len(models) == 2 + len(ENTRIES)
    assert models["ingredient", "b"] == pytest.approx((0.5, 0.55))
    assert models["anchor", "zero_shot"] == pytest.approx((0.5, 0.7))
    (greedy,) = (p for p in numbers.models if p.name == "greedy")
    assert greedy.id_interval == pytest.approx((0.3475, 0.9333), abs=1e-4)  # 7 of 10
    # .5 of 100 and .6 of 200 samples, independent
    error = math.sqrt(0.25 / 100 + 0.24 / 200) / 2
    assert greedy.shift_interval == pytest.approx(
        (0.55 - 1.96 * error, 0.55 + 1.96 * error), abs=1e-5
    )


class SomeClasses(Reports):
    """noise has one of the two classes: ID test on it is right on .2 + .6 alpha of 5 samples."""

    def __missing__(self, key: tuple[Candidate, str]) -> Scores:
        candidate, name = key
        if name == "test on noise":
            return scores(1 + round(3 * alpha(candidate)), 5, "digest of test on noise")
        return super().__missing__(key)


def some_classes(keys: tuple[str, ...]) -> Robustness:
    """The figure's numbers where noise has one class, and `keys` are what was reported."""
    *rest, noise = BASIS.splits
    noise = msgspec.structs.replace(noise, label_map=((1,),), classes=1)
    basis = msgspec.structs.replace(BASIS, splits=(*rest, noise))
    reported = SomeClasses(REPORTED)
    for key in keys:
        reported[AB, key] = reported[AB, key]
    return robustness("greedy", OUTCOMES, POOL, basis, reported)


def test_where_a_shift_has_some_classes_the_figure_compares_with_id_test_on_them():
    numbers = some_classes(("test", "test on noise"))
    assert (numbers.same_classes, numbers.n) == (True, 10)
    models = {(p.kind, p.name): (p.id_accuracy, p.shift_mean) for p in numbers.models}
    # inverted has all classes: ID test there is .5 of all models but greedy, .7
    assert models["ingredient", "b"] == pytest.approx(((0.5 + 0.8) / 2, 0.55))
    assert models["anchor", "zero_shot"] == pytest.approx(((0.5 + 0.2) / 2, 0.7))
    assert models["greedy", "greedy"] == pytest.approx(((0.7 + 0.8) / 2, 0.55))
    line = [p.id_accuracy for p in numbers.lines["best_single"]]
    right = [0.2, 0.4, 0.4, 0.6, 0.6, 0.8]  # 1 + round(3 alpha) of 5
    assert line == pytest.approx([(0.5 + r) / 2 for r in right])
    assert id_label(numbers) == "ID test accuracy on the same classes, mean over shifts"


def test_where_no_test_sample_is_of_those_classes_that_of_all_is_shown():
    plain = robustness("greedy", OUTCOMES, POOL, BASIS, REPORTED)
    assert some_classes(("test",)) == plain
    assert id_label(plain) == "ID test accuracy"


def test_figures_are_drawn(tmp_path):
    figure = robustness("greedy", OUTCOMES, POOL, BASIS, REPORTED)
    greedy = next(o for o in OUTCOMES if o.recipe == "greedy")
    drawn = draw_all(tmp_path, figure, greedy_trace(greedy))
    names = [f"{name}.{kind}" for name in ("greedy_trace", "robustness") for kind in ("png", "svg")]
    assert sorted(drawn) == names
    for name, path in drawn.items():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n" if name.endswith("png") else b"<?xml")
        assert len(data) > 10_000


def test_without_shifts_there_is_a_leaderboard_and_no_robustness_figure(tmp_path):
    entries = leaderboard(OUTCOMES, POOL, NO_SHIFTS, REPORTED)
    assert [e.name for e in entries] == [e.name for e in ENTRIES]
    assert list(draw_all(tmp_path, None, None)) == []
    assert "shift_mean,p_vs" in as_csv(entries)


HISTORY = (
    EpochRecord(epoch=1, train_loss=2.0, held_out_correct=50, held_out_n=100, seconds=1),
    EpochRecord(epoch=2, train_loss=1.0, held_out_correct=90, held_out_n=100, seconds=1),
)
TRIED = msgspec.structs.replace(
    A, history=HISTORY, trial=trial("a", lr=1.23456789e-4, batch_size=20), best_epoch=2
)


SINGLE = mean_of([A.checkpoint.sha256])
SHIFTED = {name: REPORTED[SINGLE, name] for name in ("inverted", "noise")}
MEASURES = ("accuracy/", "nll/", "ece/")


def measured_names(run: TrackedRun) -> set[str]:
    return {m for m in run.metrics if m.startswith(MEASURES)}


def test_a_trial_shows_nothing_of_test_and_shifts_before_the_choice():
    run = trial_run(SPEC, TRIED)
    assert measured_names(run) == {"accuracy/held_out", "nll/held_out", "ece/held_out"}
    words = " ".join([*run.metrics, *run.curves, *run.params, *run.tags])
    assert "test" not in words
    assert "shift_" not in words
    assert run.metrics["accuracy/held_out"] == 0.9
    assert run.metrics["best_epoch"] == 2
    assert run.curves == {
        "epoch/train_loss": ((1, 2.0), (2, 1.0)),
        "epoch/held_out_accuracy": ((1, 0.5), (2, 0.9)),
    }
    assert run.params["trial.lr"] == "0.000123457"
    assert (run.key, run.parent, run.failed) == ("digits/trial/a", "digits", False)
    assert (run.started, run.finished) == (100.0, 200.0)


def test_the_metric_of_a_trial_has_a_curve_nll_with_its_own_sign():
    def curves(metric, *values):
        history = [
            msgspec.structs.replace(e, value=v) for e, v in zip(HISTORY, values, strict=True)
        ]
        of = msgspec.structs.replace(TRIED.trial, metric=metric)
        made = msgspec.structs.replace(TRIED, trial=of, history=tuple(history))
        return trial_run(SPEC, made).curves

    plain = trial_run(SPEC, TRIED).curves
    nll = {"epoch/held_out_nll": ((1, 0.75), (2, 0.25))}
    assert curves("nll", -0.75, -0.25) == plain | nll
    worst = {"epoch/held_out_worst_class": ((1, 0.0), (2, 0.5))}
    assert curves("worst_class", 0.0, 0.5) == plain | worst


def test_what_all_trials_share_is_a_parameter_of_the_sweep_and_not_of_each():
    assert "trial.batch_size" not in trial_run(SPEC, TRIED).params
    params = sweep_run(SPEC, started=1.0).params
    assert (params["batch_size"], params["epochs"], params["trials"]) == ("20", "2", "2")
    assert "lr" not in params


def test_a_sweep_says_what_to_take_and_has_the_numbers_of_the_champion():
    champion = Champion(name="greedy", first="greedy", equals=("greedy",), samples=N)
    run = sweep_run(SPEC, 1.0, 2.0, Board(ENTRIES, champion))
    said = verdict(ENTRIES, champion, SPEC.name, SPEC.metric).lines
    assert run.note.startswith("\n\n".join(said))
    assert "| 1 | **greedy** | 70.0 | 55.0 | 1 |" in run.note
    assert run.metrics["accuracy/test"] == 0.7
    assert run.metrics["best_single/accuracy/test"] == 0.5
    assert run.metrics["gain/test"] == pytest.approx(0.2)
    assert run.metrics["gain/shift_mean"] == 0
    assert sweep_run(SPEC, 1.0).note == ""


def test_a_trial_has_the_coefficient_that_each_soup_gives_it():
    """Which hyperparameters make good ingredients: a parallel plot of these metrics says it."""
    run = trial_run(SPEC, TRIED, REPORTED[SINGLE, "test"], SHIFTED, ENTRIES)
    found = {
        k.removeprefix("coefficient/"): v for k, v in run.metrics.items() if "coefficient" in k
    }
    assert found["greedy"] == found["uniform"] == 0.5
    assert found["wise_ft_greedy_half"] == 0.25
    assert found["wise_ft_best_single_half"] == 0.5
    assert "best_single" not in found


def test_a_p_value_of_zero_stays_zero():
    """It underflows where a large test set leaves no doubt."""
    versus = msgspec.structs.replace(BY_NAME["greedy"].test_versus_best_single, p=0.0)
    sure = msgspec.structs.replace(BY_NAME["greedy"], test_versus_best_single=versus)
    assert entry_run(SPEC, sha("board"), sure, GREEDY, 1, 300.0).metrics["p/test"] == 0.0


def test_an_entry_names_its_ingredients_with_coefficients_and_links():
    run = entry_run(SPEC, sha("board"), BY_NAME["wise_ft(greedy, half)"], GREEDY, 3, 300.0)
    assert run.links == (
        ("0.5 of zero_shot", f"{SPEC.name}/trial/zero_shot"),
        ("0.25 of a", f"{SPEC.name}/trial/a"),
        ("0.25 of b", f"{SPEC.name}/trial/b"),
    )
    assert run.note == "Place 3 of the leaderboard. Made of 3:"


def test_after_the_choice_a_trial_shows_what_an_entry_shows_under_the_same_names():
    run = trial_run(SPEC, TRIED, REPORTED[SINGLE, "test"], SHIFTED)
    entry = entry_run(SPEC, sha("board"), BY_NAME["greedy"], GREEDY, rank=1, when=300.0)
    assert measured_names(run) == measured_names(entry)
    assert run.metrics["accuracy/shift_mean"] == pytest.approx(0.55)
    assert run.metrics["accuracy/shift_noise"] == 0.6
    assert run.metrics["accuracy/test"] == 0.5
    assert run.params["recipe"] == "trial"
    before = trial_run(SPEC, TRIED)
    assert run.params == before.params
    assert before.metrics.items() <= run.metrics.items()


def test_the_names_are_the_same_without_shifts():
    entries = leaderboard(OUTCOMES, POOL, NO_SHIFTS, REPORTED)
    entry = entry_run(SPEC, sha("board"), entries[0], GREEDY, rank=1, when=300.0)
    run = trial_run(SPEC, TRIED, REPORTED[SINGLE, "test"], {})
    assert measured_names(entry) == measured_names(run)
    assert "accuracy/shift_mean" not in run.metrics


def test_a_diverged_trial_is_a_failed_run_with_its_reason():
    tombstone = Tombstone(
        trial=TRIED.trial, reason="loss is nan", history=HISTORY[:1], started=1.0, finished=2.0
    )
    run = trial_run(SPEC, tombstone)
    assert run.failed
    reason = {"soupray.status": "diverged", "soupray.reason": "loss is nan"}
    assert run.tags == reason | {"soupray.current": "yes"}
    assert run.metrics == {}
    assert run.key == trial_run(SPEC, TRIED).key


def test_an_entry_has_its_rank_its_recipe_and_its_trace():
    run = entry_run(SPEC, sha("board"), BY_NAME["greedy"], GREEDY, rank=1, when=300.0)
    assert run.metrics["rank"] == 1
    assert run.metrics["size_mb"] == 0.002
    assert run.params == {"recipe": "greedy", "ingredients": "2", "recipe.accept": "ge"}
    made = {"soupray.candidate": AB.digest, "soupray.leaderboard": sha("board")[:8]}
    assert run.tags == made | {"soupray.current": "yes"}
    assert with_currency(run, newest=False).tags == made | {"soupray.current": "no"}
    assert with_currency(with_currency(run, newest=False), newest=True) == run
    trial = trial_run(SPEC, TRIED)
    assert with_currency(trial, newest=False) == trial  # a trial is of all leaderboards
    assert run.curves == {
        "trace/tried_held_out_accuracy": ((0, 0.9), (1, 0.91), (3, 0.85)),
        "trace/kept_held_out_accuracy": ((0, 0.9), (1, 0.91)),
    }
    line = next(o for o in OUTCOMES if o.name == "wise_ft(best_single, half)")
    run = entry_run(SPEC, sha("board"), BY_NAME[line.name], line, rank=6, when=300.0)
    curve = run.curves["alpha_percent/held_out_accuracy"]
    assert len(curve) == 21
    assert curve[5] == (25, 0.6)
    assert run.params["recipe.alpha"] == "0.5"
    uneven = msgspec.structs.replace(line, trace=tuple(line.trace[i] for i in (0, 1, 20)))
    run = entry_run(SPEC, sha("board"), BY_NAME[line.name], uneven, rank=6, when=300.0)
    curve = run.curves["alpha_percent/held_out_accuracy"]
    assert [percent for percent, _ in curve] == [0, 5, 100]


def test_the_sweep_is_the_parent_of_all():
    run = sweep_run(SPEC, started=1.0)
    assert (run.key, run.parent, run.finished) == ("digits", None, None)
    entry = entry_run(SPEC, sha("board"), BY_NAME["greedy"], GREEDY, rank=1, when=3.0)
    assert {trial_run(SPEC, TRIED).parent, entry.parent} == {run.key}


def test_an_init_that_is_not_the_anchor_has_a_name_of_its_own():
    init = msgspec.structs.replace(REF, sha256="theta_0")
    pool = msgspec.structs.replace(POOL, init=init)
    stock = mean_of(["theta_0", sha("a")])
    best = Outcome(
        name="b", recipe="best_single", options={}, candidate=mean_of([sha("a")]),
        held_out=scores(90, N),
    )  # fmt: skip
    outcome = Outcome(
        name="x", recipe="model_stock", options={}, candidate=stock, held_out=scores(80, N)
    )
    reported = {
        (c, s.name): scores(5, 10, s.digest)
        for c in (stock, best.candidate)
        for s in BASIS.reported
    }
    entries = leaderboard([best, outcome], pool, BASIS, reported)
    assert entries[1].ingredients == ["init", "a"]


def test_a_trial_has_what_check_found_of_it_as_its_note():
    found = [
        Finding(severity="warning", kind="far", trials=("a", "b"), what="far away", advice="Look"),
        Finding(severity="note", kind="alone", trials=("c",), what="alone", advice="Train more"),
    ]
    run = TrackedRun(
        key="s/trial/a", kind="trial", name="a", parent="s", params={}, tags={}, metrics={},
        curves={}, started=0.0, finished=1.0,
    )  # fmt: skip
    assert with_flags(run, found).note == "warning: far away. Look."
    other = msgspec.structs.replace(run, key="s/trial/d")
    assert with_flags(other, found) == other
    entry = msgspec.structs.replace(run, kind="entry")
    assert with_flags(entry, found) == entry


def test_ticks_that_differ_have_labels_that_differ():
    assert percent_label(0.97, [0.96, 0.97]) == "97.0 %"
    near = [0.9992, 0.9994, 0.9996, 0.9998, 0.1 + 0.8998]
    assert [percent_label(t, near) for t in near[:3]] == ["99.92 %", "99.94 %", "99.96 %"]
    assert percent_label(0.99925, [0.999, 0.99925]) == "99.92 %"
    assert percent_label(0.5, [0.5, 0.1 + 0.4]) == "50.0 %"
