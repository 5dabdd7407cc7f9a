"""Pre-flight: pools of linear models that a soup should be warned of, one evil at a time."""

import math

import msgspec
import pytest
import torch
from board import POOL as BOARD
from shared import ingredient, scores, session_of, trial

from soupray.cli.tables import show_check
from soupray.core.errors import EvaluationError, IncompatibleWeights
from soupray.core.findings import Report
from soupray.core.requests import Defect, Gram, Health
from soupray.core.trials import Pool, Tombstone
from soupray.maths.geometry import total_gram
from soupray.soup.check import measure_midpoints, measure_weights, refuse_or_note
from soupray.soup.findings import (
    Facts,
    Midpoint,
    alike,
    below_init,
    blocked,
    from_records,
    has_barrier,
    judge,
    report_on,
    sampled_pairs,
)
from soupray.testing.linear import Toy, toy, truth

N = 100


def noisy(count: int, step: float = 0.3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [truth() + step * torch.randn(truth().shape, generator=generator) for _ in range(count)]


def examined(world: Toy, pairs: int = 8) -> Report:
    session = session_of(world)
    facts = measure_weights(session)
    if facts.gram:
        facts = measure_midpoints(session, facts, (pairs, 0))
    return report_on(world.pool, facts)


def kinds(made: Report) -> dict[str, tuple[str, ...]]:
    """Findings by trial."""
    return {row.trial: row.finds for row in made.ingredients if row.finds}


def warnings(made: Report) -> set[str]:
    return {t for f in made.findings if f.severity == "warning" for t in f.trials}


def pool_of_counts(*correct: int) -> Pool:
    """Ingredients t0, t1, ... right on the first so many of 100 samples, best first."""
    made = [ingredient(f"t{i}", scores(c, N)) for i, c in enumerate(correct)]
    return msgspec.structs.replace(BOARD, ingredients=tuple(made))


def middle(a: int, b: int, correct: int) -> Midpoint:
    return Midpoint(ends=(a, b), scores=scores(correct, N))


def test_a_healthy_pool_has_no_warning_and_says_that_greedy_may_go_on(tmp_path):
    made = examined(toy(tmp_path, noisy(6)))
    assert made.averageable
    assert not warnings(made)
    assert "All 6 ingredients started from the same theta_0" in made.verdict[0]
    assert "No ingredient stands out" in made.verdict[1]
    assert all(p.middle >= min(p.ends) for p in made.pairs)


def test_distances_and_angles_are_those_of_the_weights(tmp_path):
    models = noisy(3)
    world = toy(tmp_path, models)
    made = examined(world)
    start = world.task.init()["head.weight"].double()
    by_sha = {}
    for model in models:
        ref = world.checkpoints.save({"head.weight": model}, {"init": "toy"})
        by_sha[ref.sha256] = (model.double() - start).flatten()
    steps = [by_sha[sha] for sha in world.pool.checkpoints]
    for row, step in zip(made.ingredients, steps, strict=True):
        assert row.distance == pytest.approx(float(step.norm()), rel=1e-6)
    cosine = float(steps[0] @ steps[2] / steps[0].norm() / steps[2].norm())
    assert made.ingredients[2].angle_best == pytest.approx(math.degrees(math.acos(cosine)))
    assert made.ingredients[0].angle_best is None


def test_equal_models_are_named_as_duplicates_and_nothing_is_dropped(tmp_path):
    made = examined(toy(tmp_path, [truth()] * 3 + noisy(1)))
    same = [f for f in made.findings if f.kind == "duplicate"]
    assert [f.trials for f in same] == [("t0", "t1", "t2")]
    assert same[0].severity == "note"
    assert len(made.ingredients) == 4
    assert not warnings(made)


def test_equal_scores_and_hyperparameters_are_named_too():
    found = alike(pool_of_counts(90, 90, 80))
    assert [f.trials for f in found] == [("t0", "t1")]
    assert "equal hyperparameters" in found[0].what


def test_a_model_that_ran_away_is_named(tmp_path):
    """60 times the way from theta_0: so far that a mean with it is it."""
    start = truth() * 0.3
    away = start + 60 * (noisy(6)[5] - start)
    made = examined(toy(tmp_path, [*noisy(5), away]))
    assert "far" in kinds(made)["t5"]
    assert warnings(made) == {"t5"}
    assert "1 of 6 hurt: t5" in made.verdict[1]


def at_distances(*distances: float | None) -> Pool:
    """A pool whose ingredients, all with other scores, are so far from theta_0."""
    pool = pool_of_counts(*range(90, 90 - len(distances), -1))
    far = zip(pool.ingredients, distances, strict=True)
    moved = tuple(msgspec.structs.replace(i, distance=d) for i, d in far)
    return msgspec.structs.replace(pool, ingredients=moved)


def test_what_the_records_of_the_trials_tell_needs_no_weights():
    # The median of the others that moved is 3.5 for both: 36 is more than ten times that, 30 not.
    found = from_records(at_distances(3, 36, 2, 4, 0, 30))
    assert [(f.severity, f.kind, f.trials) for f in found] == [
        ("warning", "far", ("t1",)),
        ("note", "unchanged", ("t4",)),
    ]
    assert "t1 is 10 times as far" in found[0].what
    # An older soupray trained one of them: what is usual is not known.
    assert from_records(at_distances(3, 300, 2, None)) == []


def test_a_model_in_another_basin_is_named_by_angle_score_and_barrier(tmp_path):
    """Negated weights: its mean with the truth is nearly nothing, and it answers all wrong."""
    made = examined(toy(tmp_path, [*noisy(5, 0.1), -truth()]))
    assert set(kinds(made)["t5"]) == {"apart", "below_init"}
    assert warnings(made) == {"t5"}
    assert made.averageable


def test_a_trial_that_learnt_nothing_is_named(tmp_path):
    made = examined(toy(tmp_path, [*noisy(4), truth() * 0.3]))
    assert kinds(made) == {"t4": ("unchanged",)}
    (row,) = [r for r in made.ingredients if r.trial == "t4"]
    assert (row.distance, row.angle_best, row.angle_others) == (0, None, None)


def test_nan_is_named_by_trial_and_tensor_and_refused(tmp_path):
    world = toy(tmp_path, noisy(3))
    broken = truth()
    broken[1, 2], broken[0, 0] = float("nan"), float("inf")
    ref = world.checkpoints.save({"head.weight": broken}, {"init": "toy"})
    bad, *rest = world.pool.ingredients
    bad = msgspec.structs.replace(bad, checkpoint=ref)
    world = world._replace(pool=msgspec.structs.replace(world.pool, ingredients=(bad, *rest)))
    made = examined(world)
    assert not made.averageable
    assert "cannot be averaged" in made.verdict[0]
    (error,) = [f for f in made.findings if f.severity == "error"]
    assert error.what == (
        f"trial {bad.trial.key}: tensor 'head.weight' is NaN or infinite at 2 of its 12 elements"
    )
    with pytest.raises(EvaluationError, match=rf"{bad.trial.key}: tensor 'head.weight' is NaN"):
        refuse_or_note(session_of(world))


def test_another_architecture_is_refused_with_both_shapes(tmp_path):
    world = toy(tmp_path, noisy(3))
    ref = world.checkpoints.save({"head.weight": torch.zeros(2, 4)}, {"init": "toy"})
    bad, *rest = world.pool.ingredients
    bad = msgspec.structs.replace(bad, checkpoint=ref)
    world = world._replace(pool=msgspec.structs.replace(world.pool, ingredients=(bad, *rest)))
    with pytest.raises(IncompatibleWeights) as error:
        refuse_or_note(session_of(world))
    assert "'head.weight' is float32 [2, 4], but float32 [3, 4] in theta_0" in str(error.value)


def test_every_defect_of_a_checkpoint_is_found(tmp_path):
    world = toy(tmp_path, 1)
    start = {"a": torch.zeros(2), "b": torch.zeros(2), "n": torch.tensor([1]), "x": torch.ones(1)}
    other = {
        "a": torch.zeros(2).double(),
        "n": torch.tensor([2]),
        "x": torch.ones(1),
        "z": start["b"],
    }
    origin, model = (world.checkpoints.save(w, {}).sha256 for w in (start, other))
    asked = [Health(checkpoint=c, origin=origin) for c in (model, origin)]
    found, none = world.evaluator.measure(asked, world.basis.split("held_out"))
    assert none == ()
    assert found == (
        Defect(tensor="a", kind="differs", problem="is float64 [2], but float32 [2] in theta_0"),
        Defect(tensor="b", kind="differs", problem="is missing"),
        Defect(tensor="n", kind="integer", problem="holds integers that are not those of theta_0"),
        Defect(tensor="z", kind="differs", problem="is not a tensor of theta_0"),
    )


def test_a_soup_is_told_without_a_forward_pass(tmp_path, monkeypatch):
    world = toy(tmp_path, [*noisy(5, 0.1), -truth()])
    monkeypatch.setattr(world.workers.live, "predict", None)
    found = refuse_or_note(session_of(world))
    assert [(f.kind, f.trials) for f in found] == [("apart", ("t5",))]


def test_a_barrier_is_a_middle_below_the_worse_end_by_two_standard_errors():
    # Right on the first so many: against 80, 70 is 10 discordant samples one way,
    # difference -.1, standard error sqrt((.1 - .01) / 100) = .03; 77: -.03 and .0171.
    pool = pool_of_counts(90, 80)
    assert has_barrier(pool, middle(0, 1, 70))
    assert not has_barrier(pool, middle(0, 1, 77))
    assert not has_barrier(pool, middle(0, 1, 85))


def test_the_one_behind_most_barriers_is_blamed_not_its_partners():
    pool = pool_of_counts(90, 88, 86, 84)
    bad = blocked(pool, [middle(0, 1, 90), middle(0, 2, 89), middle(0, 3, 50), middle(1, 3, 40)])
    assert [f.trials for f in bad] == [("t3",)]
    assert "from 2 of 2 others: its mean with t1 has 40.0 % held-out, 46.0 points below" in (
        bad[0].what
    )
    odd = blocked(pool, [middle(0, 1, 50), middle(0, 2, 50), middle(0, 3, 50), middle(1, 2, 88)])
    assert [f.trials for f in odd] == [("t0",)]  # the best is elsewhere, the rest belong together
    two = pool_of_counts(90, 80)
    assert [f.trials for f in blocked(two, [middle(0, 1, 50)])] == [("t1",)]


def test_worse_than_theta_0_is_beyond_noise():
    pool = pool_of_counts(90, 77, 70)
    assert [f.trials for f in below_init(pool, scores(80, N))] == [("t2",)]


def said(pool: Pool, *midpoints: Midpoint) -> str:
    k = len(pool.ingredients)
    gram = [[1.0 if i == j else 0.5 for j in range(k)] for i in range(k)]  # all at 60 degrees
    facts = Facts(
        defects=((),) * k, gram=tuple(map(tuple, gram)), init=scores(10, N), midpoints=midpoints
    )
    assert report_on(pool, facts).averageable
    return report_on(pool, facts).verdict[-1]


def test_the_verdict_says_why_greedy_may_keep_only_one():
    pool = pool_of_counts(90, 88, 86)
    assert said(pool, middle(0, 1, 90), middle(0, 2, 80)).startswith(
        "Greedy should keep more than one: 1 of 2 sampled means with the best ingredient (90.0 %"
    )
    behind = said(pool, middle(0, 1, 50), middle(0, 2, 50), middle(1, 2, 50))
    assert "none of 2" in behind
    assert "Most of them have a finding above" in behind
    assert "within noise of it" in said(pool, middle(0, 1, 89), middle(0, 2, 80))
    assert "much weaker" in said(pool_of_counts(90, 60), middle(0, 1, 75))


def test_diverged_trials_are_listed():
    gone = Tombstone(trial=trial("t9"), reason="loss is nan", history=(), started=0, finished=1)
    facts = Facts(defects=((),) * 2, gram=(), diverged=(gone,))
    (found,) = judge(pool_of_counts(90, 80), facts)
    assert found.what == "trial t9 diverged and is no ingredient: loss is nan"


def test_pairs_are_seeded_few_and_mostly_with_the_best():
    pairs = sampled_pairs(16, 8, seed=0, first=[12, 0, 9])
    assert pairs == sampled_pairs(16, 8, seed=0, first=[12, 0, 9])
    assert pairs != sampled_pairs(16, 8, seed=1, first=[12, 0, 9])
    assert len(set(pairs)) == 8
    assert pairs[:2] == [(0, 12), (0, 9)]
    with_best = {j for i, j in pairs if i == 0}
    assert len(with_best) == 6
    assert all({i, j} <= with_best for i, j in pairs if i > 0)
    assert sampled_pairs(1, 8, 0) == []
    assert sampled_pairs(2, 8, 0) == [(0, 1)]
    assert sorted(sampled_pairs(4, 8, 0)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_the_gram_matrix_is_the_one_that_model_stock_asked_for(tmp_path):
    """The same request, hence the same stored answer: a soup with both computes it once."""
    world = toy(tmp_path, noisy(3))
    facts = measure_weights(session_of(world))
    asked = Gram(checkpoints=tuple(world.pool.checkpoints), origin=world.pool.init.sha256)
    (grams,) = world.selection().measure([asked])
    assert facts.gram == tuple(map(tuple, total_gram(grams).tolist()))


def test_a_report_is_json_whatever_is_not_a_number(tmp_path):
    made = examined(toy(tmp_path, [truth() * 0.3, truth() * 0.3]))
    assert msgspec.json.decode(msgspec.json.encode(made), type=Report) == made


def test_the_table_fits_80_columns_and_ends_with_the_verdict(tmp_path, capsys):
    made = examined(toy(tmp_path, [*noisy(5, 0.1), -truth()]))
    show_check(made)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    said = " ".join(shown.split())
    assert all(f"{f.severity}: {f.what}. {f.advice}." in said for f in made.findings)
    assert said.endswith(" ".join(made.verdict))


def pool_of_rates(*rates: float | None) -> Pool:
    """Ingredients with these learning rates, best first; None: an imported model."""
    made = []
    for i, rate in enumerate(rates):
        one = ingredient(f"t{i}", scores(90 - i, N))
        hparams = {"file": f"{i}.pt"} if rate is None else {"lr": rate, "epochs": 3}
        method = "imported" if rate is None else "ft"
        own = msgspec.structs.replace(one.trial, hparams=hparams, method=method)
        made.append(msgspec.structs.replace(one, trial=own))
    return msgspec.structs.replace(BOARD, ingredients=tuple(made))


def steps(*lengths: float) -> Facts:
    """All in one direction from theta_0, so far."""
    gram = tuple(tuple(a * b for b in lengths) for a in lengths)
    return Facts(defects=((),) * len(lengths), gram=gram)


def test_a_lower_learning_rate_is_advised_only_above_the_median_of_the_pool():
    # The one that is far has the highest rate, the lowest, and the same as all the others.
    for rates, advice in (
        (
            (1e-4, 2e-4, 3e-2),
            "Lower its learning rate (3.0e-02; the median of the pool is 2.0e-04)",
        ),
        (
            (2e-4, 3e-2, 1e-5),
            "Its learning rate (1.0e-05) is not above the median of the pool (2.0e-04): look at "
            "epochs (3), init",
        ),
        (
            (1e-4, 1e-4, 1e-4),
            "Its learning rate (1.0e-04) is not above the median of the pool (1.0e-04): look at "
            "epochs (3), init",
        ),
    ):
        (found,) = judge(pool_of_rates(*rates), steps(1, 1, 60))
        assert (found.kind, found.trials, found.advice) == ("far", ("t2",), advice)
    worse = below_init(pool_of_rates(1e-2, 1e-4, 1e-5), scores(99, N))
    assert [f.trials for f in worse] == [("t0",), ("t1",), ("t2",)]
    assert [f.advice.startswith("Lower its learning rate") for f in worse] == [True, False, False]


def test_a_trial_that_learnt_nothing_is_not_told_to_raise_the_highest_rate():
    low, high = pool_of_rates(1e-3, 1e-3, 1e-5), pool_of_rates(1e-3, 1e-3, 1e-2)
    (found,) = judge(low, steps(1, 1, 0))
    assert found.advice.endswith(
        "raise its learning rate (1.0e-05; the median of the pool is 1.0e-03)"
    )
    (found,) = judge(high, steps(1, 1, 0))
    assert found.advice.endswith("towards theta_0: train it longer")


def test_the_origin_of_imported_models_is_claimed_and_the_far_one_is_flagged():
    """Of two models, one that is 35 times as far must not hide behind a median of both."""
    pool = pool_of_rates(None, None)
    made = report_on(pool, steps(1, 35))
    assert made.verdict[0] == (
        f"All 2 ingredients are claimed to start from the same theta_0 ({pool.init.sha256[:12]}, "
        "head included); 2 of them were imported, and their files do not tell. All have the same "
        "tensors and no NaN: they can be averaged."
    )
    (found,) = made.findings
    assert found.what == "trial t1 is 35 times as far from theta_0 as the median of the others"
    assert found.advice.startswith("It was imported: it may have started from another model")
    trained = report_on(pool_of_rates(1e-3, 1e-3), steps(1, 2)).verdict[0]
    assert trained.startswith("All 2 ingredients started from the same theta_0")
