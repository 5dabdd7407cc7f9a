"""Adaptive search: points that follow from results, recorded and replayed; trials stopped early."""

import math
from typing import get_args

import msgspec
import pytest
from conftest import FEW, ONE_SLOT, inside, mini_text
from shared import ingredient, scores, some_basis, trial

from soupray.core.records import Basis, KnownMetric
from soupray.core.trials import Tombstone, Trial
from soupray.search.history import find_stopped, find_suggested, score_of, search_key
from soupray.search.plan import plan, trials_of
from soupray.search.state import pool_trials, read_state
from soupray.search.tpe import RANDOM, TpeSearch
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store import layout
from soupray.store.objects import Store, create_record, open_store


def adaptive(trials: int = 20, **edits: str) -> SweepSpec:
    return parse(text(trials, **edits), "mini.yaml")


def text(trials: int, **edits: str) -> str:
    asked = {"sampler: random": "sampler: tpe", "trials: 16": f"trials: {trials}"}
    return mini_text(**asked | edits)


@pytest.fixture
def basis() -> Basis:
    return some_basis()


@pytest.fixture
def store() -> Store:
    return open_store("memory://")


def end(store: Store, search: TpeSearch, trial: Trial, right: int) -> None:
    made = msgspec.structs.replace(ingredient(trial.key, scores(right, 100)), trial=trial)
    create_record(store, layout.manifest(trial.key), made)
    search.over(trial.key)


def run(store: Store, search: TpeSearch, count: int) -> list[Trial]:
    """So many trials, one at a time; better the nearer the learning rate is to 1e-4."""
    from math import log10

    trials = []
    for _ in range(count):
        trials.append(search.next())
        end(store, search, trials[-1], round(90 - 20 * abs(log10(trials[-1].hparams["lr"]) + 4)))
    return trials


def test_it_starts_with_the_random_plan_and_then_goes_where_it_was_good(store, basis):
    spec = adaptive(30, **{"lr: {log_uniform: [5e-5, 2e-3]}": "lr: {log_uniform: [1e-6, 1e-2]}"})
    trials = run(store, TpeSearch(store, spec, basis), 30)
    assert [t.hparams for t in trials[:RANDOM]] == [p.hparams for p in plan(spec)[:RANDOM]]
    assert [t.key for t in trials[:RANDOM]] == [t.key for t in trials_of(spec, basis)[:RANDOM]]
    near = [1e-5 < t.hparams["lr"] < 1e-3 for t in trials]
    assert sum(near[RANDOM:]) / 20 > max(0.6, sum(near[:RANDOM]) / RANDOM)


def test_what_was_suggested_is_replayed_and_what_is_not_over_runs_first(store, basis):
    spec = adaptive(20)
    first = TpeSearch(store, spec, basis)
    over = run(store, first, 12)
    open_ = [first.next(), first.next()]
    assert read_state(store, spec, basis).unsuggested == 6
    again = TpeSearch(store, spec, basis)  # after a crash
    assert again.left == 8
    assert [again.next(), again.next()] == open_
    assert [t.key for t in pool_trials(store, spec, basis)] == [t.key for t in [*over, *open_]]
    rest = [again.next() for _ in range(6)]
    assert [t.index for t in rest] == list(range(14, 20))
    assert again.next() is None
    assert read_state(store, spec, basis).unsuggested == 0
    # More trials go on where fewer ended.
    more = TpeSearch(store, adaptive(21), basis)
    assert more.left == 9  # and the eight that were suggested, and are not over


def test_a_diverged_trial_counts_as_the_worst_and_a_failed_one_as_nothing(store, basis):
    spec = adaptive(4)
    search = TpeSearch(store, spec, basis)
    diverged, failed = search.next(), search.next()
    dead = Tombstone(trial=diverged, reason="nan", history=(), started=0, finished=1)
    create_record(store, layout.manifest(diverged.key), dead)
    search.over(diverged.key)
    search.over(failed.key)
    assert [t.values for t in search.study.trials] == [[0.0], None]


@pytest.mark.parametrize("metric", get_args(KnownMetric))
def test_a_trial_that_diverged_is_never_better_than_one_that_ended(metric):
    """The worst that each metric can be, or any bad value where it has no end."""
    worst = {"nll": -9.0, "mae": -9.0, "r2": -9.0, "spearman": -1.0}.get(metric, 0.0)
    dead = Tombstone(trial=trial("t"), reason="nan", history=(), started=0, finished=1)
    assert score_of(dead, metric) <= worst
    assert score_of(None, metric) is None


def test_the_sampler_learns_the_metric_of_the_spec(store, basis):
    spec = adaptive(4, **{"seed: 0": "seed: 0\nmetric: nll"})
    search = TpeSearch(store, spec, basis)
    complete, diverged = search.next(), search.next()
    assert complete.metric == "nll"
    end(store, search, complete, 90)  # whatever is right, the NLL is 0.5
    dead = Tombstone(trial=diverged, reason="nan", history=(), started=0, finished=1)
    create_record(store, layout.manifest(diverged.key), dead)
    search.over(diverged.key)
    assert [t.values for t in search.study.trials] == [[-0.5], [-math.inf]]
    assert search.study.best_value == -0.5


def test_other_searches_have_points_of_their_own(basis):
    one = search_key(adaptive(20), basis)
    assert search_key(adaptive(30), basis) == one
    assert search_key(adaptive(20, **{"seed: 0": "seed: 1"}), basis) != one
    assert search_key(adaptive(20, **{"seed: 0": "seed: 0\nmetric: nll"}), basis) != one
    assert search_key(adaptive(20), msgspec.structs.replace(basis, key="other")) != one


@pytest.mark.slow
def test_a_sweep_with_tpe_and_asha_ends_repeats_nothing_and_is_souped(tmp_path):
    url = f"file://{tmp_path}/store"
    edits = (
        ONE_SLOT
        | FEW
        | {
            "storage: embedded": f"storage: {url}",
            "tracking: embedded": "tracking: off",
            "epochs: {integer: [5, 15]}": "epochs: 5",
            "sampler: random": "sampler: tpe\n  scheduler: asha",
            "lr: {log_uniform: [5e-5, 2e-3]}": "lr: {log_uniform: [1e-7, 1e-2]}",
        }
    )
    path, where = tmp_path / "mini.yaml", ("--home", tmp_path / "home")
    path.write_text(text(5, **edits))
    spec, store = parse(path.read_text(), "x"), open_store(url)
    done = inside("sweep", path, *where)
    (basis,) = (msgspec.json.decode(store.get(p), type=Basis) for p in store.list("bases"))
    suggested, stopped = find_suggested(store, spec, basis), find_stopped(store, spec, basis)
    made = {p.split("/")[1] for p in store.list("trials")}
    assert len(suggested) == 5
    assert len(stopped) >= 1
    assert len(stopped) + len(made) == 5
    assert not stopped & made
    assert f"{len(made)} trained, 0 found in the store, 0 diverged, {len(stopped)} stopped" in (
        done.stderr
    )
    again = inside("sweep", path, *where)
    assert f"{len(made)} in the store, 0 to train ({len(stopped)} were stopped)" in again.stderr
    status = inside("status", path, *where).stdout
    assert f"{len(made)} of 5 trials done, {len(stopped)} stopped." in status
    # One is lost: it is trained again, at the same point.
    lost = sorted(made)[0]
    store.delete(layout.manifest(lost))
    refused = inside("soup", path, *where, "--uniform", "--output", tmp_path / "o", check=False)
    assert f"not in the store: {lost}" in refused.stderr
    inside("sweep", path, *where)
    stopped = find_stopped(store, spec, basis)
    assert {p.split("/")[1] for p in store.list("trials")} | stopped >= made
    assert not stopped & {t.key for t in pool_trials(store, spec, basis)}  # no ingredients
