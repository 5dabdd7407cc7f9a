"""Diagnostics of pairs: linear models, whose soup is their ensemble, and records made by hand."""

import itertools
import json

import msgspec
import numpy as np
import pytest
import torch
from conftest import ONE_SLOT, inside, mini_text
from shared import ingredient, inputs_of, scores
from test_findings import noisy

from soupray.cli.tables import show_sections
from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.records import Basis, CheckpointRef, Predictions, Split, encode
from soupray.core.trials import Manifest, pool_of
from soupray.diagnostics.diagnose import Diagnostics, write_diagnosis
from soupray.diagnostics.diversity import (
    Diagnosis,
    Mixed,
    Pair,
    compare_pair,
    diagnosis,
    drawn_pairs,
    summary,
)
from soupray.diagnostics.measure import Options
from soupray.diagnostics.measures import MEASURES
from soupray.diagnostics.pairs import (
    PAIRS,
    diversity_points,
    ensemble_points,
    interpolation_points,
    measure_pairs,
)
from soupray.distributed import cluster
from soupray.search.state import find_basis
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import read_record
from soupray.testing.linear import toy, truth

SPLIT = Split(name="held_out", role="held_out", digest="d", size=4, classes=2)
NOBODY = Basis(
    key="b",
    splits=(SPLIT,),
    init=CheckpointRef(sha256="anchor", size_bytes=1),
    anchor=CheckpointRef(sha256="anchor", size_bytes=1),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four noisy copies of the truth, and theta_0 itself."""
    return toy(tmp_path_factory.mktemp("toy"), [*noisy(4, 0.6), truth() * 0.3])


@pytest.fixture(scope="module")
def made(world) -> Diagnosis:
    return measure_pairs(inputs_of(world))


def test_the_soup_of_linear_models_is_their_ensemble_measured_and_predicted(made):
    """Logits are linear along the segment: both differences are 0, the conversion is the same."""
    assert len(made.pairs) == 10
    for d in made.pairs:
        assert d.measured == pytest.approx(0, abs=1e-6)
        assert d.predicted == pytest.approx(0, abs=2e-4)  # float32 logits, divided by 1/16 h^2
        assert d.soup.accuracy == d.ensemble.accuracy
        assert d.soup.conversion == d.ensemble.conversion
        assert d.soup.loss == pytest.approx(d.ensemble.loss, abs=1e-6)


def test_there_is_no_barrier_between_linear_models_in_the_loss(world, made):
    """The loss is convex in logits, and so along the segment: at a = 1/2 at most the mean."""
    held_out = world.basis.split("held_out")
    shas = {i.trial.key: i.checkpoint.sha256 for i in world.pool.ingredients}
    for d in made.pairs:
        labels, ends = [], []
        for key in d.trials:
            p = world.evaluator.predictions(mean_of([shas[key]]), held_out)
            z = d.beta * p.logits.astype(float)
            ends.append((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), p.labels]).mean())
            labels.append(p.labels)
        assert d.soup.loss <= np.mean(ends) + 1e-9


def test_the_ensemble_of_a_pair_is_the_evaluators_ensemble(world, made):
    held_out = world.basis.split("held_out")
    shas = {i.trial.key: i.checkpoint.sha256 for i in world.pool.ingredients}
    for d in made.pairs:
        parts = [(mean_of([shas[key]]), 1, 1.0) for key in d.trials]
        (found,) = world.evaluator.scores([ensemble_of(parts, 2, "logits")], held_out)
        assert d.ensemble.accuracy == found.accuracy
        (soup,) = world.evaluator.scores([mean_of([shas[key] for key in d.trials])], held_out)
        assert d.soup.accuracy == soup.accuracy


def test_angle_and_distance_are_those_of_the_weights(world, made):
    start = world.task.init()["head.weight"].double()
    steps = {
        i.trial.key: world.checkpoints.load(i.checkpoint.sha256)["head.weight"].double() - start
        for i in world.pool.ingredients
    }
    for d in made.pairs:
        a, b = (steps[key].flatten() for key in d.trials)
        assert d.distance == pytest.approx(float((a - b).norm()), rel=1e-6)
        if "t4" in d.trials:  # theta_0 went nowhere
            assert d.angle is None
        else:
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
            assert d.angle == pytest.approx(float(torch.rad2deg(torch.acos(cosine))), rel=1e-5)


def test_all_pairs_come_from_the_stored_answers(world, made):
    right = [i.held_out.right_mask() for i in world.pool.ingredients]
    for (i, a), (j, b) in itertools.product(enumerate(right), repeat=2):
        assert made.error_inconsistency[i][j] == pytest.approx(np.mean(a != b))
    by_keys = {d.trials: d for d in made.pairs}
    first, second = made.trials[:2]
    assert by_keys[first, second].error_inconsistency == made.error_inconsistency[0][1]
    assert by_keys[first, second].kappa_complement == made.kappa_complement[0][1]
    assert made.kappa_complement[0][0] == pytest.approx(0)


def test_running_again_and_more_pairs_evaluate_nothing_known(world, made, monkeypatch):
    monkeypatch.setattr(world.workers.live, "predict", None)
    assert measure_pairs(inputs_of(world)) == made
    fewer = measure_pairs(inputs_of(world, options=Options(pairs=3)))
    assert set(fewer.pairs) < set(made.pairs)


def test_a_pair_worked_out_by_hand():
    """Four samples of class 0; a logit above 0 is right. One model bends where the other does not.

    Ends right on {0, 1} and {0, 2}; the ensemble's logits are (2, 1/2, -1/2, -2): right on
    {0, 1}; the soup's are given as (2, 1, 1, -2): right on {0, 1, 2}.
    """
    at = {0: [2, 2, -2, -2], 4: [2, -1, 1, -2], 2: [2, 1, 1, -2]}
    at[1] = at[3] = [2, 1, 1, -2]
    along = [
        Predictions(
            split=SPLIT,
            logits=np.array([[x, 0] for x in at[k]], np.float32),
            labels=np.zeros(4, np.int64),
        )
        for k in range(5)
    ]
    found = compare_pair(("a", "b"), 1.5, 30.0, along)
    assert found.accuracies == (0.5, 0.5)
    assert found.error_inconsistency == 0.5  # samples 1 and 2
    assert found.kappa_complement == 1  # agree on half; chance is half
    assert (found.soup.accuracy, found.ensemble.accuracy) == (0.75, 0.5)
    assert (found.soup.advantage, found.ensemble.advantage) == (0.25, 0)
    assert (found.soup.conversion, found.ensemble.conversion) == (1, 0.5)
    assert found.measured == pytest.approx(found.soup.loss - found.ensemble.loss)
    # beta solves d/d beta of log(1+e^-2b) + 2 log(1+e^-b) + log(1+e^2b) = 0.
    sigma = 1 / (1 + np.exp(-found.beta * np.array([2, 1, 1, -2])))
    assert ((1 - sigma) * np.array([2, 1, 1, -2])).sum() == pytest.approx(0, abs=1e-4)


def pair(angle: float | None, soup: float, predicted: float, measured: float, far: float) -> Pair:
    mixed = Mixed(accuracy=0.9, advantage=soup, conversion=0.75, loss=0.3)
    return Pair(
        trials=("a", "b"), accuracies=(0.8, 0.9), distance=far, angle=angle,
        error_inconsistency=0.1, kappa_complement=0.5, soup=mixed,
        ensemble=msgspec.structs.replace(mixed, conversion=None), beta=1.0,
        measured=measured, predicted=predicted,
    )  # fmt: skip


def by_hand() -> Diagnosis:
    masks = ([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0])
    made = [ingredient(f"t{i}", scores(mask)) for i, mask in enumerate(masks)]
    pool = pool_of(NOBODY, made)
    pairs = [
        pair(40, 0.02, -0.02, -0.01, 3.0),
        pair(None, -0.01, 0.01, 0.03, 1.0),
        pair(60, 0.05, 0.04, 0.04, 2.0),
    ]
    return diagnosis(pool, pairs)


def test_points_of_the_figures():
    made = by_hand()
    assert interpolation_points(made) == [
        (40, 2, pytest.approx(85)),
        (60, 5, pytest.approx(85)),
    ]
    assert diversity_points(made) == {"soup": [(10, 75)] * 3, "ensemble": []}
    assert ensemble_points(made) == [(-0.02, -0.01, 3), (0.01, 0.03, 1), (0.04, 0.04, 2)]


def test_the_summary_in_words():
    errors, interpolation, ensemble = summary(by_hand())
    # pairs differ on 1, 1 and 2 of 4 samples
    assert "on 33.3 % of the samples (25.0 % to 50.0 %, all 3 pairs)" in errors
    assert "in 2 of 3 sampled pairs, by +2.0 points on average" in interpolation
    assert "lower loss in 1 of 3 pairs" in ensemble
    assert "+0.0200 nats on average, predicted +0.0100" in ensemble
    # r from the means (-3, 0, 3) and (-3, 1, 2): 15 / sqrt(18 * 14) = .945
    assert "correlation of the two +0.94" in ensemble


def test_the_table_fits_80_columns_and_says_what_it_shows(made, capsys):
    show_sections([PAIRS.section(made)], {})
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("t4") == 4
    said = " ".join(shown.split())
    assert "Held-out data only" in said
    assert all(sentence in said for sentence in summary(made))


def only_pairs(made: Diagnosis) -> Diagnostics:
    return Diagnostics(leaderboard=None, measures={"pairs": made}, left_out={})


def test_numbers_and_figures_are_written(made, tmp_path):
    files = write_diagnosis(only_pairs(made), tmp_path)
    assert [f.name for f in files] == [
        "diagnostics.json",
        "interpolation.png", "interpolation.svg",
        "diversity.png", "diversity.svg",
        "soup_against_ensemble.png", "soup_against_ensemble.svg",
    ]  # fmt: skip
    written = msgspec.json.decode(files[0].read_bytes(), type=Diagnostics)
    assert msgspec.convert(written.measures["pairs"], Diagnosis) == made
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[1::2])
    assert all(b"</svg>" in f.read_bytes() for f in files[2::2])


def test_a_pool_without_angles_or_differences_is_drawn_too(tmp_path):
    """Three times theta_0: no way, no inconsistent sample."""
    world = toy(tmp_path, [truth() * 0.3] * 3)
    made = measure_pairs(inputs_of(world))
    assert {(d.angle, d.soup.conversion, d.distance) for d in made.pairs} == {(None, None, 0)}
    files = write_diagnosis(only_pairs(made), tmp_path)
    assert [f.name for f in files if f.suffix == ".svg"] == ["soup_against_ensemble.svg"]
    assert len(summary(made)) == 3


def test_pairs_are_drawn_by_seed_and_all_taken_if_few():
    assert drawn_pairs(4, 20, 0) == list(itertools.combinations(range(4), 2))
    assert drawn_pairs(72, 20, 0) == drawn_pairs(72, 20, 0) != drawn_pairs(72, 20, 1)
    assert len(set(drawn_pairs(72, 20, 0))) == 20


def reported(home) -> list[str]:
    """Paths of stored evaluations on test and shifts."""
    spec, _, store = home.world()
    digests = {s.digest for s in find_basis(store, spec).reported}
    paths = store.list("evaluations")
    return [p for p in paths if json.loads(store.get(p))["scores"]["split"] in digests]


def test_check_and_diagnose_at_the_command_line(fresh, tmp_path, monkeypatch, without_ray):
    """The main job's four trials: everything is said, on held-out data only."""
    fresh.spec.write_text(mini_text(**ONE_SLOT))
    before = reported(fresh)
    assert before
    told = json.loads(inside("check", fresh.spec, *fresh.where, "--json").stdout)
    assert told["averageable"]
    assert len(told["ingredients"]) == 4
    assert len(told["pairs"]) == 6  # all of four
    asked = ("--only", "pairs", "--pairs", 2, "--output", tmp_path)
    (planned,) = json.loads(
        inside("diagnose", fresh.spec, *fresh.where, *asked, "--dry-run", "--json").stdout
    )
    assert not planned["stored"]
    evaluated = len(fresh.world()[2].list("evaluations"))
    shown = inside("diagnose", fresh.spec, *fresh.where, *asked)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "Soup against ensemble: the soup has the lower loss" in shown.stdout
    written = json.loads((tmp_path / "diagnostics.json").read_text())
    assert len(written["measures"]["pairs"]["pairs"]) == 2
    assert reported(fresh) == before
    # The dry run counted what was then computed.
    assert len(fresh.world()[2].list("evaluations")) == evaluated + planned["passes"]
    page = (tmp_path / "report.html").read_text()
    assert "chart-soup_against_ensemble" in page
    assert "lower loss in" in page
    # Again: the numbers are in the store, and nothing is made. Other pairs are other numbers.
    _, _, store = fresh.world()
    (kept,) = store.list("sweeps/mini/diagnoses")
    for path in store.list("evaluations"):
        store.delete(path)
    monkeypatch.setattr(cluster, "attach", lambda *specs: pytest.fail("Ray was asked for"))
    (tmp_path / "diagnostics.json").unlink()
    assert inside("diagnose", fresh.spec, *fresh.where, *asked).stdout == shown.stdout
    assert json.loads((tmp_path / "diagnostics.json").read_text()) == written
    (planned,) = json.loads(
        inside("diagnose", fresh.spec, *fresh.where, *asked, "--dry-run", "--json").stdout
    )
    assert (planned["stored"], planned["passes"]) == (True, 0)
    assert store.list("sweeps/mini/diagnoses") == [kept]


@pytest.mark.usefixtures("few_paths", "without_ray")
def test_all_measures_run_once_and_change_no_choice(fresh, tmp_path, monkeypatch):
    """On the main job's leaderboard, of all recipes; the second call computes nothing."""
    fresh.spec.write_text(mini_text(**ONE_SLOT))
    _, _, store = fresh.world()

    def chosen() -> dict[str, bytes]:
        paths = [*store.list("sweeps/mini/choices"), *store.list("sweeps/mini/leaderboards")]
        return {path: store.get(path) for path in paths}

    before = chosen()
    asked = ("diagnose", fresh.spec, *fresh.where, "--pairs", 2, "--output", tmp_path / "d")
    first = json.loads(inside(*asked, "--json").stdout)
    after = chosen()
    assert {path: after[path] for path in before} == before
    (added,) = after.keys() - before
    assert added.endswith("/diagnostics.json")
    assert first["leaderboard"] in added
    assert {*first["measures"], *first["left_out"]} == {m.name for m in MEASURES}
    assert len(first["measures"]) >= 7, first["left_out"]
    for measure in MEASURES:  # what is stored is what is printed
        if measure.name in first["measures"]:
            msgspec.convert(first["measures"][measure.name], measure.record)
    # A report that is made again has the sections, in the order of the measures.
    inside("report", fresh.spec, *fresh.where, "--output", tmp_path / "report.html")
    pages = [(tmp_path / "report.html").read_text(), (tmp_path / "d/report.html").read_text()]
    assert pages[0] == pages[1]
    found = [pages[0].index(f'id="measure-{name}"') for name in first["measures"]]
    assert found == sorted(found)
    # Again, without Ray; one alone leaves the sections of the others.
    monkeypatch.setattr(cluster, "attach", lambda *specs: pytest.fail("Ray was asked for"))
    assert json.loads(inside(*asked, "--json").stdout) == first
    inside(*asked, "--only", "both_wrong")
    assert (tmp_path / "d/report.html").read_text() == pages[0]
    unknown = inside(*asked, "--only", "rho", check=False)
    assert unknown.returncode == 2
    assert "there is no measure 'rho'. There are: pairs, flatness, robustness" in unknown.stderr


def test_a_broken_ingredient_ends_check_and_soup_with_status_1(fresh, tmp_path, without_ray):
    fresh.spec.write_text(mini_text(**ONE_SLOT))
    _, _, store = fresh.world()
    path = store.list("trials")[0]
    manifest = read_record(store, path, Manifest)
    checkpoints = Checkpoints(store, tmp_path)
    weights = checkpoints.load(manifest.checkpoint.sha256)
    name = "head.weight"
    weights[name] = weights[name].clone()
    weights[name][0, 0] = float("nan")
    broken = msgspec.structs.replace(manifest, checkpoint=checkpoints.save(weights, {}))
    store.put(path, encode(broken))
    what = f"trial {manifest.trial.key}: tensor 'head.weight' is NaN or infinite at 1 of its"
    checked = inside("check", fresh.spec, *fresh.where, check=False)
    assert checked.returncode == 1
    assert what in " ".join(checked.stdout.split())
    assert "This pool cannot be averaged" in checked.stdout
    souped = inside("soup", fresh.spec, *fresh.where, "--output", tmp_path / "s", check=False)
    assert souped.returncode == 1
    assert f"error: {what}" in souped.stderr
