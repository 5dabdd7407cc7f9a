"""Pools and choices that are not what a soup wishes for: each ends in one clear message."""

import msgspec
import pytest
from conftest import mini_text
from msgspec.structs import replace
from test_evaluators import forgetful
from toy import toy

from soupray.core.candidates import mean_of
from soupray.core.errors import ChecksumMismatch, EvaluationError, IncompatibleWeights
from soupray.core.records import Pool, Tombstone, encode, pool_of
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.recipes import run_recipes
from soupray.reporting.ranking import best_soup
from soupray.search.plan import trials_of
from soupray.search.state import find_basis
from soupray.soup.run import Choices, _choices_path, choose, chosen_recipes
from soupray.soup.session import find_pool
from soupray.spec.sweep_spec import parse
from soupray.store import layout
from soupray.store.objects import create_record, open_store
from soupray.training.worker import worker_context


@pytest.fixture(scope="module")
def pool(run) -> Pool:
    spec, _, store = run.world()
    return find_pool(store, spec, partial=False)[0]


@pytest.fixture
def copied(run):
    """(spec, store): the records of the main job in a store of our own, to spoil."""
    spec, _, store = run.world()
    copy = open_store("memory://")
    for prefix in ("bases", "trials", "sweeps/mini/specs"):
        for path in store.list(prefix):
            copy.put(path, store.get(path))
    return spec, copy


def pool_only(pool: Pool) -> HeldOutSelection:
    """A selection that can show its pool but not score anything: asking it raises."""
    selection = HeldOutSelection.__new__(HeldOutSelection)
    object.__setattr__(selection, "_pool", pool)
    object.__setattr__(selection, "_hints", None)
    object.__setattr__(selection, "_tallies", {})
    return selection


def manifests(store):
    return sorted(p for p in store.list("trials"))


def test_the_pool_is_ordered_by_held_out_count_then_key(pool):
    order = [(-i.held_out.correct, i.trial.key) for i in pool.ingredients]
    assert order == sorted(order)
    assert len(order) == 4


def test_nothing_swept_says_to_sweep_first(run):
    spec, _, _ = run.world()
    with pytest.raises(EvaluationError, match=r"nothing was swept.*Run `soupray sweep` first"):
        find_pool(open_store("memory://"), spec, partial=False)


def test_missing_trials_are_listed_and_partial_goes_on_without_them(copied, heard):
    spec, store = copied
    gone = manifests(store)[0]
    store.delete(gone)
    with pytest.raises(EvaluationError, match=r"1 of 4 trials are not in the store") as error:
        find_pool(store, spec, partial=False)
    assert gone.split("/")[1] in str(error.value)
    assert "--partial" in str(error.value)
    assert len(find_pool(store, spec, partial=True)[0].ingredients) == 3


def test_a_pool_of_one_works_and_says_so(copied, heard):
    spec, store = copied
    for path in manifests(store)[1:]:
        store.delete(path)
    pool, _ = find_pool(store, spec, partial=True)
    assert len(pool.ingredients) == 1
    assert "every soup of it is that model" in heard()


def test_an_empty_pool_is_refused_even_with_partial(copied):
    spec, store = copied
    for path in manifests(store):
        store.delete(path)
    with pytest.raises(EvaluationError, match="4 of 4 trials are not in the store"):
        find_pool(store, spec, partial=True)


def test_diverged_trials_are_left_out_and_named(copied, heard):
    spec, store = copied
    basis = find_basis(store, spec)
    for trial in trials_of(spec, basis):
        tombstone = Tombstone(trial=trial, reason="loss is nan", history=(), started=0, finished=1)
        store.delete(layout.manifest(trial.key))
        create_record(store, layout.manifest(trial.key), tombstone)
    with pytest.raises(EvaluationError, match="all 4 trials diverged"):
        find_pool(store, spec, partial=False)
    assert "diverged and is left out: loss is nan" in heard()


def test_an_ingredient_of_another_init_is_refused_with_both_digests(copied):
    spec, store = copied
    path = manifests(store)[0]
    record = msgspec.json.decode(store.get(path)) | {"init": "f" * 64}
    store.put(path, encode(record))
    with pytest.raises(IncompatibleWeights) as error:
        find_pool(store, spec, partial=False)
    assert "ffffffffffff" in str(error.value)
    assert find_basis(store, spec).init.sha256[:12] in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {log_uniform: [5e-5, 1e-3]}", "space.lr.log_unif"),
        ("trials: 4", "trials: 6", "search.trials"),
    ],
)
def test_a_spec_edited_between_sweep_and_soup_is_explained(copied, old, new, field):
    _, store = copied
    edited = parse(mini_text().replace(old, new), "x.yaml")
    assert old in mini_text()
    with pytest.raises(EvaluationError, match="The spec was edited since the sweep ran") as error:
        find_pool(store, edited, partial=False)
    assert field in str(error.value)


def test_an_edited_data_section_is_explained_too(copied):
    _, store = copied
    edited = parse(mini_text().replace("held_out: 200", "held_out: 220"), "x.yaml")
    with pytest.raises(EvaluationError, match=r"nothing was swept .*edited .*data\.held_out"):
        find_pool(store, edited, partial=False)


def test_choices_once_frozen_are_not_made_again(run, pool):
    spec, _, store = run.world()
    selection = pool_only(pool)
    recipes = chosen_recipes([spec], [], everything=True)
    choices = choose(store, [spec], selection, recipes)
    assert isinstance(choices, Choices)
    assert choices.pool == pool.checkpoints


def test_choices_of_several_specs_follow_from_how_each_ones_models_are_evaluated(tmp_path):
    store, selection = open_store("memory://"), toy(tmp_path, models=3).selection()

    def chosen(*batches: int) -> str:
        """Which record of choices there is now that was not there before."""
        specs = [
            parse(mini_text(**{"evaluation_batch: 50": f"evaluation_batch: {b}"}), "x")
            for b in batches
        ]
        before = set(store.list("sweeps"))
        choose(store, specs, selection, {"ensemble": {}})
        return "".join(set(store.list("sweeps")) - before)

    alone, both, other = chosen(50), chosen(50, 50), chosen(50, 40)
    assert alone.startswith("sweeps/mini/choices/")
    assert both.startswith("sweeps/mini_and_mini/choices/")
    assert other.startswith("sweeps/mini_and_mini/choices/")
    assert (chosen(50), chosen(50, 50), chosen(50, 40)) == ("", "", "")


def test_choices_follow_from_theta_0_and_from_the_training_data(tmp_path):
    pool, spec = toy(tmp_path, models=2).pool, parse(mini_text(), "x.yaml")
    first, *others = pool.ingredients
    elsewhere = replace(first, trial=replace(first.trial, data=("other", "held out")))
    pools = [
        pool,
        replace(pool, init=first.checkpoint),
        replace(pool, anchor=first.checkpoint),
        replace(pool, ingredients=(elsewhere, *others)),
    ]
    assert len({_choices_path([spec], p, {"model_stock": {}}) for p in pools}) == len(pools)
    again = toy(tmp_path / "again", models=2).pool
    assert _choices_path([spec], again, {}) == _choices_path([spec], pool, {})


def test_the_local_evaluator_makes_the_same_choices_as_the_ray_driver(run, pool, tmp_path):
    """The same job without Ray: its counts and decisions are those of the leaderboard."""
    import json

    spec, place, store = run.world()
    here = worker_context(spec, place)
    basis = find_basis(store, spec)
    splits = [basis.split("held_out"), basis.split("train")]
    workers = LocalWorkers(
        here.task, here.data, forgetful(here.checkpoints, tmp_path), spec.setting
    )
    evaluator = StoredEvaluator(Site(workers, workers.cache, spec.setting))
    selection = HeldOutSelection(evaluator, pool, splits)
    wanted = {"anchor": {}, "best_single": {}, **chosen_recipes([spec], [], everything=True)}
    outcomes = run_recipes(selection, wanted)
    board = {e["name"]: e for e in json.loads((run.output / "leaderboard.json").read_text())}
    assert {o.name for o in outcomes} == set(board)
    for outcome in outcomes:
        assert outcome.candidate.digest == board[outcome.name]["candidate"]
        assert outcome.held_out.correct == board[outcome.name]["held_out"]["correct"]


def test_a_corrupt_ingredient_stops_the_soup_and_names_the_object(run, pool, tmp_path):
    spec, place, store = run.world()
    here = worker_context(spec, place)
    copy = open_store("memory://")
    sha = pool.ingredients[0].checkpoint.sha256
    path = layout.weights(pool.ingredients[0].checkpoint.sha256)
    data = bytearray(store.get(path))
    data[-1] ^= 1
    copy.put(path, bytes(data))
    checkpoints = type(here.checkpoints)(copy, tmp_path / "cache")
    workers = LocalWorkers(here.task, here.data, checkpoints, spec.setting)
    with pytest.raises(ChecksumMismatch, match=sha):
        workers.predictions(mean_of([sha]), find_basis(store, spec).split("held_out"))


def test_the_soup_that_is_written_is_the_best_that_averages_anything(run, pool):
    from soupray.reporting.ranking import Entry

    spec, _, store = run.world()
    entries = msgspec.json.decode((run.output / "leaderboard.json").read_bytes(), type=list[Entry])
    recipes = chosen_recipes([spec], [], everything=True)
    selection = pool_only(pool)
    outcomes = choose(store, [spec], selection, recipes).outcomes
    best = best_soup(entries, outcomes)
    assert len(best.candidate.checkpoints) > 1
    assert len(best.candidate.members) == 1
    rank = [e.name for e in entries].index(best.name)
    assert all(len(e.ingredients) == 1 or e.forward_passes_per_sample > 1 for e in entries[:rank])


def test_pool_order_does_not_depend_on_the_order_of_manifests(run, pool):
    spec, _, store = run.world()
    basis = find_basis(store, spec)
    assert pool_of(basis, list(reversed(pool.ingredients))) == pool


def test_a_recipe_that_reads_very_much_waits_for_a_word(pool, monkeypatch):
    monkeypatch.setattr("soupray.soup.run.READ_LIMIT", 10**6)
    monkeypatch.setattr("soupray.recipes.learned.available_memory", lambda: 0)
    store, selection, spec = open_store("memory://"), pool_only(pool), parse(mini_text(), "x.yaml")
    with pytest.raises(EvaluationError, match=r"learned would read .*--yes.* batch_size"):
        choose(store, [spec], selection, {"learned": {"epochs": 2}})
    assert store.list("sweeps") == []
