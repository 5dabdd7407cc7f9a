"""What `soupray gc` takes, and that it never takes what any record names."""

import hashlib
import json
import math
import re
import time

import msgspec
import pytest
from conftest import inside, leaderboard, mini_text
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import CutShort, ingredient, key, scores, sha, split

from soupray.core.candidates import mean_of
from soupray.core.errors import CheckpointError
from soupray.core.ports import Registered
from soupray.core.records import Basis, BlobRef, CheckpointRef, Evaluation, encode
from soupray.core.trials import Tombstone
from soupray.operations.garbage import find_garbage, remove
from soupray.reporting.recipe_file import RecipeFile
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store import layout
from soupray.store.objects import Store, create_record, open_store


def spec(name: str = "mini", seed: int = 0) -> SweepSpec:
    return parse(
        mini_text(**{"name: digits\n": f"name: {name}\n", "seed: 0": f"seed: {seed}"}), "x"
    )


def stored(store: Store, name: str) -> CheckpointRef:
    data = name.encode()
    ref = CheckpointRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    store.put(layout.weights(ref.sha256), data)
    return ref


def basis_of(store: Store, of: SweepSpec) -> Basis:
    init, anchor = (stored(store, f"{what} {of.name}") for what in ("init", "anchor"))
    splits = (split("train", 9, "train"), split("held_out", 10, "held_out"))
    basis = Basis(key=basis_key(of), splits=splits, init=init, anchor=anchor)
    return create_record(store, f"bases/{basis.key}.json", basis)


def a_manifest(store: Store, name: str, weights: CheckpointRef) -> None:
    name = key(name)
    made = msgspec.structs.replace(
        ingredient(name, scores(9, 10)), checkpoint=weights, logits=stored(store, f"logits {name}")
    )
    create_record(store, layout.manifest(name), made)


def record(name: str) -> str:
    """The key of a record."""
    return sha(name)[:32]


def an_evaluation(store: Store, name: str, weights: CheckpointRef) -> None:
    made = Evaluation(scores=scores(1), logits=weights)
    create_record(store, f"evaluations/{record(name)}.json", made)


def an_answer(store: Store, name: str, weights: CheckpointRef) -> None:
    create_record(store, f"answers/{record(name)}.json", {"answer": weights})


def statistics(store: Store, name: str, weights: CheckpointRef) -> None:
    create_record(store, f"statistics/{record(name)}.json", weights)


def a_soup(store: Store, name: str, weights: CheckpointRef) -> None:
    create_record(store, f"soups/{record(name)}.json", weights)


def a_choice(store: Store, name: str, weights: CheckpointRef) -> None:
    store.put(f"sweeps/other/choices/{record(name)}.json", encode([mean_of([weights.sha256])]))


def a_recipe_file(store: Store, name: str, weights: CheckpointRef) -> None:
    recipe = RecipeFile(
        name=name, recipe="greedy", options={}, candidate=mean_of([weights.sha256]),
        ingredients={}, statistics={}, sha256=None, spec={},
    )  # fmt: skip
    store.put(f"sweeps/mini/results/{name}.recipe.json", msgspec.json.format(encode(recipe)))


def a_champion(store: Store, name: str, weights: CheckpointRef) -> None:
    made = Registered(
        model=name, entry="e", candidate=sha("c"), weights=f"s3://b/{layout.weights(weights.sha256)}",
        sha256=weights.sha256, size_bytes=1,
    )  # fmt: skip
    store.put(f"sweeps/{name}/results/champion.json", encode(made))


KINDS = [
    a_manifest, an_evaluation, an_answer, statistics, a_soup, a_choice, a_recipe_file, a_champion,
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), max_size=12), orphans=st.integers(0, 5))
def test_no_object_that_any_record_names_goes_and_every_other_does(kinds, orphans):
    store = open_store("memory://")
    mine = spec()
    basis_of(store, mine)
    for number, kind in enumerate(kinds):
        kind(store, f"n{number}", stored(store, f"weights {number}"))
    kept = set(store.list(""))
    lost = {layout.weights(stored(store, f"orphan {number}").sha256) for number in range(orphans)}
    found = find_garbage(store, mine, 0)
    assert {g.path for g in found} == lost
    assert sum(g.size_bytes for g in found) == 8 * orphans
    assert remove(store, found, 0) == found
    assert set(store.list("")) == kept
    assert find_garbage(store, mine, 0) == []


def test_a_record_that_comes_cut_short_is_asked_for_again_or_nothing_goes(heard):
    store = open_store("memory://")
    mine = spec()
    basis_of(store, mine)
    a_soup(store, "s", stored(store, "weights"))
    lost = layout.weights(stored(store, "orphan").sha256)
    assert [g.path for g in find_garbage(CutShort(store, 1), mine, 0)] == [lost]
    before = set(store.list(""))
    with pytest.raises(
        CheckpointError, match="nothing is deleted from memory://, because 2 records"
    ):
        find_garbage(CutShort(store, math.inf), mine, 0)
    assert re.search(r"soups/\w+\.json in memory:// cannot be read", heard())
    assert set(store.list("")) == before


@pytest.mark.parametrize(
    ("kind", "path"),
    [(a_manifest, f"trials/{key('n')}/manifest.json"), (an_evaluation, None), (a_soup, None)],
)
@pytest.mark.parametrize("damage", ["a digit", "another program", "of another kind"])
def test_a_damaged_record_may_have_named_any_file_so_that_none_goes(kind, path, damage, heard):
    store, mine = open_store("memory://"), spec()
    weights = stored(store, "weights")
    basis_of(store, mine)
    kind(store, "n", weights)
    stored(store, "orphan")
    path = path or next(p for p in store.list("") if p.startswith(("evaluations/", "soups/")))
    text = store.get(path).decode()
    first = "1" if weights.sha256[0] == "0" else "0"
    named = re.sub(weights.sha256, first + weights.sha256[1:], text)
    damaged = {"a digit": named, "another program": '{"a": 1}', "of another kind": "[]"}[damage]
    assert damaged != text
    store.put(path, damaged.encode())
    before = set(store.list(""))
    with pytest.raises(
        CheckpointError, match="nothing is deleted from memory://, because 1 record"
    ):
        find_garbage(store, mine, 0)
    assert path in heard()
    assert set(store.list("")) == before


def test_a_manifest_of_another_trial_is_no_manifest_to_gc(heard):
    store, mine = open_store("memory://"), spec()
    basis_of(store, mine)
    for name in ("n", "m"):
        a_manifest(store, name, stored(store, f"weights {name}"))
    store.put(layout.manifest(key("n")), store.get(layout.manifest(key("m"))))
    with pytest.raises(
        CheckpointError, match="nothing is deleted from memory://, because 1 record"
    ):
        find_garbage(store, mine, 0)
    assert f"is not the manifest of trial {key('n')}" in heard()


def test_a_file_that_is_written_during_the_search_is_not_missing():
    class Busy(Store):
        """A trial ends while gc reads: its weights, then its record."""

        def list(self, prefix: str) -> list[str]:
            if prefix == "":
                a_soup(self, "late", stored(self, "late weights"))
            return super().list(prefix)

    store, mine = Busy(open_store("memory://").backend, "memory://"), spec()
    basis_of(store, mine)
    lost = layout.weights(stored(store, "orphan").sha256)
    assert [g.path for g in find_garbage(store, mine, 0)] == [lost]


def test_what_is_young_stays(tmp_path):
    store = open_store("memory://")
    mine = spec()
    basis_of(store, mine)
    stored(store, "orphan")
    assert find_garbage(store, mine, 24 * 3600) == []
    assert find_garbage(store, mine, 5) == []
    assert len(find_garbage(store, mine, 0)) == 1


def test_what_is_written_again_after_it_was_found_stays():
    store = open_store("memory://")
    mine = spec()
    basis_of(store, mine)
    stored(store, "orphan")
    time.sleep(0.3)
    found = find_garbage(store, mine, 0.2)
    assert len(found) == 1
    stored(store, "orphan")  # a trial ends in the same bytes, and will name them in a moment
    assert remove(store, found, 0.2) == []


def test_states_go_when_their_trial_is_over_or_no_spec_plans_it():
    store = open_store("memory://")
    mine, other = spec(), spec("another", seed=7)
    first, second, *_ = trials_of(mine, basis_of(store, mine))
    (theirs, *_) = trials_of(other, basis_of(store, other))
    nobodys = key("nobody")
    diverged = Tombstone(trial=first, reason="nan", history=(), started=0, finished=1)
    create_record(store, layout.manifest(first.key), diverged)
    for one in (first.key, second.key, theirs.key, nobodys):
        store.put(f"resume/{one}/3.safetensors", b"12345")
        store.put(f"resume/{one}/state.json", b"{}")
    path = f"sweeps/another/specs/{other.digest}.json"
    store.put(path, encode(other.model_dump(mode="json")))
    found = {g.path: g.why for g in find_garbage(store, mine, 0)}
    assert found == {
        f"resume/{first.key}/3.safetensors": f"trial {first.key} is over",
        f"resume/{first.key}/state.json": f"trial {first.key} is over",
        f"resume/{nobodys}/3.safetensors": f"no spec plans trial {nobodys}",
        f"resume/{nobodys}/state.json": f"no spec plans trial {nobodys}",
    }
    # A spec of another version, whose plan is unknown here: then any trial may be planned.
    store.put(path, encode({"name": "another", "of": "tomorrow"}))
    assert {g.path.split("/")[1] for g in find_garbage(store, mine, 0)} == {first.key}


@pytest.mark.parametrize("gone", ["basis of another", "spec of another", "basis of this"])
def test_states_stay_where_nobody_knows_what_is_planned(gone):
    store = open_store("memory://")
    mine, other = spec(), spec("another", seed=7)
    (first, *_) = trials_of(mine, basis_of(store, mine))
    (theirs, *_) = trials_of(other, basis_of(store, other))
    store.put(layout.spec("another", other.digest), encode(other.model_dump(mode="json")))
    store.put(layout.lease("another"), b"{}")
    states = {layout.resume_weights(trial.key, 1) for trial in (first, theirs)}
    nobodys = layout.resume_weights(key("nobody"), 1)
    for path in (*states, nobodys):
        store.put(path, b"12345")
    assert [g.path for g in find_garbage(store, mine, 0)] == [nobodys]
    match gone:
        case "basis of another":
            store.delete(layout.basis(basis_key(other)))
        case "spec of another":
            store.delete(layout.spec("another", other.digest))
        case "basis of this":
            store.delete(layout.basis(basis_key(mine)))
    assert not [g for g in find_garbage(store, mine, 0) if g.path.startswith("resume/")]


def test_a_trial_whose_manifest_is_damaged_is_not_over():
    store, mine = open_store("memory://"), spec()
    (first, *_) = trials_of(mine, basis_of(store, mine))
    store.put(layout.resume_weights(first.key, 1), b"12345")
    store.put(layout.manifest(first.key), b'{"type": "compl')
    for path in (*store.list("weights"), *store.list("blobs")):
        store.delete(path)  # nothing else makes gc read the manifest
    with pytest.raises(
        CheckpointError, match=f"trials/{first.key}/manifest.json .* cannot be read"
    ):
        find_garbage(store, mine, 0)


def references(store: Store) -> set[str]:
    """Paths of all weights that typed records name: not how gc looks for them."""
    refs: list[CheckpointRef] = []
    for path in store.list(""):
        folder = path.split("/")[0]
        if folder == "bases":
            basis = msgspec.json.decode(store.get(path), type=Basis)
            refs += [basis.init, basis.anchor]
        elif folder == "trials":
            made = json.loads(store.get(path))
            refs += [CheckpointRef(**made["checkpoint"]), BlobRef(**made["logits"])]
        elif folder == "evaluations":
            refs.append(msgspec.json.decode(store.get(path), type=Evaluation).logits)
        elif folder == "soups":
            refs.append(msgspec.json.decode(store.get(path), type=CheckpointRef))
        elif folder == "statistics":
            refs.append(msgspec.json.decode(store.get(path), type=BlobRef))
    places = {CheckpointRef: layout.weights, BlobRef: layout.blob}
    return {places[type(ref)](ref.sha256) for ref in refs}


def test_after_gc_a_real_store_has_all_that_it_names_and_the_soup_is_the_same(
    fresh, tmp_path, without_ray
):
    store = fresh.world()[2]
    orphan = layout.weights(stored(store, "orphan").sha256)
    default = inside("gc", fresh.spec, *fresh.where)  # takes nothing of today
    assert "0 objects, 0 B, deleted from" in default.stdout
    assert orphan in store.list("weights")
    key = store.list("trials")[0].split("/")[1]
    store.put(f"resume/{key}/state.json", b"{}")
    named, before = references(store), set(store.list(""))
    assert named
    listed = inside("gc", fresh.spec, *fresh.where, "--dry-run", "--older-than", 0)
    assert set(store.list("")) == before
    assert "would be deleted" in listed.stdout
    done = inside("gc", fresh.spec, *fresh.where, "--older-than", 0, "--json")
    gone = {g["path"] for g in json.loads(done.stdout)}
    assert {orphan, f"resume/{key}/state.json"} <= gone
    assert before - set(store.list("")) == gone
    assert not gone & named
    flags = ("--greedy", "--vrf", "--fisher", "--output", tmp_path / "again")
    inside("soup", fresh.spec, *fresh.where, *flags)
    these = {"anchor", "best_single", "greedy", "vrf", "fisher"}
    known = {e["name"]: e for e in leaderboard(fresh.output) if e["recipe"] in these}
    assert all(known[e["name"]] == e for e in leaderboard(tmp_path / "again"))
