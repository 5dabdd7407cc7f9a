"""`soupray delete`: all that is one sweep's alone goes, and nothing that another sweep uses."""

import json

import pytest
from shared import Old, embedded_store, unpacked

from soupray.core.errors import ConfigError, StoreUnavailable
from soupray.core.records import encode
from soupray.operations.deleting import delete, find_removal
from soupray.search.state import find_state
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.lease import Lease
from soupray.store.objects import Store, open_store

ASKED = ("--greedy", "--ose", "--vrf", "--uniform")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Old:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # whatever would train or evaluate fails
    return unpacked(tmp_path)


def objects(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.list("")}


def renamed(old: Old, name: str) -> None:
    """The sweep `one` once more, under another name: all its trials are in the store."""
    text = old.spec("one").read_text()
    old.spec(name).write_text(text.replace("name: one", f"name: {name}"))
    assert "4 in the store, 0 to train" in old.run("sweep", name).stderr


def test_what_another_sweep_has_is_as_before_and_its_soup_evaluates_nothing(old, computed):
    old.run("soup", "two", *ASKED, "--output", old.folder / "two")
    before, ranked = objects(old.store), old.run("rank", "two").stdout
    listed = old.run("delete", "one", "--dry-run", "--json").stdout
    planned = json.loads(listed)["objects"]
    assert objects(old.store) == before
    assert planned == {path: len(before[path]) for path in planned}
    done = old.run("delete", "one", "--yes").stdout
    assert f"{len(planned) + 1} objects" in done  # and the lease of the deletion
    after = objects(old.store)
    assert after == {path: data for path, data in before.items() if path not in planned}
    assert not old.store.list("sweeps/one")
    computed.clear()
    old.run("soup", "two", *ASKED, "--output", old.folder / "two")
    assert computed == []
    assert old.run("rank", "two").stdout == ranked
    assert json.loads(old.run("gc", "two", "--dry-run", "--older-than", 0, "--json").stdout) == []
    old.run("delete", "two", "--yes")
    assert objects(old.store) == {}
    assert "there is nothing of the sweep two" in old.run("delete", "two", check=False).stderr


def test_trials_that_another_sweep_plans_stay_with_their_weights(old):
    renamed(old, "three")
    trials = find_state(old.store, load(old.spec("one"))).complete
    found = json.loads(old.run("delete", "one", "--yes", "--json").stdout)
    assert found["kept_trials"] == sorted(made.trial.key for made in trials)
    state = find_state(old.store, load(old.spec("three")))
    assert state.complete == trials
    assert all(old.store.size(layout.weights(i.checkpoint.sha256)) for i in trials)
    assert json.loads(old.run("gc", "three", "--dry-run", "--older-than", 0, "--json").stdout) == []
    old.run("delete", "three", "--yes")  # its trials carry the name of the sweep that is gone
    assert not {i.trial.key for i in trials} & {p.split("/")[1] for p in old.store.list("trials")}


def test_an_ingredient_of_another_sweeps_entry_stays(old):
    """As after `soupray soup one.yaml two.yaml`, whose results have a name of their own."""
    first, second, *_ = find_state(old.store, load(old.spec("one"))).complete
    recipe = old.store.get(layout.results_file("one", "greedy.recipe.json")).decode()
    assert first.checkpoint.sha256 in recipe
    joint = "sweeps/one_and_two/results/greedy.recipe.json"
    only_first = recipe.replace(second.checkpoint.sha256, first.checkpoint.sha256)
    old.store.put(joint, only_first.encode())
    found = find_removal(old.store, load(old.spec("one")))
    assert found.kept_trials == (first.trial.key,)
    assert layout.weights(first.checkpoint.sha256) not in found.objects
    assert layout.manifest(second.trial.key) in found.objects
    assert joint not in found.objects


class Dying(Store):
    """Deletes so many objects; then the process is killed."""

    def __init__(self, store: Store, left: int) -> None:
        super().__init__(store.backend, store.url)
        self._left = left

    def delete(self, path: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise StoreUnavailable("killed")
        super().delete(path)


def test_killed_at_any_point_it_goes_on_to_the_same_end(old):
    spec = load(old.spec("one"))
    before = objects(old.store)
    whole = find_removal(old.store, spec).objects
    expected = before.keys() - whole.keys()
    for left in (0, 60, 150, 231, 280, len(whole)):
        for path, data in before.items():
            old.store.put(path, data)
        with pytest.raises(StoreUnavailable, match="killed"):
            delete(Dying(old.store, left), spec, old.folder / "home")
        # What is not gone is still planned to go, and nothing else.
        again = find_removal(old.store, spec).objects
        assert set(again) - {layout.lease("one")} <= set(whole)
        delete(old.store, spec, old.folder / "home")
        assert set(old.store.list("")) == expected, left


def test_killed_while_its_suggestions_go_it_goes_on_although_its_basis_stays(old):
    """Another sweep has the same data and theta_0; the plan of TPE is in records of the sweep."""
    spec = load(old.spec("two"))
    other = spec.model_copy(update={"name": "other"})
    old.store.put(layout.spec("other", other.digest), encode(other.model_dump(mode="json")))
    whole = [*find_removal(old.store, spec).objects]
    assert not [path for path in whole if path.startswith("bases/")]
    asked = [k for k, path in enumerate(whole) if "/asked/" in path]
    trials = {i.trial.key for i in find_state(old.store, spec).complete}
    with pytest.raises(StoreUnavailable, match="killed"):
        delete(Dying(old.store, asked[2]), spec, old.folder / "home")
    delete(old.store, spec, old.folder / "home")
    assert old.store.list("sweeps/two") == []
    assert not trials & {path.split("/")[1] for path in old.store.list("trials")}


def test_a_sweep_that_is_driven_is_left_alone(old):
    before = objects(old.store)
    with Lease(old.store, layout.lease("one")):
        done = old.run("delete", "one", "--yes", check=False)
        assert done.returncode == 1
        assert (
            "runs the sweep one now: nothing is deleted. Stop it with `soupray stop`" in done.stderr
        )
        assert set(old.store.list("")) == {*before, layout.lease("one")}


def test_it_asks_and_without_a_yes_nothing_goes(old):
    before = objects(old.store)
    asked = old.run("delete", "one", check=False)  # standard input is empty
    assert asked.returncode == 1
    assert "would be deleted from" in asked.stdout
    assert "Nothing brings them back" in asked.stderr
    assert old.run("delete", "one", "--json", check=False).returncode == 2
    assert objects(old.store) == before


def test_where_nobody_knows_what_another_sweep_uses_nothing_goes(old):
    old.store.put(layout.spec("three", "0" * 64), encode({"name": "three", "of": "tomorrow"}))
    with pytest.raises(ConfigError, match="nobody knows what the sweep three uses"):
        find_removal(old.store, load(old.spec("one")))
    old.store.delete(layout.spec("three", "0" * 64))
    with (
        Lease(old.store, layout.lease("three")),
        pytest.raises(ConfigError, match="the sweep three is just beginning"),
    ):
        find_removal(old.store, load(old.spec("one")))


def test_a_store_on_s3_is_emptied_too_and_the_lease_is_not_written_again(old, tmp_path):
    (tmp_path / "s3").mkdir()
    with embedded_store(tmp_path / "s3") as credentials:
        store = open_store("s3://soupray/some/prefix", credentials)
        for path, data in objects(old.store).items():
            store.put(path, data)
        whole = find_removal(old.store, load(old.spec("one"))).objects
        gone = delete(store, load(old.spec("one")), old.folder / "home")
        assert set(gone.objects) == {*whole, layout.lease("one")}
        delete(store, load(old.spec("two")), old.folder / "home")
        assert store.list("") == []


def test_the_home_forgets_a_deleted_sweep(old):
    old.run("sweep", "one")
    assert (old.folder / "home" / "sweeps" / "one.yaml").exists()
    old.run("delete", "one", "--yes")
    assert not (old.folder / "home" / "sweeps" / "one.yaml").exists()
