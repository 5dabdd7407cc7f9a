"""`keep` in a spec: what no entry needs goes, what is needed stays, and nothing is said wrongly."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import computed_here
from msgspec import structs
from shared import DIGITS, Old, demo, ingredient, key, scores, unpacked
from test_delete import Dying, objects, renamed

from soupray import load as load_model
from soupray.core.errors import CheckpointError, ConfigError, StoreUnavailable, WeightsGone
from soupray.core.records import CheckpointRef, encode
from soupray.core.trials import Freed, Ingredient
from soupray.operations.retention import find_retention, let_go
from soupray.search.state import find_state, with_let_go
from soupray.services.place import start_services
from soupray.spec.sweep_spec import load, parse
from soupray.store import layout
from soupray.store.lease import Lease
from soupray.store.manifests import (
    create_manifest,
    find_freed,
    find_manifest,
    find_trained,
    put_manifest,
)
from soupray.store.objects import open_store
from soupray.store.presence import Presence
from soupray.training.trial import fine_tune
from soupray.training.worker import worker_context


@pytest.fixture(scope="module")
def souped(tmp_path_factory) -> Path:
    """A folder with the sweep `one`, and a leaderboard of greedy alone."""
    folder = tmp_path_factory.mktemp("souped")
    with pytest.MonkeyPatch.context() as patch:
        computed_here(patch)
        greedy_alone(unpacked(folder))
    return folder


def greedy_alone(old: Old) -> None:
    out = old.folder / "out"
    # Members of ensembles have estimated BatchNorm statistics here: their outputs are stored first.
    old.run("soup", "one", "--ensemble", "--output", out)
    for part in ("choices", "results", "leaderboards"):
        for path in old.store.list(f"sweeps/one/{part}"):
            old.store.delete(path)
    old.run("soup", "one", "--greedy", "--output", out)


@pytest.fixture
def old(souped, tmp_path, monkeypatch, computed) -> Old:
    """A copy of it to change, with `keep: ingredients`."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # whatever would train fails
    for name in ("store", "home"):
        shutil.copytree(souped / name, tmp_path / name)
    for name in ("one.yaml", "two.yaml"):
        text = (souped / name).read_text()
        (tmp_path / name).write_text(text.replace(str(souped), str(tmp_path)))
    copy = Old(tmp_path, open_store(f"file://{tmp_path}/store"))
    keeping(copy, "keep: ingredients\n")
    return copy


def keeping(old: Old, line: str) -> None:
    path = old.spec("one")
    text = "".join(x for x in path.read_text().splitlines(True) if not x.startswith("keep:"))
    path.write_text(text + line)


def state(old: Old):
    return find_state(old.store, load(old.spec("one")))


def used(old: Old) -> set[str]:
    rows = json.loads(old.run("rank", "one", "--json").stdout)["entries"]
    return {name for row in rows for name in row["ingredients"]}


def listed(old: Old, *options: object) -> list[dict]:
    return json.loads(old.run("gc", "one", "--json", *options).stdout)


def says_what_is_gone(old: Old) -> bool:
    """Whether every manifest whose weights are gone has a record that says so."""
    made = state(old).complete
    there = set(old.store.list(layout.WEIGHTS))
    gone = {i.trial.key for i in made if layout.weights(i.checkpoint.sha256) not in there}
    return gone <= find_freed(old.store, made).keys()


def test_what_no_entry_needs_goes_and_all_else_works_as_before(old, computed):
    made = {i.trial.key: i for i in state(old).complete}
    unused = made.keys() - used(old)
    assert 0 < len(unused) < len(made)
    before = objects(old.store)
    planned = listed(old, "--dry-run")
    assert objects(old.store) == before
    files = {layout.weights(made[k].checkpoint.sha256) for k in unused}
    assert {g["path"] for g in planned} == files
    assert {g["sweep"] for g in planned} == {"one"}
    assert sum(g["size_bytes"] for g in planned) == sum(len(before[path]) for path in files)
    said = old.run("gc", "one", "--dry-run").stdout
    assert f"one: {len(made) - len(unused)} trials keep " in said
    assert ": an entry of a leaderboard is made of them." in said
    assert max(map(len, said.splitlines()[:-2])) <= 80

    assert listed(old) == planned
    after = objects(old.store)
    assert before.keys() - after.keys() == files
    assert {p for p in after.keys() - before.keys() if "lease" not in p} == {
        layout.freed(k) for k in unused
    }
    assert all(after[p] == before[p] for p in before.keys() & after.keys())
    assert says_what_is_gone(old)
    assert listed(old) == []
    assert state(old).freed.keys() == unused

    for verb in ("rank", "trials", "report", "status"):
        options = ("--output", old.folder / "r.html") if verb == "report" else ()
        old.run(verb, "one", *options)
    gone = sorted(unused)[0]
    assert "(keep: ingredients): `soupray sweep`" in old.run("show", "one", gone).stdout
    assert "were let go already" in " ".join(old.run("why", "one", gone).stdout.split())
    # A second sweep trains nothing again.
    assert "4 in the store, 0 to train" in old.run("sweep", "one").stderr
    # Outputs are enough for an ensemble, on all splits.
    old.run("soup", "one", "--ensemble", "--output", old.folder / "out")
    assert computed == []
    assert used(old) - {"init"} == made.keys()
    # But such an entry cannot be loaded, and says why.
    for cached in (old.folder / "home" / "cache" / "weights").glob("*.safetensors"):
        cached.unlink()
    with pytest.raises(
        WeightsGone, match=f"ensemble: the weights of 2 .* {', '.join(sorted(unused))}"
    ):
        load_model(old.folder / "out" / "ensemble.recipe.json", home=old.folder / "home")


def test_a_soup_that_needs_them_names_recipe_and_trials_and_leaves_none_out(old, computed):
    done = old.run("soup", "one", "--greedy", "--output", old.folder / "out")
    assert "keep: ingredients: the weights of 2 trials were let go" in done.stderr
    gone = sorted(state(old).freed)
    done = old.run("soup", "one", "--slerp", "--output", old.folder / "out", check=False)
    assert done.returncode == 1
    assert "slerp: the weights of 1 trial are needed and were let go" in done.stderr
    assert [name for name in gone if name in done.stderr]
    assert "Run `soupray sweep` with `keep: all`" in done.stderr
    assert computed == []
    checked = old.run("check", "one", "--pairs", 6, check=False)
    assert checked.returncode == 1
    assert gone[0] in checked.stderr


def test_the_best_stay_too(old):
    keeping(old, "keep: {best: 3}\n")
    best = sorted(state(old).complete, key=lambda i: (-i.held_out.correct, i.trial.key))
    found = find_retention(old.store, load(old.spec("one")))
    assert {g.trial for g in found.going} == {
        i.trial.key for i in best[3:] if i.trial.key not in used(old)
    }
    assert "they are among the 3 best" in [s.why for s in found.staying]
    assert sum(s.trials for s in found.staying) + len(found.going) == 4


def test_what_no_soup_has_seen_stays(old):
    for path in old.store.list("sweeps/one/leaderboards"):
        if path.endswith("/leaderboard.json"):  # as if the soup was killed before it reported
            old.store.delete(path)
    found = find_retention(old.store, load(old.spec("one")))
    assert found.going == ()
    assert {s.why for s in found.staying} == {
        "an entry of a leaderboard is made of them", "no soup has seen them yet",
    }  # fmt: skip


def test_what_another_sweep_plans_or_is_made_of_stays(old):
    greedy = find_retention(old.store, load(old.spec("one"))).going
    renamed(old, "three")
    found = find_retention(old.store, load(old.spec("one")))
    assert found.going == ()
    assert "another sweep has the same trials" in {s.why for s in found.staying}
    for path in old.store.list("sweeps/three"):
        old.store.delete(path)
    assert find_retention(old.store, load(old.spec("one"))).going == greedy
    # An entry of a joint pool, as of `soupray soup one.yaml two.yaml`.
    (recipe,) = [
        p for p in old.store.list("sweeps/one/results") if p.endswith("greedy.recipe.json")
    ]
    text = old.store.get(recipe).decode()
    shas = json.loads(text)["candidate"]["parts"]
    joint = text.replace(shas[0][0], greedy[0].checkpoint.sha256)
    old.store.put("sweeps/one_and_two/results/greedy.recipe.json", joint.encode())
    left = find_retention(old.store, load(old.spec("one"))).going
    assert greedy[0].trial not in {g.trial for g in left}
    old.store.put("sweeps/one_and_two/results/greedy.recipe.json", b"{")
    with pytest.raises(CheckpointError, match=r"one_and_two/results/greedy.recipe.json"):
        find_retention(old.store, load(old.spec("one")))


def test_nothing_goes_while_something_runs(old):
    before = set(old.store.list(layout.WEIGHTS))
    with Lease(old.store, layout.lease("one")):
        done = old.run("gc", "one")
        assert "runs the sweep one now" in done.stderr
    with Presence(old.store, "one", "soup"):
        done = old.run("gc", "one")
        assert "works on one now" in done.stderr
    assert set(old.store.list(layout.WEIGHTS)) == before
    assert not state(old).freed


def test_killed_at_any_point_it_goes_on_and_no_manifest_is_wrong(old):
    spec, before = load(old.spec("one")), objects(old.store)
    going = find_retention(old.store, spec).going
    let_go(old.store, spec)
    expected = set(old.store.list(""))
    for left in range(len(going)):
        for path in old.store.list(layout.TRIALS):
            old.store.delete(path)
        for path, data in before.items():
            old.store.put(path, data)
        with pytest.raises(StoreUnavailable, match="killed"):
            let_go(Dying(old.store, left), spec)
        assert says_what_is_gone(old)
        there = set(old.store.list(layout.WEIGHTS))
        assert len(there) == len([p for p in before if p.startswith("weights/")]) - left
        assert {g.trial for g in let_go(old.store, spec).going} <= {g.trial for g in going}
        assert set(old.store.list("")) == expected


def test_an_entry_that_was_made_meanwhile_keeps_what_was_not_deleted_yet(old):
    spec = load(old.spec("one"))
    with pytest.raises(StoreUnavailable, match="killed"):
        let_go(Dying(old.store, 0), spec)
    assert state(old).freed
    old.run("soup", "one", "--ensemble", "--output", old.folder / "out")
    found = let_go(old.store, spec)
    assert found.going == ()
    assert not state(old).freed
    assert len(used(old) - {"init"}) == 4


def test_with_all_the_sweep_trains_again_what_was_let_go(old, monkeypatch):
    listed(old)
    gone = state(old).freed
    keeping(old, "")
    spec = load(old.spec("one"))
    again = with_let_go(state(old), spec)
    assert {t.key for t in again.missing} == gone.keys()
    assert again.to_train == len(gone)
    trial = min(again.missing, key=lambda t: t.hparams["epochs"])
    place = start_services(spec, old.folder / "home").place
    here = worker_context(spec, place)
    for _ in fine_tune(trial, here.task, here.data, here.checkpoints):
        pass
    made = find_manifest(old.store, trial.key)
    assert isinstance(made, Ingredient)
    assert old.store.size(layout.weights(made.checkpoint.sha256)) == made.checkpoint.size_bytes
    assert state(old).freed.keys() == gone.keys() - {trial.key}


def test_a_deletion_takes_the_records_too_and_gc_after_it_has_nothing(old):
    listed(old)
    old.run("delete", "one", "--yes")
    assert not [p for p in old.store.list(layout.TRIALS) if p.endswith("freed.json")]
    assert json.loads(old.run("gc", "two", "--dry-run", "--older-than", 0, "--json").stdout) == []


def made_of(name: str, weights: str) -> Ingredient:
    one = ingredient(key(name), scores(7))
    return structs.replace(one, checkpoint=CheckpointRef(sha256=weights, size_bytes=3))


def test_a_trial_that_is_trained_again_replaces_its_manifest_only_if_its_weights_are_gone():
    store, name = open_store("memory://"), key("a")
    first, other = made_of("a", "a" * 64), made_of("a", "b" * 64)
    create_manifest(store, first)
    assert put_manifest(store, other) == first  # a key has one ingredient
    freed = Freed(trial=name, checkpoint=first.checkpoint, sweep="s", keep="ingredients", at=1.0)
    store.put(layout.freed(name), encode(freed))
    assert find_freed(store, [first]) == {name: freed}
    assert find_trained(store, name) is None
    assert put_manifest(store, other) == other == find_manifest(store, name)
    assert find_freed(store, [other]) == {}
    # Killed between the two: the record is about other weights, and counts no more.
    store.put(layout.freed(name), encode(freed))
    assert find_trained(store, name) == other
    # The weights are there: whoever wanted to delete them was killed.
    freed = Freed(trial=name, checkpoint=other.checkpoint, sweep="s", keep="ingredients", at=1.0)
    store.put(layout.freed(name), encode(freed))
    assert find_trained(store, name) is None
    store.put(layout.weights("b" * 64), b"abc")
    assert find_trained(store, name) == other
    assert store.list(layout.TRIALS) == [layout.manifest(name)]


def test_keep_changes_no_trial_and_wrong_ones_are_refused():
    text = DIGITS.read_text()
    kept = parse(text + "\nkeep: {best: 3}\n", "x")
    assert kept.digest == parse(text, "x").digest
    assert "keep" not in demo().model_dump(mode="json")
    for wrong in ("none", "{best: 0}", "{best: 1.5}", "{worst: 3}", "3"):
        with pytest.raises(ConfigError, match="keep"):
            parse(f"{text}\nkeep: {wrong}\n", "x")
