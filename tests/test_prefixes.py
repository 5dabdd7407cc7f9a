"""The anytime soup: what the first trials of a plan are worth, and when they are enough."""

import functools
import itertools
import math

import numpy as np
import pytest
import shared
import torch
from conftest import FEW, ONE_SLOT, copied, inside, leaderboard, mini_text
from msgspec import structs

from soupray.core.errors import ConfigError
from soupray.core.trials import EpochRecord, Tombstone, Training
from soupray.distributed.anytime import measure_prefixes
from soupray.maths.prefixes import chance_of_gain, fewest_trials, gains, greedy_ensemble
from soupray.operations.status import find_status
from soupray.reporting.anytime import curves, points
from soupray.search import prefixes
from soupray.search.prefixes import (
    SHARE,
    Enough,
    Prefix,
    budget_allows,
    find_enough,
    first_seconds,
    forecast_first,
    sizes,
)
from soupray.search.state import find_state, known_trials, prefixes_of
from soupray.spec.space import Stop
from soupray.spec.sweep_spec import load, parse
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.manifests import find_manifest
from soupray.store.objects import open_store
from soupray.sweep.enough import StopRule
from soupray.training.worker import worker_context

VALUES = [0.0, 4.0, 2.0]


def value_of(k):
    return np.array([[VALUES[k]]], dtype=np.float32)


def distance(mean):
    """How far the mean is from 2."""
    return abs(float(mean[0, 0]) - 2)


def test_a_greedy_ensemble_keeps_what_does_not_raise_the_loss():
    # 0 is 2 away; with 4 the mean is 2, with 2 it stays there.
    assert greedy_ensemble(value_of, distance, [0, 1, 2]) == [0, 1, 2]
    assert gains(value_of, distance, [0, 1, 2]) == [2, 0]
    # 4 is 2 away, (4 + 2) / 2 is 1 away, (4 + 2 + 0) / 3 is there.
    assert gains(value_of, distance, [1, 2, 0]) == [1, 1]
    # 2 is there; (2 + 4) / 2 is not, so 4 is left out, and so is 0.
    assert greedy_ensemble(value_of, distance, [2, 1, 0]) == [2]
    assert gains(value_of, distance, [2, 1, 0]) == [0, 0]


def test_the_chance_of_a_gain_is_the_share_of_late_trials_that_gained():
    """Each of 8 trials lowers the loss by exactly one, or none does."""
    kept = lambda mean: -float((mean != 0).sum())  # noqa: E731 - each model adds a coordinate
    each = np.eye(8, dtype=np.float32)
    args = (8, lambda k: each[k : k + 1], kept)
    assert chance_of_gain(*args, 1.0) == (8 * 1 + 1) / (8 + 2)
    assert chance_of_gain(*args, 1.5) == (8 * 0 + 1) / (8 + 2)


def test_the_chance_of_a_gain_agrees_with_all_orders():
    """Of four models the last of each of 24 orders, against 32 orders drawn at random."""
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(4, 40, 3)).astype(np.float32)
    labels = generator.integers(0, 3, 40)
    loss = lambda mean: float(  # noqa: E731
        -np.mean(
            [row[c] - math.log(np.exp(row).sum()) for row, c in zip(mean, labels, strict=True)]
        )
    )
    orders = list(itertools.permutations(range(4)))
    all_last = [gains(lambda k: logits[k], loss, order)[-1] for order in orders]
    for gain in (1e-9, 0.02, 0.05, 0.2):
        share = sum(one >= gain for one in all_last) / len(orders)
        found = chance_of_gain(4, lambda k: logits[k], loss, gain)
        assert found == pytest.approx((4 * share + 1) / 6, abs=0.17)  # 2 standard errors of 32


def test_a_chance_below_a_probability_needs_so_many_trials():
    assert fewest_trials(0.05) == 19  # 1 / 21 is below .05, 1 / 20 is not
    assert fewest_trials(0.25) == 3
    assert fewest_trials(0.9) == 2


def test_prefixes_are_measured_at_powers_of_the_root_of_two_and_at_the_end():
    assert sizes(16) == [2, 3, 4, 6, 8, 11, 16]
    assert sizes(20) == [2, 3, 4, 6, 8, 11, 16, 20]
    assert sizes(2) == [2]
    assert sizes(1) == sizes(0) == []


def prefix(size, greedy, single, seconds=1.0):
    return Prefix(
        size=size,
        ingredients=size,
        best="0" * 16,
        single=shared.scores(single),
        members=("0" * 16,),
        ensemble=structs.replace(shared.scores(single), nll=0.4),
        uniform=None if greedy is None else shared.scores(single),
        greedy=None if greedy is None else shared.scores(greedy),
        seconds=seconds,
        trained=100.0,
    )


def test_a_point_of_the_curve_has_the_gain_and_what_the_last_trials_added():
    first = prefix(2, [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])
    second = prefix(4, [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0])
    one, two = points([first, second], "accuracy")
    assert (one.trials, one.best, one.uniform, one.greedy) == (2, 1 / 6, 1 / 6, 2 / 6)
    assert one.gain is not None
    assert one.gain.difference == pytest.approx(1 / 6)
    # differences 0 1 0 0 0 0: variance 1/6 - 1/36 = 5/36
    assert one.gain.standard_error == pytest.approx(math.sqrt(5 / 36 / 6))
    assert one.added is None
    assert two.added is not None
    assert two.added.difference == pytest.approx(1 / 6)
    assert two.ensemble_nll == 0.4
    # A metric that is no mean over samples has no paired standard error.
    assert points([first, second], "macro_f1")[1].gain is None
    assert curves([first, second], "accuracy")["soup_so_far/greedy"] == ((2, 2 / 6), (4, 3 / 6))


def test_soups_are_measured_only_while_they_take_two_percent_of_the_training():
    assert SHARE == 0.02
    # nothing was measured: the forecast of 3 s counts, for 150 s
    assert budget_allows([], 2, 150.0, 3.0)
    assert not budget_allows([], 2, 149.0, 3.0)
    # what was measured without soups was spent, and says nothing of their time
    assert budget_allows([prefix(2, None, [1, 0], 0.5)], 3, 175.0, 3.0)
    assert not budget_allows([prefix(2, None, [1, 0], 0.5)], 3, 174.0, 3.0)
    first = prefix(2, [1, 0], [1, 0], seconds=1.0)
    # 1 s is spent, and 4 trials will take 2 s, whatever was forecast: 3 s of 150 s
    assert budget_allows([first], 4, 150.0, 9.0)
    assert not budget_allows([first], 4, 149.0, 0.0)
    assert budget_allows([first, prefix(3, None, [1, 0], 0.5)], 4, 175.0, 9.0)
    assert not budget_allows([first, prefix(3, None, [1, 0], 0.5)], 4, 174.0, 0.0)


def test_the_first_soups_take_two_evaluations_of_an_epoch():
    # 3 * 1400 + 200 passes take 22 s, 2 * 200 of them 2 s
    assert first_seconds(22.0, 1400, 200) == 2.0
    assert first_seconds(22.0, 1400, 200, 300) == 8.0  # and 2 * 2 * 300 for statistics
    assert first_seconds(5.0, 0, 200) == 10.0  # an epoch of nothing but evaluation


def trial_of(*epochs, took=None, method="ft", **more):
    """A trial that is over, from the seconds of its epochs."""
    made = shared.ingredient("0" * 16, shared.scores([1, 0]))
    hparams = {"epochs": len(epochs)} | {k: v for k, v in more.items() if k == "last_blocks"}
    trial = structs.replace(
        made.trial,
        method=method,
        hparams=hparams,
        training=Training(precision=more.get("precision", "fp32")),
    )
    history = tuple(
        EpochRecord(epoch=n, train_loss=1.0, held_out_correct=1, held_out_n=2, seconds=seconds)
        for n, seconds in enumerate(epochs, 1)
    )
    finished = 100.0 + (sum(epochs) if took is None else took)
    return structs.replace(made, trial=trial, history=history, started=100.0, finished=finished)


def test_the_forecast_of_the_first_soups_is_from_the_epochs_of_all_trials():
    """9 training and 100 held-out samples: 127 passes an epoch, of which the soups take 200."""
    basis = shared.some_basis()
    dead = trial_of(16.1)
    dead = Tombstone(trial=dead.trial, reason="x", history=dead.history, started=0.0, finished=99.0)
    # epochs of 12.7 s on average
    assert forecast_first([trial_of(10.0, 12.0), dead], basis, 2000) == pytest.approx(20.0)
    assert forecast_first([dead, trial_of(10.0, 12.0)], basis, 2000) == pytest.approx(20.0)
    # bf16, or a few blocks: the training may cost next to nothing, so that all is evaluation
    assert forecast_first([trial_of(12.7, precision="bf16")], basis, 2000) == 25.4
    assert forecast_first([trial_of(12.7, last_blocks=0)], basis, 2000) == pytest.approx(20.0)
    assert forecast_first([trial_of(12.7), trial_of(12.7, last_blocks=1)], basis, 2000) == 25.4


def test_the_forecast_of_the_first_soups_has_the_statistics_of_batch_norm():
    """Each of the two estimates them on the training samples, 9 or at most 4: 236 or 216 passes."""
    one = structs.replace(trial_of(12.7), tensors={"bn.running_mean": "0" * 64, "w": "0" * 64})
    assert forecast_first([one], shared.some_basis(), 2000) == pytest.approx(23.6)
    assert forecast_first([one], shared.some_basis(), 4) == pytest.approx(21.6)


def test_the_forecast_for_heads_is_from_the_evaluation_of_what_was_stored():
    """Epochs of a head see features. 5 s beside them, once 90 s with the features of all data."""
    heads = [trial_of(0.25, 0.75, took=took, method="lp") for took in (91.0, 6.0, 6.0)]
    dead = Tombstone(trial=heads[0].trial, reason="x", history=(), started=0.0, finished=1.0)
    assert forecast_first([dead, *heads], shared.some_basis(), 2000) == 10.0


# ---- the stop rule in a spec

STOP = "  trials: 24\n  stop: {gain: 0.001, probability: 0.05, after: 12}"


def spec_with(search):
    text = mini_text(**{"  sampler: random           # or qmc, tpe\n": ""})
    return parse(text.replace("  trials: 4", search), "x")


def test_a_stop_rule_changes_no_trial_and_no_point():
    plain, ruled = spec_with("  trials: 24"), spec_with(STOP)
    assert plain.search.stop is None
    assert "stop" not in plain.model_dump()["search"]
    from soupray.search.plan import plan

    assert plan(plain) == plan(ruled)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("  trials: 19\n  stop: {probability: 0.05}", "stop could never end this sweep: its 19"),
        ("  trials: 12\n  stop: {probability: 0.5, after: 12}", "after 12 (after: 12;"),
        ("  trials: 24\n  stop: {gain: 0}", "search.stop.gain"),
        ("  trials: 24\n  stop: {probability: 1}", "search.stop.probability"),
        ("  trials: 24\n  stop: {after: 1}", "search.stop.after"),
        ("  trials: 24\n  sampler: tpe\n  stop: {}", "drawn independently"),
        ("  trials: 24\n  scheduler: asha\n  stop: {}", "not for sampler: random with"),
    ],
)
def test_a_stop_rule_that_cannot_work_is_refused(search, said):
    with pytest.raises(ConfigError) as refused:
        spec_with(search)
    assert said in " ".join(str(refused.value).split())


# ---- the rule on stored trials


def test_the_decision_does_not_depend_on_the_order_in_which_trials_end(run, tmp_path):
    """The trials of the main job, told in all 24 orders: the same decision, stored once."""
    spec, _place, store = run.world()
    rule = {"gain": 5.0, "probability": 0.5, "after": 2}
    ruled = spec.model_copy(
        update={"search": spec.search.model_copy(update={"stop": Stop.model_validate(rule)})}
    )
    state = find_state(store, spec)
    plan = known_trials(store, spec, state.basis)
    held_out = state.basis.split("held_out")
    mine = open_store(f"file://{tmp_path}/store")
    for path in [p for p in store.list("") if p.startswith(("blobs/", "trials/"))]:
        mine.put(path, store.get(path))
    checkpoints = Checkpoints(mine, tmp_path / "cache")
    for order in itertools.permutations(plan):
        made = []
        read = functools.partial(find_manifest, mine)
        with StopRule(ruled, checkpoints, (plan, held_out), read, made.append) as watching:
            for trial in order:
                watching.add(trial.key)
        # No trial can gain five nats: 1 / (2 + 2) is below .5 as soon as two are over.
        assert made == [Enough(size=2, chance=0.25, gain=5.0, probability=0.5)]
    assert find_enough(mine, ruled, plan) == made[0]
    assert find_enough(mine, spec, plan) is None


def test_a_trial_that_is_missing_holds_the_decision_back(run, tmp_path):
    spec, _place, store = run.world()
    rule = Stop(gain=5.0, probability=0.5, after=2)
    ruled = spec.model_copy(update={"search": spec.search.model_copy(update={"stop": rule})})
    state = find_state(store, spec)
    plan = known_trials(store, spec, state.basis)
    world, made = (plan, state.basis.split("held_out")), []
    read = functools.partial(find_manifest, store)
    checkpoints = Checkpoints(store, tmp_path / "cache")
    with StopRule(ruled, checkpoints, world, read, made.append) as watching:
        for trial in plan[1:]:  # three are over, but not the first
            watching.add(trial.key)
    assert made == []


# ---- a real sweep


@pytest.fixture(scope="module")
def souped(run, tmp_path_factory):
    """A copy of the main job whose prefixes are measured again, with soups: there they are dear."""
    folder = tmp_path_factory.mktemp("souped") / "copy"
    with copied(run, folder) as copy, pytest.MonkeyPatch.context() as patched:
        patched.setattr(prefixes, "SHARE", 1e6)
        spec, place, store = copy.world()
        for path in store.list(layout.prefixes(spec.name)):
            store.delete(path)
        for trial in known_trials(store, spec, find_state(store, spec).basis):
            measure_prefixes(worker_context(spec, place), trial)
        yield copy


def test_the_first_soup_of_the_main_job_is_too_dear(run, souped):
    """Its forecast is 2 * 200 / (3 * 1400 + 200) = 0.091 epochs; 2 % of at most four are 0.08."""
    spec, _, store = run.world()
    found = prefixes_of(store, spec, find_state(store, spec).basis)
    assert [one.size for one in found] == [2, 3, 4]
    assert (found[0].uniform, found[0].greedy) == (None, None)
    _, _, other = souped.world()
    again = prefixes_of(other, spec, find_state(other, spec).basis)
    assert None not in [one.uniform for one in again] + [one.greedy for one in again]
    # A worker of Tune and this process, which measured soups before, agree on all else.
    without = {"uniform": None, "greedy": None, "seconds": 0.0}
    same = [[structs.replace(one, **without) for one in each] for each in (found, again)]
    assert same[0] == same[1]


def test_the_soups_of_the_main_job_are_those_of_the_leaderboard(run, souped):
    """Two ways to each number: the worker at the end of a trial, and `soup` or torch alone."""
    spec, place, store = souped.world()
    state = find_state(store, spec)
    found = prefixes_of(store, spec, state.basis)
    assert [one.size for one in found] == [2, 3, 4]
    last = found[-1]
    entries = {e["name"]: e for e in leaderboard(run.output)}
    assert last.single.correct == entries["best_single"]["held_out"]["correct"]
    # RADIN's recipe chooses by the same proxy, in the same order.
    assert set(last.members) == set(entries["proxy"]["ingredients"])
    assert last.uniform is not None
    assert last.greedy is not None
    assert last.uniform.correct == entries["uniform"]["held_out"]["correct"]
    assert last.greedy.correct == entries["proxy"]["held_out"]["correct"]
    first = found[0]
    here = worker_context(spec, place)
    two = [i for i in state.complete if i.trial.index < 2]
    assert len(two) == first.size
    files = [here.checkpoints.open(i.checkpoint.sha256) for i in two]
    model = here.task.model().eval()
    model.load_state_dict({name: (files[0][name] + files[1][name]) / 2 for name in two[0].tensors})
    images, labels = here.data.samples(state.basis.split("held_out"))
    with torch.no_grad():
        answers = model(here.task.inputs(torch.from_numpy(np.array(images)))).argmax(1).numpy()
    assert first.uniform is not None
    assert first.uniform.correct == (answers == labels).sum()
    assert last.trained == pytest.approx(
        sum(epoch.seconds for one in state.complete for epoch in one.history)
    )


def test_the_soup_so_far_is_shown_by_status_watch_mlflow_and_report(souped):
    shown = inside("watch", souped.spec, *souped.where).stdout
    assert "greedy soup of the first 4 trials: " in shown
    table = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in table if len(row) > 4][-3:] == ["2", "3", "4"]
    spec, _, _store = souped.world()
    status = find_status(spec, souped.home)
    assert [point.trials for point in status.soup] == [2, 3, 4]
    greedy = status.soup[-1].greedy
    assert greedy is not None
    assert f" trials: {100 * greedy:.1f} % held-out" in shown  # as the best trial above it
    assert "Accuracy in % on held-out data." in shown
    assert [row[1] for row in table if len(row) > 4][-1] == f"{100 * status.soup[-1].best:.1f}"
    (sweep,) = [r for r in souped.tracked() if r.data.tags["mlflow.runName"] == "sweep mini"]
    ensemble = status.soup[-1].ensemble
    assert sweep.data.metrics["soup_so_far/ensemble"] == pytest.approx(ensemble)
    from soupray.reporting.report import charts_of, stored_board

    drawn = charts_of(stored_board(spec, souped.home))["anytime"]
    (values,) = drawn.spec["datasets"].values()
    assert [v["value"] for v in values if v["model"] == "its ensemble"][-1] == ensemble
    assert [v["value"] for v in values if v["model"] == "greedy soup"][-1] == greedy


def test_a_sweep_ends_when_it_has_enough_trials_and_its_soup_needs_no_more(tmp_path, without_ray):
    path, url = tmp_path / "mini.yaml", f"file://{tmp_path}/store"
    stop = "  trials: 6\n  stop: {gain: 5.0, probability: 0.5, after: 2}"
    edits = {"storage: embedded": f"storage: {url}", "tracking: embedded": "tracking: off"}
    path.write_text(mini_text(**edits | ONE_SLOT | FEW).replace("  trials: 4", stop))
    where = (path, "--home", tmp_path / "home")
    done = inside("sweep", *where)
    assert "2 trials are enough: the chance that one more lowers the held-out loss" in done.stderr
    store, spec = open_store(url), load(path)
    state = find_state(store, spec)
    assert state.enough == Enough(size=2, chance=0.25, gain=5.0, probability=0.5)
    kept = len(state.complete)
    assert 2 <= kept < 6  # those that ran when the rule decided are finished
    assert (state.missing, len(state.spared), state.to_train) == ([], 6 - kept, 0)
    assert f"{6 - kept} not needed" in inside("status", *where).stdout
    again = inside("sweep", *where)
    assert f"{6 - kept} others are not trained. Leave search.stop out" in again.stderr
    assert len(find_state(store, spec).complete) == kept
    souped = inside("soup", *where, "--uniform", "--output", tmp_path / "results")
    assert "uniform" in souped.stdout
    # Without the rule, the same trials are missing.
    plain = parse(path.read_text().replace(stop, "  trials: 6"), "x")
    assert len(find_state(store, plain).missing) == 6 - kept
