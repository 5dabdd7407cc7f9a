"""Recipe files and records that somebody else wrote, or that are damaged: nothing outside the cache
is touched, no other exception than ours is raised, and no wrong model is used.

The store is that of `test_stores.py`: two finished sweeps of an older commit.
"""

import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from conftest import inside
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import blind, ingredient, key, scores, sha, trial

import soupray
from soupray.core.candidates import OutputEnsemble, VRFEnsemble, mean_of
from soupray.core.errors import (
    CheckpointError,
    ChecksumMismatch,
    ConfigError,
    NotFound,
    SouprayError,
    StoreUnavailable,
)
from soupray.core.names import inside as below
from soupray.core.names import joined, plain, plain_json
from soupray.core.records import Basis, BlobRef, Scores, decode, encode, pack_right
from soupray.core.trials import Ingredient, Manifest
from soupray.operations.garbage import find_garbage
from soupray.operations.status import find_status
from soupray.recipes import BY_NAME
from soupray.reporting.history import stored_leaderboard
from soupray.reporting.ranking import Entry
from soupray.reporting.recipe_file import RecipeFile, read_recipe
from soupray.reporting.results import pull, stored_runs
from soupray.search.history import Stopped, Suggested
from soupray.search.state import find_state
from soupray.soup.run import Choices, baselines, choices_path, chosen_recipes
from soupray.soup.session import find_pool
from soupray.spec.sweep_spec import SweepSpec, load
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.lease import Heartbeat, LeaseRecord, find_driver
from soupray.store.objects import Store, open_store
from soupray.store.weights_file import digest_of, sha256_of, write_weights

STORES = Path(__file__).parent / "stores"
DIGIT = np.zeros((1, 1, 8, 8), np.uint8)


VRF = VRFEnsemble(
    fine_tuned=mean_of([sha("a")]),
    reference=mean_of([sha("b")]),
    temperatures=(1.0, 2.0),
    failures=BlobRef(sha256=sha("failures"), size_bytes=1),
    k=1,
    a=0.5,
    b=2.0,
)


class World(NamedTuple):
    """A copy of the old store in a folder of its own."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def store(self) -> Store:
        return open_store(f"file://{self.folder}/store")

    def spec(self, name: str = "one") -> SweepSpec:
        return load(self.folder / f"{name}.yaml")

    def recipe(self, name: str) -> dict[str, Any]:
        """A stored recipe file as plain data, with this store in its spec."""
        file = "uniform" if name == "vrf" else name  # no sweep of that store chose a VRF
        text = self.store.get(layout.results_file("one", f"{file}.recipe.json")).decode()
        recipe = json.loads(text.replace("/tmp/fx/store", f"{self.folder}/store"))
        return recipe | ({"candidate": msgspec.to_builtins(VRF)} if name == "vrf" else {})

    def write(self, recipe: dict[str, Any]) -> Path:
        path = self.folder / "theirs.recipe.json"
        path.write_text(json.dumps(recipe))
        return path

    def manifest(self, number: int = 0) -> tuple[str, dict[str, Any]]:
        """(path, content) of the manifest of a trial of `one`."""
        state = find_state(self.store, self.spec())
        path = layout.manifest(state.complete[number].trial.key)
        return path, json.loads(self.store.get(path))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(STORES / "store.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def world(unpacked, tmp_path) -> World:
    return made(unpacked, tmp_path / "world")


def made(unpacked: Path, folder: Path) -> World:
    shutil.copytree(unpacked, folder)
    for name in ("one", "two"):
        text = (STORES / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text.replace("/STORE", f"{folder}/store"))
    return World(folder)


def put(data: Any, path: list[Any], value: Any) -> None:
    """data[path[0]][path[1]]... = value"""
    for step in path[:-1]:
        data = data[step]
    data[path[-1]] = value


HOSTILE = "../../x/victim"
TOO_LARGE = {
    "type": "weight_soup",
    "parts": [["a" * 64, 2**70], ["b" * 64, 1 - 2**70]],
    "denominator": 1,
}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("greedy", ["candidate", "parts"], [[HOSTILE, 1]]),
        ("greedy", ["candidate", "parts"], [["/" + HOSTILE, 1]]),
        ("greedy", ["candidate", "parts"], [["0" * 64 + "\n", 1]]),
        ("greedy", ["candidate", "parts"], [["A" * 64, 1]]),
        ("greedy", ["sha256"], HOSTILE),
        ("greedy", ["ingredients"], {HOSTILE: "init"}),
        ("greedy", ["statistics"], {HOSTILE: {"sha256": "0" * 64, "size_bytes": 1}}),
        ("greedy", ["statistics"], {"0" * 64: {"sha256": HOSTILE, "size_bytes": 1}}),
        ("fisher", ["candidate", "parts", 0, 1], HOSTILE),
        ("learned_by_layer", ["candidate", "checkpoints", 0], HOSTILE),
        ("vrf", ["candidate", "failures", "sha256"], HOSTILE),
        ("ensemble", ["candidate", "parts", 0, 0, "parts", 0, 0], HOSTILE),
        ("greedy", ["foreign"], [{"checkpoints": [HOSTILE], "spec": {}}]),
    ],
)
def test_a_recipe_that_names_a_file_outside_the_cache_is_refused(world, name, path, value):
    victims = [world.home / "x" / f"victim{end}" for end in (".safetensors", ".lock")]
    for victim in victims:
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_text("precious")
    recipe = world.recipe(name)
    put(recipe, path, value)
    file = world.write(recipe)
    for verb in ("rebuild", "export"):
        done = inside(verb, file, "--home", world.home, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "not a recipe file of soupray: Expected `str` matching regex" in done.stderr
    with pytest.raises(ConfigError, match="not a recipe file"):
        soupray.load(file, home=world.home)
    assert [victim.read_text() for victim in victims] == ["precious"] * 2


def test_a_path_is_joined_below_its_root_or_not_at_all(tmp_path):
    cache = tmp_path / "home" / "cache"
    checkpoints = Checkpoints(open_store("memory://"), cache)
    (tmp_path / "victim.safetensors").write_text("precious")
    for name in ("../../victim", "/etc/x", "a/b", "a\nb", "\x1b[2Ja"):
        with pytest.raises(CheckpointError, match="is not the name of a file"):
            checkpoints.fetch(name)
    for name in ("", ".", ".."):
        for join in (lambda n: below(tmp_path, n), joined):
            with pytest.raises(CheckpointError, match="is not the name of a file"):
                join(name)
    assert (tmp_path / "victim.safetensors").read_text() == "precious"
    assert below(tmp_path, "a", "b.c") == tmp_path / "a" / "b.c"
    assert joined("a", "b.c") == "a/b.c"


@pytest.mark.parametrize(
    ("name", "path", "value", "why"),
    [
        ("greedy", ["candidate", "denominator"], 0, "do not sum to 1"),
        ("greedy", ["candidate", "denominator"], 7, "do not sum to 1"),
        ("greedy", ["candidate", "parts"], [], "do not sum to 1"),
        ("greedy", ["candidate"], TOO_LARGE, "are too large"),
        ("fisher", ["candidate", "parts"], [], "length"),
        ("learned_by_layer", ["candidate", "rest", 0], 1, "do not sum to 1"),
        ("learned_by_layer", ["candidate", "rest"], [1000000], "1 coefficients for 4 checkpoints"),
        (
            "learned_by_layer",
            ["candidate", "layers"],
            [[["x"], [1000000, 0, 0, 1]]],
            "do not sum to 1",
        ),
        (
            "learned_by_layer",
            ["candidate", "layers"],
            [[["x"], [1000000, 0, 0, 0]], [["x"], [0, 1000000, 0, 0]]],
            "a tensor is in two layers",
        ),
        ("ensemble", ["candidate", "denominator"], 0, "do not sum to 1"),
        ("ensemble", ["candidate", "parts", 0, 2], 0.0, "the temperature 0.0"),
        ("vrf", ["candidate", "temperatures"], [1.0, -1.0], "the temperature -1.0"),
        ("vrf", ["candidate", "b"], 0.0, "b above 0"),
        ("vrf", ["candidate", "k"], 0, "k"),
        ("ensemble", ["sha256"], "0" * 64, "no sha256 of one file"),
        ("greedy", ["format"], 2, "format 2; this version of soupray reads format 1"),
    ],
)
def test_a_recipe_without_sense_is_refused_and_says_why(world, name, path, value, why):
    recipe = world.recipe(name)
    put(recipe, path, value)
    with pytest.raises(ConfigError, match=why):
        read_recipe(world.write(recipe))


def test_an_edited_soup_has_another_digest_and_neither_rebuild_nor_export_nor_load_uses_it(world):
    names = [p.rpartition("/")[2] for p in world.store.list(layout.results("one"))]
    recipes = {n: world.recipe(n.removesuffix(".recipe.json")) for n in names if "recipe" in n}
    (best,) = [recipe for recipe in recipes.values() if recipe["sha256"]]
    file = world.write(best)
    assert soupray.load(file, home=world.home)(DIGIT).sum() == pytest.approx(1)
    best["candidate"] = msgspec.to_builtins(mean_of([world.manifest()[1]["checkpoint"]["sha256"]]))
    file = world.write(best)
    for verb in ("rebuild", "export"):
        done = inside(verb, file, "--home", world.home, check=False)
        assert done.returncode == 1
        assert "but the recipe recorded" in done.stderr
    with pytest.raises(ChecksumMismatch, match="but the recipe recorded"):
        soupray.load(file, home=world.home)


def test_weights_that_are_not_finite_and_statistics_of_another_model_are_refused(world):
    checkpoints = Checkpoints(world.store, world.home / "cache" / "weights")
    recipe = world.recipe("greedy")
    recipe |= {"statistics": {}, "sha256": None}
    (first, *_) = recipe["candidate"]["parts"]
    weights = checkpoints.load(first[0])
    layer = next(n for n in weights if n.endswith("running_var"))
    nan = checkpoints.save(weights | {layer: torch.full_like(weights[layer], torch.nan)}, {})
    recipe["candidate"] = msgspec.to_builtins(mean_of([nan.sha256]))
    with pytest.raises(CheckpointError, match=f"tensor '{layer}' is not finite"):
        soupray.load(world.write(recipe), home=world.home)
    other = checkpoints.save_blob({layer: torch.zeros(3)}, {})
    recipe["candidate"] = msgspec.to_builtins(mean_of([first[0]]))
    mine = mean_of([first[0]]).digest
    recipe["statistics"] = {mine: msgspec.to_builtins(other)}
    with pytest.raises(CheckpointError, match="they are those of another model"):
        soupray.load(world.write(recipe), home=world.home)


def test_the_digest_of_weights_is_that_of_their_file(tmp_path):
    weights = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor(3), "c": torch.zeros(0)}
    about = {"sweep": "x", "init": "y"}
    write_weights(tmp_path / "w", weights, about)
    assert digest_of(weights, about) == sha256_of(tmp_path / "w")


def test_a_recipe_that_is_only_read_makes_no_store(world, tmp_path):
    recipe = world.recipe("greedy")
    recipe["spec"]["storage"] = f"file://{tmp_path}/new/store"
    with pytest.raises(NotFound, match=r"there is no folder .*/new/store on this machine"):
        soupray.load(world.write(recipe), home=world.home)
    recipe["spec"]["storage"] = "embedded"
    with pytest.raises(NotFound, match=r"in the embedded store of a home, but .* has none"):
        soupray.load(world.write(recipe), home=tmp_path / "empty")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "empty").exists()


def test_the_class_names_of_a_recipe_are_not_read_from_a_file_that_it_names(world, tmp_path):
    (tmp_path / "secret.yaml").write_text("- hunter2\n- hunter3\n")
    recipe = world.recipe("greedy")
    recipe["spec"]["task"]["classes"] = str(tmp_path / "secret.yaml")
    with pytest.raises(ConfigError, match=r"task\.classes") as error:
        soupray.load(world.write(recipe), home=world.home)
    assert "hunter" not in str(error.value)
    recipe["spec"]["task"] |= {"kind": "open_clip", "model": "soupray:../../../etc"}


def test_a_manifest_with_a_changed_digit_is_refused_by_its_mask(world):
    path, manifest = world.manifest()
    manifest["held_out"]["correct"] += 1
    world.store.put(path, encode(manifest))
    with pytest.raises(CheckpointError, match=f"{path} in .* cannot be read: .*correct = "):
        find_state(world.store, world.spec())


def test_a_copied_manifest_and_an_edited_trial_are_refused_by_their_key(world):
    (first, one), (second, _) = world.manifest(0), world.manifest(1)
    other = world.store.get(second)
    world.store.put(second, encode(one))
    with pytest.raises(CheckpointError, match=f"{second} in .* but of {one['trial']['key']}: it"):
        find_state(world.store, world.spec())
    world.store.put(second, other)
    one["trial"]["hparams"]["lr"] /= 2
    world.store.put(first, encode(one))
    with pytest.raises(CheckpointError, match=f"{first} in .* it was copied there, or edited"):
        find_state(world.store, world.spec())


@pytest.mark.parametrize("verb", ["soup", "check", "diagnose"])
def test_scores_that_the_stored_logits_contradict_are_refused(world, verb, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    _, good = world.manifest(0)
    n = good["held_out"]["n"]
    state = find_state(world.store, world.spec())
    worst = min(state.complete, key=lambda i: i.held_out.correct)
    mask = np.ones(n, bool)
    lie = msgspec.structs.replace(
        worst.held_out,
        correct=n,
        right=pack_right(mask),
        by_class=tuple((there, there, there) for there, _, _ in worst.held_out.by_class),
    )
    path = layout.manifest(worst.trial.key)
    world.store.put(path, encode(msgspec.structs.replace(worst, held_out=lie)))
    options = {"soup": ["--greedy", "--output", world.folder / "out"]}.get(verb, [])
    where = (world.folder / "one.yaml", "--home", world.home)
    done = inside(verb, *where, *options, check=False)
    assert done.returncode == 1
    assert f"the manifest of trial {worst.trial.key} contradicts its stored logits" in done.stderr
    # The NLL alone is a metric too.
    lie = msgspec.structs.replace(worst.held_out, nll=worst.held_out.nll * 0.99)
    world.store.put(path, encode(msgspec.structs.replace(worst, held_out=lie)))
    assert "contradicts" in inside(verb, *where, *options, check=False).stderr


KINDS = {
    Basis: lambda w: w.store.list("bases"),
    Manifest: lambda w: w.store.list("trials"),
    Choices: lambda w: w.store.list("sweeps/one/choices"),
    list[Entry]: lambda w: ["sweeps/one/results/leaderboard.json"],
    RecipeFile: lambda w: [p for p in w.store.list("sweeps/one/results") if "recipe" in p],
    Suggested: lambda w: w.store.list("sweeps/two/asked"),
    Stopped: lambda w: w.store.list("sweeps/two/stopped"),
}


@pytest.fixture(scope="module")
def shared_world(unpacked, tmp_path_factory) -> World:
    return made(unpacked, tmp_path_factory.mktemp("shared") / "world")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([HOSTILE, "0" * 64, "0" * 16, "\x1b[2J", "[/red]", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in plain data."""
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [at, *(place for step, value in inner for place in places(value, (*at, step)))]


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of a JSON object: of its bytes, of a value in it, or another object in its place."""
    how = draw(st.sampled_from(["bytes", "value", "gone", "other"]))
    if how == "other":
        other = draw(st.binary(max_size=20) | st.sampled_from([b"[" * 100_000, b"9" * 6000, b"{}"]))
        return lambda data: other
    if how == "bytes":
        where, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))

        def flipped(data: bytes) -> bytes:
            at = int(where * len(data))
            return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]

        return flipped
    where, value = draw(st.floats(0, 1, exclude_max=True)), draw(json_values)

    def changed(data: bytes) -> bytes:
        plain_data = json.loads(data)
        found = places(plain_data)[1:]
        *path, last = found[int(where * len(found))]
        target = plain_data
        for step in path:
            target = target[step]
        if how == "gone":
            del target[last]
        else:
            target[last] = value
        return json.dumps(plain_data).encode()

    return changed


@settings(max_examples=4, deadline=None)  # `make fuzz` has thousands
@given(harm=damage(), which=st.integers(0, 10**6))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_damaged_record_raises_no_other_exception_than_ours(shared_world, kind, harm, which):
    world = shared_world
    paths = KINDS[kind](world)
    path = paths[which % len(paths)]
    data = world.store.get(path)
    world.store.put(path, harm(data))
    try:
        for name in ("one", "two"):
            spec = world.spec(name)
            for read in (
                lambda spec=spec: find_state(world.store, spec),
                lambda spec=spec: find_status(spec, world.home),
                lambda spec=spec: stored_leaderboard(spec, world.home),
                lambda spec=spec: stored_runs(world.store, spec),
                lambda spec=spec: pull(spec, world.home, world.folder / "pulled"),
                lambda spec=spec: find_garbage(world.store, spec, 0),
            ):
                with suppress(SouprayError):
                    read()
    finally:
        world.store.put(path, data)


@settings(max_examples=100, deadline=None)
@given(harm=damage())
@pytest.mark.parametrize("kind", [LeaseRecord, Heartbeat, Scores, Ingredient])
def test_decoding_raises_one_kind_of_exception(kind, harm):
    lease = {"holder": "h", "who": "w", "process": "b/n/1/2", "expires": 1.5}
    beat = {"running": [], "failed": {}, "seconds_left": None}
    good = {
        LeaseRecord: encode(lease),
        Heartbeat: encode({"holder": "h", "written": 1.0, "beat": beat}),
        Scores: encode(scores(3)),
        Ingredient: encode(ingredient(key("a"), scores(3))),
    }[kind]
    assert decode(good, kind)
    with suppress(msgspec.MsgspecError):
        decode(harm(good), kind)


@pytest.mark.parametrize(
    "lease",
    [
        b"",
        b"[]",
        b'{"expires": 1e999, "holder": "h", "process": "b/n/1/2", "who": "x"}',
        b'{"expires": 9e18, "holder": "h", "process": "nonsense", "who": "x"}',
        b'{"expires": 9e18, "holder": "h", "process": "b/n/x/2", "who": "x"}',
        b'{"expires": 9e18, "holder": "h", "process": "b/n/1/2", "who": "\xff"}',
    ],
)
def test_a_lease_without_sense_is_an_error_that_names_it(lease):
    store = open_store("memory://")
    store.put(layout.lease("x"), lease)
    with pytest.raises(CheckpointError, match=r"sweeps/x/lease\.json in memory:// cannot be read"):
        find_driver(store, "x")


def test_objects_of_other_programs_stop_no_verb_and_stay(world, heard):
    store, spec = world.store, world.spec()
    basis = find_state(store, spec).basis
    theirs = {
        "trials/notes.json": b"\xff\xfe",
        "trials/readme/manifest.json": b"{",
        f"imports/{basis.key}/list.json": b"[1, 2",
        "sweeps/one/specs/old.json": b"no json",
        "sweeps/one/results/[red]x[/red].txt": b"y",
        "sweeps/other/choices/x.json": b"{]",
        "weights/readme.txt": b"do not delete",
        "resume/state.json": b"z",
        "backup.json": b"\x80",
    }
    for path, data in theirs.items():
        store.put(path, data)
    assert find_status(spec, world.home).complete == 4
    assert stored_leaderboard(spec, world.home)
    assert len(find_state(store, spec).ingredients) == 4
    orphan = layout.weights(sha("orphan"))
    store.put(orphan, b"orphan")
    assert [g.path for g in find_garbage(store, spec, 0)] == [orphan]
    pulled = pull(spec, world.home, world.folder / "pulled")
    assert not [p for p in pulled if p.suffix == ".txt"]
    assert {path: store.get(path) for path in theirs} == theirs
    for path in (f"imports/{basis.key}/list.json", "backup.json", "trials/notes.json"):
        assert f"note: {path} in {store.url} is not an object of soupray: it is left" in heard()


@pytest.mark.parametrize("name", [b"a\nb.json", b"\xff.json", b"\x1b[2J.json"])
def test_an_object_whose_name_is_no_path_is_named_on_one_line(tmp_path, name):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / os.fsdecode(name)).write_text("{}")
    with pytest.raises(StoreUnavailable, match=r"whose name is no path: .* delete it") as error:
        open_store(f"file://{tmp_path}").list("trials")
    assert plain(str(error.value)) == str(error.value)


def test_a_damaged_record_of_another_sweep_keeps_all_weights_and_is_named(world, heard):
    store, spec = world.store, world.spec()
    (path, *_) = store.list("sweeps/two/choices")
    store.put(path, store.get(path)[:-20])
    store.put(layout.weights(sha("orphan")), b"orphan")
    state = f"resume/{key('nobody')}/state.json"
    store.put(state, b"{}")
    before = store.list("")
    with pytest.raises(CheckpointError, match=r"nothing is deleted from .*, because 1 records"):
        find_garbage(store, spec, 0)
    assert f"{path} in {store.url} cannot be read" in heard()
    where = (world.folder / "one.yaml", "--home", world.home)
    assert inside("gc", *where, "--older-than", 0, check=False).returncode == 1
    assert store.list("") == before
    store.delete(path)
    found = {g.path for g in find_garbage(store, spec, 0)}
    assert found == {state, layout.weights(sha("orphan"))}


def test_text_from_outside_commands_no_terminal():
    assert plain("a\x1b[2Jb\n\x9b\x7f\u202e\udc80é漢 [bold]x[/]") == (
        r"a\x1b[2Jb\n\x9b\x7f\u202e\udc80é漢 [bold]x[/]"
    )
    shown = plain_json('{"a": "\x9b\u202e\x7f"}\n')
    assert shown == '{"a": "\\u009b\\u202e\\u007f"}\n'
    assert json.loads(shown) == {"a": "\x9b\u202e\x7f"}


def test_messages_tables_and_errors_are_printed_without_their_escapes(tmp_path, capsys):
    from soupray.cli import console
    from soupray.reporting import live

    hostile = "x\x1b]0;owned\x07\x9b2J[red]y[/blue] :smile:"
    shown = r"x\x1b]0;owned\x07\x9b2J[red]y[/blue] :smile:"
    logging.getLogger("soupray").handlers.clear()
    grid = live.table("a", hostile)
    grid.add_row("b", hostile)
    with console.out.capture() as captured:
        console.out.print(grid)
        console.out.print(hostile, style="dim")
    assert captured.get().count(shown) == 3
    with live.err.capture() as captured:
        live.say(f"{hostile}\nnote: forged")
    assert captured.get() == f"{shown}\n  note: forged\n"
    console.tell(hostile)
    assert capsys.readouterr().out == f"{shown}\n"
    recipe = f"{tmp_path / hostile}.recipe.json"
    for arguments in (["rank", tmp_path / hostile], ["rebuild", recipe], ["export", recipe]):
        done = inside(*arguments, "--home", tmp_path, check=False)
        assert done.returncode == 2
        assert "\x1b" not in done.stderr + done.stdout
        assert shown in done.stderr.replace("\n", "")


def test_counts_that_contradict_each_other_are_refused():
    good = scores(3)
    for change in (
        {"correct": 4},
        {"n": 11},
        {"n": 17},
        {"right": "!!!!"},
        {"right": ""},
        {"right": pack_right(np.arange(16) > 12)},  # a sample that there is not
        {"by_class": ((9, 3, 3),)},
        {"by_class": ((10, 3, 2),)},
        {"by_class": ((2, 3, 3), (8, 0, 0))},
        {"by_class": ((11, 3, 3), (-1, 0, 0))},
    ):
        with pytest.raises(ValueError, match=r"right|by_class|base64|Incorrect|Only|Excess"):
            msgspec.structs.replace(good, **change)
    with pytest.raises(ValueError, match="do not sum to 1"):
        OutputEnsemble(parts=((mean_of(["a"]), 1, 1.0),), denominator=2, space="logits")
    assert trial().key == "t"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("checkpoint_path: x.pt", "checkpoint_path: timm does not get it"),
        ("pretrained_cfg: {file: x}, cache_dir: y", "cache_dir, pretrained_cfg: timm does not"),
        ("pretrained_cfg_overlay: {file: x}", "pretrained_cfg_overlay: timm does not"),
        ("pretrained_strict: false", "pretrained_strict: timm does not get it"),
        ("act_layer: ../x, norm_layer: {a: 1}", "act_layer, norm_layer: write a number, a word"),
    ],
)
def test_no_argument_that_names_a_file_reaches_a_constructor_of_timm(args, said, tmp_path):
    """A pickle in the place of the checkpoint would run code."""
    text = (STORES / "one.yaml").read_text()
    (tmp_path / "spec.yaml").write_text(text.replace("{in_chans: 1,", f"{{in_chans: 1, {args},"))
    with pytest.raises(ConfigError, match=rf"task\.args: .*{said}"):
        load(tmp_path / "spec.yaml")


@pytest.mark.parametrize("change", ["empty", "of another pool", "of weights from elsewhere"])
def test_choices_that_are_not_those_of_the_pool_are_refused(world, monkeypatch, change):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    where = (world.folder / "one.yaml", "--home", world.home, "--output", world.folder / "out")
    (old,) = world.store.list("sweeps/one/choices")
    choices, spec = json.loads(world.store.get(old)), world.spec()
    pool = blind(find_pool(world.store, spec, partial=False)[0]).pool
    asked = {n: {} for n in baselines(pool)} | chosen_recipes([spec], [], everything=True)
    choices["recipes"] = {name: BY_NAME[name].complete(given) for name, given in asked.items()}
    path = choices_path([spec], pool, choices["recipes"])
    if change == "empty":
        choices["outcomes"] = []
    elif change == "of another pool":
        choices["pool"].reverse()
    else:
        choices["outcomes"][1]["candidate"] = msgspec.to_builtins(mean_of([sha("theirs")]))
    world.store.put(path, encode(choices))
    done = inside("soup", *where, "--all", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{path} in {world.store.url} are not the choices of these recipes" in done.stderr


def test_an_evaluation_of_other_data_and_an_answer_without_one_are_refused(world, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    where = (world.folder / "one.yaml", "--home", world.home)
    good = {path: world.store.get(path) for path in world.store.list("answers")}
    for path in good:
        world.store.put(path, b'{"ansver": 1}')
    done = inside("check", *where, check=False)
    assert done.returncode == 1
    assert "cannot be read: Object " in done.stderr
    for path, data in good.items():
        world.store.put(path, data)
    for path in world.store.list("evaluations"):
        evaluation = json.loads(world.store.get(path))
        evaluation["scores"]["split"] = sha("other data")
        world.store.put(path, encode(evaluation))
    done = inside("soup", *where, "--all", "--output", world.folder / "out", check=False)
    assert done.returncode == 1
    assert "is about other data than split" in done.stderr
