"""Proxy shifts and the dial: what may be chosen by, what is chosen, and what is shown of it."""

import collections
import json
from typing import get_args

import msgspec
import numpy as np
import pytest
from board import A, Line, alpha
from conftest import inside, leaderboard, mini_text
from msgspec import UNSET
from shared import blind, demo, scores, sha, shifted_images, split

from soupray.core.candidates import Dial, DialPoint, Outcome, mean_of
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.records import Basis, CheckpointRef, Objective, digest
from soupray.data.cache import open_data, planned
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.excess import excess_bounds
from soupray.operations.estimate import dry_run
from soupray.recipes import broken_contract
from soupray.recipes.dial import choose, is_dominated
from soupray.recipes.ose import OSE
from soupray.recipes.recipe import Earlier, PoolSize
from soupray.recipes.wise_ft import WISE_FT
from soupray.reporting.dials import dial_table, of_dials
from soupray.reporting.ranking import measured
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import Place, start_services
from soupray.soup.run import choices_path
from soupray.spec.data import Corruption
from soupray.spec.proxies import KINDS
from soupray.spec.sweep_spec import SweepSpec, load, parse
from soupray.store.manifests import find_manifest
from soupray.testing.linear import DIM, toy
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

SHIFTS = "  shifts: [inverted, rotated, noise, low_contrast, thickened]\n"
PROXIES = (SHIFTS, f"{SHIFTS}  proxy_shifts: [blurred, occluded]\n")
DIALS = ("  wise_ft: {}\n", "  wise_ft: {dial: {eps: 0.05}}\n  ose: {dial: {}}\n")


# ---- the choice


def test_the_choice_by_hand():
    #          anchor                 theta_1
    held_out = [60, 80, 90, 95, 95, 93]
    proxies = [70, 75, 74, 74, 60, 50]
    excess = [0.4, 0.2, 0.08, 0.03, 0.04, 0.05]
    assert choose(held_out, proxies, excess, eps=0.0) == (3, 3)  # the first of two best
    assert choose(held_out, proxies, excess, eps=0.05) == (3, 3)
    assert choose(held_out, proxies, excess, eps=0.08) == (3, 3)  # as robust, and worse
    assert choose(held_out, proxies, excess, eps=0.2) == (3, 1)
    assert choose(held_out, proxies, excess, eps=0.19) == (3, 3)
    assert choose([5, 5, 5], [3, 3, 3], [1.0, 1.0, 1.0], eps=1.0) == (0, 0)  # closer to the anchor
    assert choose([5, 6, 5], [9, 1, 9], [0.0, 1.0, 0.0], eps=0.0) == (1, 0)
    dominated = [is_dominated(k, held_out, proxies) for k in range(6)]
    assert dominated == [True, False, True, False, True, True]
    assert not is_dominated(0, [5, 5], [3, 3])  # no point is dominated by an equal one


class Proxied(Line):
    """Held-out: .5 + .4 alpha of 100. Proxies: .9 - .4 alpha, and .5 at any alpha."""

    def proxy_scores(self, candidates):
        falling = [scores(round(90 - 40 * alpha(c)), 100) for c in candidates]
        return [{"blurred": one, "occluded": scores(50, 100)} for one in falling]

    def excess(self, results, confidence):
        values = np.array([one.values() for one in results])
        return [float(bound) for bound in excess_bounds(values, confidence)]


def single(name, checkpoint, held_out):
    model = mean_of([checkpoint])
    return Outcome(name=name, recipe=name, options={}, candidate=model, held_out=held_out)


EARLIER = Earlier((single("best_single", A.checkpoint.sha256, A.held_out),))
FEW = {"alphas": [0, 0.25, 0.5, 0.75, 1]}


def test_a_line_has_one_more_point_and_its_table():
    plain = WISE_FT.run(Proxied(), EARLIER, FEW)
    made = WISE_FT.run(Proxied(), EARLIER, {**FEW, "dial": {"eps": 0.35, "confidence": 0.9}})
    assert [o.name for o in plain] == [
        f"wise_ft(best_single, {p})" for p in ("half", "best", "within")
    ]
    assert made[:3] == plain
    (found,) = made[3:]
    assert (found.name, found.recipe) == ("wise_ft(best_single, dial)", "wise_ft")
    dial = found.dial
    assert (dial.eps, dial.confidence, dial.samples) == (0.35, 0.9, 100)
    assert dial.proxies == ("blurred", "occluded")
    assert [p.alpha for p in dial.points] == [0, 0.25, 0.5, 0.75, 1]
    assert [p.held_out for p in dial.points] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert [p.proxy for p in dial.points] == [0.7, 0.65, 0.6, 0.55, 0.5]
    assert not any(p.dominated for p in dial.points)  # each is a trade
    # Made-up scores mark the first samples as right: each point differs from the next at 10.
    rows = np.array([[1.0] * k + [0.0] * (100 - k) for k in (50, 60, 70, 80, 90)])
    assert [p.excess for p in dial.points] == excess_bounds(rows, 0.9).tolist()
    assert dial.best == 4
    # 20 of 100 samples less than the best: at most .292 of all differ (Clopper, Pearson; .025).
    assert dial.points[2].excess == pytest.approx(0.2 + 1.96 * (0.2918 / 100) ** 0.5, abs=1e-4)
    assert dial.points[1].excess == pytest.approx(0.3 + 1.96 * (0.3998 / 100) ** 0.5, abs=1e-4)
    assert dial.chosen == 2
    assert alpha(found.candidate) == 0.5
    assert found.held_out.correct == 70
    assert found.notes == ()
    said = {"theta_1": "best_single", "point": "dial", "alpha": 0.5, "eps": 0.35, "confidence": 0.9}
    assert found.options == said
    assert [step.accepted for step in found.trace] == [False, False, True, False, False]


def test_where_no_other_point_is_surely_near_the_dial_is_the_best_point_and_says_so():
    (found,) = WISE_FT.run(Proxied(), EARLIER, {**FEW, "dial": {}})[3:]
    assert (found.dial.best, found.dial.chosen) == (4, 4)
    least = min(p.excess for p in found.dial.points[:4])
    (note,) = found.notes
    assert "wise_ft(best_single, dial): on 100 held-out samples no other point is within" in note
    assert "eps = 0.01 of the best one with 95 % confidence" in note
    eps = float(note.split("eps = ")[-1])
    assert 0 <= eps - least < 0.001
    (other,) = WISE_FT.run(Proxied(), EARLIER, {**FEW, "dial": {"eps": eps}})[3:]
    assert other.dial.chosen == 3


def test_without_proxy_shifts_a_dial_is_refused_by_the_recipe_too():
    selection = blind(demo_pool())
    assert selection.proxy_scores([mean_of([sha("a")])]) == [{}]

    class None_(Proxied):
        def proxy_scores(self, candidates):
            return [{} for _ in candidates]

    with pytest.raises(ConfigError, match=r"wise_ft: the dial .* Add data.proxy_shifts"):
        WISE_FT.run(None_(), EARLIER, {"dial": {}})


def demo_pool():
    return Line.pool


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        (WISE_FT, {"eps": -0.1}),
        (WISE_FT, {"eps": 2}),
        (OSE, {"confidence": 1}),
        (OSE, {"confidence": 0.3}),
        (OSE, {"epsilon": 0.1}),
        (OSE, True),
        (OSE, 0.05),
    ],
)
def test_options_that_are_none(recipe, option):
    with pytest.raises(ConfigError, match=r"dial = .*Allowed: a mapping of eps, 0 to 1, and conf"):
        recipe.read({"dial": option}, "x.yaml")


@pytest.mark.parametrize(
    ("recipe", "objective"),
    [(WISE_FT, UNSET), (OSE, UNSET), (WISE_FT, Objective(kind="segmentation"))],
)
def test_a_dial_is_a_point_of_its_curve_and_changes_no_other_outcome(recipe, objective, tmp_path):
    world = toy(tmp_path, 2, objective=objective)
    selection = world.selection(metric="iou" if objective else "accuracy")
    earlier = Earlier(
        (single("best_single", world.pool.checkpoints[0], world.pool.ingredients[0].held_out),)
    )
    plain = recipe.run(selection, earlier, {})
    made = recipe.run(selection, earlier, {"dial": {"eps": 0.2}})
    assert [o for o in made if not o.dial] == plain
    dials = [o for o in made if o.dial]
    named = {
        "wise_ft": ["wise_ft(best_single, dial)"],
        "ose": ["ose(best_single, logits, dial)", "ose(best_single, probs, dial)"],
    }
    assert [o.name for o in dials] == named[recipe.name]
    proxy = world.basis.split(DIM)
    for one in dials:
        curve = [step.candidate for step in one.trace]
        found = world.evaluator.scores(curve, proxy)
        assert [p.proxy for p in one.dial.points] == [s.accuracy for s in found]
        held_out = world.evaluator.scores(curve, world.basis.split("held_out"))
        assert [p.held_out for p in one.dial.points] == [s.accuracy for s in held_out]
        assert one.candidate == curve[one.dial.chosen]
        assert [p.alpha for p in one.dial.points] == [k / 20 for k in range(21)]
        values = np.array([s.values() for s in held_out])
        assert [p.excess for p in one.dial.points] == excess_bounds(values, 0.95).tolist()
    assert broken_contract(recipe, made, world.pool, earlier) == ""


def test_what_a_dial_costs():
    def cost(recipe, proxies, **options):
        size = PoolSize(4, 100, proxies)
        return tuple(recipe.cost(size, recipe.read(options, "x.yaml")))

    # Two lines of 19 inner points; on each proxy shift also three ends.
    assert cost(WISE_FT, 2) == (0, 38, 10, 0, 0, 0, 46)
    assert cost(WISE_FT, 2, dial={}) == (0, 38 + 2 * 41, 10, 0, 0, 0, 46)
    assert cost(WISE_FT, 2, theta_1="a", alphas=[0, 0.25, 0.5, 1], dial={})[1] == 2 + 2 * 4
    assert cost(OSE, 2)[1] == 0
    assert cost(OSE, 2, dial={})[1] == 2 * 3  # anchor, best single model, best soup


# ---- the spec


def test_each_corruption_has_a_kind():
    assert set(KINDS) == set(get_args(Corruption))


def proxied(proxies: str, shifts: str = "[inverted, noise]"):
    return demo((SHIFTS, f"  shifts: {shifts}\n  proxy_shifts: {proxies}\n"))


def test_a_spec_without_proxy_shifts_has_the_keys_that_it_had():
    spec = demo()
    assert "proxy_shifts" not in json.dumps(spec.model_dump(mode="json"))
    assert spec.data.proxy_shifts == ()
    assert proxied("[]").digest == proxied("[]", "[inverted, noise]").digest
    assert demo((SHIFTS, SHIFTS + "  proxy_shifts: []\n")).digest == spec.digest
    assert basis_key(demo((SHIFTS, SHIFTS + "  proxy_shifts: []\n"))) == basis_key(spec)
    more = demo(PROXIES)
    assert more.data.proxy_shifts == ("blurred", "occluded")
    assert basis_key(more) != basis_key(spec)


def test_a_proxy_shift_of_a_reported_kind_is_refused_with_both_lists():
    said = (
        r"data.proxy_shifts: .*: grainy is of the same kind as the reported shift noise.*"
        r"Proxy shifts: blurred \(detail\), grainy \(noise\). "
        r"Reported: inverted \(inversion\), noise \(noise\). Of other kinds are: rotated \(geometry"
    )
    with pytest.raises(ConfigError, match=said):
        proxied("[blurred, grainy]")
    with pytest.raises(ConfigError, match=r"blurred is of the same kind as .* blurred"):
        proxied("[blurred]", "[blurred]")
    with pytest.raises(
        ConfigError, match="moved is of the same kind as the reported shift rotated"
    ):
        proxied("[moved]", "[rotated]")
    with pytest.raises(ConfigError, match="a proxy shift is listed twice"):
        proxied("[faded, faded]")
    with pytest.raises(ConfigError, match="proxy_shifts"):
        proxied("[fog]")
    folder = "[{kind: folder, root: elsewhere, name: proxy.blurred}]"
    with pytest.raises(ConfigError, match=r"is called proxy\.blurred, and so is a reported"):
        proxied("[blurred]", folder)
    assert proxied("[blurred, pixelated]").data.proxy_shifts == ("blurred", "pixelated")


def test_a_dial_without_proxy_shifts_is_refused_when_the_spec_is_read():
    said = r"recipes.wise_ft.dial: .* Add data.proxy_shifts: \[blurred, pixelated\] and run"
    with pytest.raises(ConfigError, match=said):
        demo(DIALS)
    every = "[inverted, rotated, noise, faded, thickened, blurred, occluded]"
    with pytest.raises(ConfigError, match="All kinds are reported: take a shift out"):
        demo((SHIFTS, f"  shifts: {every}\n"), DIALS)
    assert demo(PROXIES, DIALS).recipes["wise_ft"] == {"dial": {"eps": 0.05}}
    text = """
name: texts
task: {kind: transformers, model: m, classes: [a, b]}
data: {kind: text, train: t.csv, test: 5, held_out: 5}
init: {probe: {l2: 1.0e-3}}
anchor: init
search: {trials: 1, space: {lr: 1.0e-3, epochs: 1}}
recipes: {wise_ft: {dial: {}}}
"""
    with pytest.raises(ConfigError, match="There are none for texts: leave dial out"):
        parse(text, "texts.yaml")


# ---- the data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data(demo(PROXIES), tmp_path_factory.mktemp("data"))


def test_proxy_shifts_are_copies_of_held_out_data_and_are_not_reported(data):
    spec, held_out = demo(PROXIES), data.split("held_out")
    images, labels = data.samples(held_out)
    for name in ("blurred", "occluded"):
        proxy = data.split(f"proxy.{name}")
        assert (proxy.role, proxy.size) == ("proxy", held_out.size)
        seed = int(digest([spec.seed, f"proxy.{name}"])[:15], 16)
        copy, theirs = data.samples(proxy)
        assert np.array_equal(copy, shifted_images(name, np.array(images), seed))
        assert np.array_equal(theirs, labels)
        assert data.ids(proxy) == data.ids(held_out)
    init = CheckpointRef(sha256=sha("init"), size_bytes=1)
    basis = Basis(key="k", splits=data.splits, init=init, anchor=init)
    roles = [(s.name, s.role) for s in basis.selection]
    assert roles == [
        ("held_out", "held_out"),
        ("train", "train"),
        ("proxy.blurred", "proxy"),
        ("proxy.occluded", "proxy"),
    ]
    assert {s.role for s in basis.reported} == {"test", "shift"}
    assert {*basis.selection, *basis.reported} == set(basis.splits)
    sizes = [(name, role, size) for name, role, size in planned(spec).sizes if role == "proxy"]
    assert sizes == [("proxy.blurred", "proxy", 500), ("proxy.occluded", "proxy", 500)]


def test_proxy_shifts_change_neither_trials_nor_the_other_splits(data, tmp_path):
    before = open_data(demo(), tmp_path)
    assert before.splits == tuple(s for s in data.splits if s.role != "proxy")
    init = CheckpointRef(sha256=sha("init"), size_bytes=1)
    keys = [
        [t.key for t in trials_of(spec, Basis(key="k", splits=of.splits, init=init, anchor=init))]
        for spec, of in ((demo(), before), (demo(PROXIES), data))
    ]
    assert keys[0] == keys[1]


def test_the_dry_run_counts_a_dial_and_reports_nothing_more():
    before, after = dry_run(demo()), dry_run(demo(PROXIES, DIALS))
    assert after.reported_samples == before.reported_samples
    more = after.soup_held_out_samples - before.soup_held_out_samples
    assert more == 500 * 2 * (41 + 3)


@pytest.mark.parametrize("role", ["shift", "test", "rank", "held_out", "train"])
def test_no_other_split_is_taken_for_a_proxy_shift(role):
    splits = [split("held_out", 10, "held_out"), split("train", 9, "train"), split("x", 10, role)]
    with pytest.raises(EvaluationError, match=f"'x' has role '{role}'"):
        HeldOutSelection(None, Line.pool, splits)


def test_choices_are_named_by_the_proxy_shifts_that_made_them():
    named = {choices_path([demo()], Line.pool, {}, p) for p in ((), ("d1",), ("d1", "d2"))}
    assert len(named) == 3
    assert choices_path([demo()], Line.pool, {}) in named


# ---- what is shown


def entry_of(found, name="wise_ft(greedy, dial)"):
    class Row:
        pass

    row = Row()
    row.name, row.dial, row.held_out = name, found, measured(scores(50, 100))
    return row


POINTS = tuple(
    DialPoint(alpha=a, held_out=h, proxy=p, excess=e, dominated=d)
    for a, h, p, e, d in (
        (0.0, 0.612, 0.501, 0.41, True),
        (0.5, 0.953, 0.72, 0.009, False),
        (1.0, 0.954, 0.65, 0.004, False),
    )
)
MADE = Dial(
    eps=0.01, confidence=0.95, samples=5000, proxies=("blurred", "occluded"),
    points=POINTS, best=2, chosen=1,
)  # fmt: skip


def test_a_dial_in_words_and_as_a_table():
    assert of_dials([entry_of(MADE), entry_of(UNSET)]) == [
        "wise_ft(greedy, dial): alpha 0.5, on copies of held-out data (blurred, occluded) 72.0 "
        "against 65.0 of the best point, alpha 1. On held-out data it loses at most 0.9 points to "
        "any point of the curve, with 95 % confidence."
    ]
    table = dial_table(entry_of(MADE))
    assert table.columns == ("alpha", "held-out", "proxies", "loses at most", "")
    assert table.rows == (
        ("0", "61.2", "50.1", "41.0", "dominated"),
        ("0.5", "95.3", "72.0", "0.9", "dial"),
        ("1", "95.4", "65.0", "0.4", "best"),
    )
    assert dial_table(entry_of(UNSET)) is None
    best = msgspec.structs.replace(MADE, chosen=2)
    (said,) = of_dials([entry_of(best)])
    assert said.endswith("alpha 1: no point that is near it is more robust on copies of held-out "
                         "data (blurred, occluded).")  # fmt: skip
    (said,) = of_dials([entry_of(msgspec.structs.replace(best, eps=0.001))])
    assert said.endswith(
        "alpha 1: no other is within 0.1 points of it with 95 % confidence (n = 5000)."
    )


def swept(spec: SweepSpec, place: Place) -> list[str]:
    """The basis and the trials of a sweep, in this process: keys of those that had to train."""
    basis = make_basis(spec, place, basis_key(spec))
    here, trained = worker_context(spec, place), []
    for trial in trials_of(spec, basis):
        if find_manifest(here.checkpoints.store, trial.key) is None:
            collections.deque(fine_tune(trial, here.task, here.data, here.checkpoints), 0)
            trained.append(trial.key)
    return trained


def test_a_sweep_that_is_over_gets_proxy_shifts_and_dials(tmp_path, computed):
    shifts = "[inverted, rotated, noise, low_contrast, thickened]"
    edits = {
        "trials: 16": "trials: 2",
        "epochs: {integer: [5, 15]}": "epochs: 1",
        shifts: "[inverted]",
        "  wise_ft: {}\n": "  wise_ft: {alphas: [0.25, 0.75]}\n  ose: {}\n",
        "storage: embedded": f"storage: file://{tmp_path}/store",
        "tracking: embedded": "tracking: off",
    }
    (tmp_path / "store").mkdir()
    file, where = tmp_path / "mini.yaml", ("--home", tmp_path / "home")
    file.write_text(mini_text(**edits))
    place = start_services(load(file), tmp_path / "home").place
    assert len(swept(load(file), place)) == 2

    edits[shifts] = "[inverted]\n  proxy_shifts: [blurred, occluded]"
    dial = "dial: {eps: 0.2}"
    edits["  wise_ft: {}\n"] = f"  wise_ft: {{alphas: [0.25, 0.75], {dial}}}\n  ose: {{{dial}}}\n"
    file.write_text(mini_text(**edits))
    assert swept(load(file), place) == []
    output = tmp_path / "results"
    said = inside("soup", file, *where, "--greedy", "--wise-ft", "--ose", "--output", output)
    dials = {e["name"]: e for e in leaderboard(output) if "dial" in e}
    assert {"wise_ft(best_single, dial)", "ose(best_single, probs, dial)"} <= dials.keys()
    for name, entry in dials.items():
        made = msgspec.convert(entry["dial"], Dial)
        chosen = made.points[made.chosen]
        assert (made.samples, len(made.points)) == (200, 5 if "wise" in name else 21)
        assert list(entry["shifts"]) == ["inverted"]
        assert entry["held_out"]["accuracy"] == chosen.held_out
        assert entry["options"]["alpha"] == chosen.alpha
        near = [p for k, p in enumerate(made.points) if k == made.best or p.excess <= 0.2]
        assert chosen.proxy == max(p.proxy for p in near)
        assert f"{name}: " in said.stdout
    shown = inside("show", file, "wise_ft(best_single, dial)", *where).stdout.split("\n")
    table = shown[next(k for k, line in enumerate(shown) if "loses at most" in line) :]
    assert [row.split()[0] for row in table[1:6]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert all(len(line) <= 80 for line in table)
    page = (output / "report.html").read_text()
    assert page.count("<details><summary>wise_ft(best_single, dial)</summary>") == 1
