"""Pools and choices that are not what a soup wishes for: each ends in one clear message.

Nothing here needs Ray or a server: the records are made by hand.
"""

import msgspec
import pytest
from conftest import mini_text
from msgspec.structs import replace
from shared import blind, ingredient, scores, split

from soupray.core.errors import EvaluationError, IncompatibleWeights
from soupray.core.records import Basis, CheckpointRef, encode
from soupray.core.trials import Pool, Tombstone, pool_of
from soupray.search.plan import trials_of
from soupray.search.state import basis_key, find_basis
from soupray.soup.run import choices_path, choose
from soupray.soup.session import find_pool
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store import layout
from soupray.store.objects import Store, create_record, open_store
from soupray.testing.linear import toy


@pytest.fixture
def swept() -> tuple[SweepSpec, Store]:
    """(spec, store) after a sweep of four trials; the records alone, made by hand."""
    spec, store = parse(mini_text(), "mini.yaml"), open_store("memory://")
    ref = CheckpointRef(sha256="0" * 64, size_bytes=1)
    splits = (split("train", 9, "train"), split("held_out", 10, "held_out"))
    basis = Basis(key=basis_key(spec), splits=splits, init=ref, anchor=ref)
    create_record(store, layout.basis(basis.key), basis)
    create_record(store, layout.spec(spec.name, spec.digest), spec.model_dump(mode="json"))
    for right, trial in zip((7, 9, 7, 8), trials_of(spec, basis), strict=True):
        made = replace(ingredient(trial.key, scores(right)), trial=trial, init=ref.sha256)
        create_record(store, layout.manifest(trial.key), made)
    return spec, store


@pytest.fixture
def pool(swept) -> Pool:
    spec, store = swept
    return find_pool(store, spec, partial=False)[0]


def manifests(store):
    return sorted(p for p in store.list("trials"))


def test_the_pool_is_ordered_by_held_out_count_then_key_whatever_order_it_comes_in(swept, pool):
    order = [(-i.held_out.correct, i.trial.key) for i in pool.ingredients]
    assert [count for count, _ in order] == [-9, -8, -7, -7]
    assert order == sorted(order)
    spec, store = swept
    assert pool_of(find_basis(store, spec), list(reversed(pool.ingredients))) == pool


def test_nothing_swept_says_to_sweep_first(swept):
    spec, _ = swept
    with pytest.raises(EvaluationError, match=r"nothing was swept.*Run `soupray sweep` first"):
        find_pool(open_store("memory://"), spec, partial=False)


def test_missing_trials_are_listed_and_partial_goes_on_without_them(swept, heard):
    spec, store = swept
    gone = manifests(store)[0]
    store.delete(gone)
    with pytest.raises(EvaluationError, match=r"1 of 4 trials are not in the store") as error:
        find_pool(store, spec, partial=False)
    assert gone.split("/")[1] in str(error.value)
    assert "--partial" in str(error.value)
    assert len(find_pool(store, spec, partial=True)[0].ingredients) == 3


def test_a_pool_of_one_works_and_says_so(swept, heard):
    spec, store = swept
    for path in manifests(store)[1:]:
        store.delete(path)
    pool, _ = find_pool(store, spec, partial=True)
    assert len(pool.ingredients) == 1
    assert "every soup of it is that model" in heard()


def test_an_empty_pool_is_refused_even_with_partial(swept):
    spec, store = swept
    for path in manifests(store):
        store.delete(path)
    with pytest.raises(EvaluationError, match="4 of 4 trials are not in the store"):
        find_pool(store, spec, partial=True)


def test_diverged_trials_are_left_out_and_named(swept, heard):
    spec, store = swept
    basis = find_basis(store, spec)
    for trial in trials_of(spec, basis):
        tombstone = Tombstone(trial=trial, reason="loss is nan", history=(), started=0, finished=1)
        store.delete(layout.manifest(trial.key))
        create_record(store, layout.manifest(trial.key), tombstone)
    with pytest.raises(EvaluationError, match="all 4 trials diverged"):
        find_pool(store, spec, partial=False)
    assert "diverged and is left out: loss is nan" in heard()


def test_an_ingredient_of_another_init_is_refused_with_both_digests(swept):
    spec, store = swept
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
def test_a_spec_edited_between_sweep_and_soup_is_explained(swept, old, new, field):
    _, store = swept
    edited = parse(mini_text().replace(old, new), "x.yaml")
    assert old in mini_text()
    with pytest.raises(EvaluationError, match="The spec was edited since the sweep ran") as error:
        find_pool(store, edited, partial=False)
    assert field in str(error.value)


def test_an_edited_data_section_is_explained_too(swept):
    _, store = swept
    edited = parse(mini_text().replace("held_out: 200", "held_out: 220"), "x.yaml")
    with pytest.raises(EvaluationError, match=r"nothing was swept .*edited .*data\.held_out"):
        find_pool(store, edited, partial=False)


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
    assert len({choices_path([spec], p, {"model_stock": {}}) for p in pools}) == len(pools)
    again = toy(tmp_path / "again", models=2).pool
    assert choices_path([spec], again, {}) == choices_path([spec], pool, {})


def test_a_recipe_that_reads_very_much_waits_for_a_word(pool, monkeypatch):
    monkeypatch.setattr("soupray.soup.run.READ_LIMIT", 10**3)
    monkeypatch.setattr("soupray.recipes.learned.available_memory", lambda: 0)
    store, selection, spec = open_store("memory://"), blind(pool), parse(mini_text(), "x.yaml")
    with pytest.raises(EvaluationError, match=r"learned would read .*--yes.* batch_size"):
        choose(store, [spec], selection, {"learned": {"epochs": 2}})
    assert store.list("sweeps") == []
