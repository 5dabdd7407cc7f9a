"""The main job on real input: sweep, soup, results, tracker, and running it again."""

import csv
import json
import re

import msgspec
import numpy as np
import pytest
from conftest import inside, leaderboard, mini_text
from scipy.stats import binomtest
from shared import blind
from test_evaluators import forgetful

import soupray as package
from soupray.core.candidates import mean_of
from soupray.core.errors import ChecksumMismatch, ConfigError, TrackingError
from soupray.core.trials import Ingredient, Manifest, Pool
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.recipes import BY_NAME, run_recipes
from soupray.reporting.ranking import Entry
from soupray.reporting.recipe_file import read_recipe
from soupray.search.state import find_basis
from soupray.soup.run import Choices, choose, chosen_recipes
from soupray.soup.session import find_pool
from soupray.store import layout
from soupray.store.objects import open_store, read_record
from soupray.store.weights_file import sha256_of
from soupray.training.worker import worker_context


def manifests(run) -> list[Ingredient]:
    _, _, store = run.world()
    return [read_record(store, p, Manifest) for p in store.list("trials")]


def test_every_trial_is_an_ingredient_in_the_store(run):
    assert "4 trials planned, 0 in the store, 4 to train" in run.swept
    _, _, store = run.world()
    found = manifests(run)
    assert len(found) == 4
    for ingredient in found:
        checkpoint, logits = ingredient.checkpoint, ingredient.logits
        assert store.size(layout.weights(checkpoint.sha256)) == checkpoint.size_bytes
        assert store.size(layout.blob(logits.sha256)) == logits.size_bytes
        best = max(e.held_out_correct for e in ingredient.history)
        first = next(e.epoch for e in ingredient.history if e.held_out_correct == best)
        assert ingredient.best_epoch == first
        assert ingredient.held_out.correct == best


def test_the_leaderboard_has_what_it_promises(run):
    board = leaderboard(run.output)
    assert {e["recipe"] for e in board} == set(BY_NAME) - {"update_bn"}  # it has no BatchNorm
    counts = [e["held_out"]["correct"] for e in board]
    assert counts == sorted(counts, reverse=True)
    by_name = {e["name"]: e for e in board}
    assert by_name["greedy"]["held_out"]["correct"] >= by_name["best_single"]["held_out"]["correct"]
    for entry in board:
        if entry["coefficients"]:  # those of VRF and DaWin differ from sample to sample
            assert sum(entry["coefficients"]) == pytest.approx(1)
            assert len(entry["ingredients"]) == len(entry["coefficients"])
        assert set(entry["shifts"]) == {"inverted", "noise"}
        accuracies = [s["accuracy"] for s in entry["shifts"].values()]
        assert entry["shift_mean"] == pytest.approx(sum(accuracies) / 2)
        for split in (entry["held_out"], entry["test"]):
            assert split["accuracy"] == split["correct"] / split["n"]
            assert split["low"] < split["accuracy"] < split["high"]
        many = {"ensemble": 4, "greedy_ensemble": 4, "ose": 2, "vrf": 2, "dawin": 2}
        assert 1 <= entry["forward_passes_per_sample"] <= many.get(entry["recipe"], 1)
    assert len(by_name["uniform"]["ingredients"]) == 4
    assert by_name["ensemble"]["forward_passes_per_sample"] == 4
    assert by_name["ensemble"]["size_bytes"] == 4 * by_name["uniform"]["size_bytes"]
    with (run.output / "leaderboard.csv").open() as file:
        assert [r["name"] for r in csv.DictReader(file)] == [e["name"] for e in board]


def test_the_figures_and_the_soup_are_there_and_the_table_fits_100_columns(run):
    for name in ("robustness.png", "greedy_trace.png"):
        assert (run.output / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(run.output.glob("*.safetensors"))) == 1
    lines = run.souped.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in run.souped
    assert all(e["name"] in run.souped for e in leaderboard(run.output))


def test_running_again_trains_nothing_and_evaluates_nothing(run, fresh, tmp_path):
    """The store has lost the ingredients' weights: who trains or evaluates one, fails."""
    _, _, store = fresh.world()
    for manifest in manifests(fresh):
        store.delete(layout.weights(manifest.checkpoint.sha256))
    before = store.list("")
    again = inside("sweep", fresh.spec, *fresh.where)
    assert "4 trials planned, 4 in the store, 0 to train" in again.stderr
    printed = inside("soup", *fresh.where, "--all", "--json", "--output", tmp_path / "again")
    shown = json.loads(printed.stdout)["entries"]
    assert shown == leaderboard(run.output) == leaderboard(tmp_path / "again")
    assert store.list("") == before
    # SPEC was left out: the newest sweep of this home was taken, and named.
    assert "the newest sweep of this home" in printed.stderr


def test_a_recipe_rebuilds_the_soup_byte_for_byte_and_any_entry_loads(run, tmp_path):
    (soup,) = run.output.glob("*.safetensors")
    recipe = soup.with_suffix(".recipe.json")
    said = inside("rebuild", recipe, *run.where, "--output", tmp_path / "again.safetensors")
    assert "the same bytes as recorded" in said.stdout
    assert sha256_of(tmp_path / "again.safetensors") == sha256_of(soup)
    (tmp_path / "any file").touch()  # results are readable to whom the umask lets
    modes = {p.stat().st_mode for p in [soup, *tmp_path.iterdir(), *run.output.iterdir()]}
    assert len(modes) == 1
    spec, place, store = run.world()
    data = worker_context(spec, place).data
    images, labels = data.samples(find_basis(store, spec).split("test"))
    for entry in leaderboard(run.output):
        name = entry["name"].replace("(", "_").replace(", ", "_").replace(")", "")
        model = package.load(run.output / f"{name}.recipe.json", home=run.home)
        probabilities = model(np.array(images))
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(labels)), abs=1e-5)
        correct = int((probabilities.argmax(axis=1) == labels).sum())
        assert correct == entry["test"]["correct"]


def test_pull_fetches_the_same_files(run, tmp_path):
    inside("pull", run.spec, *run.where, "--output", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in run.output.iterdir()}
    for path in run.output.iterdir():
        assert sha256_of(path) == sha256_of(tmp_path / path.name)


def test_mlflow_shows_the_sweep_its_trials_and_the_entries_side_by_side(run):
    assert len(run.early) == 5
    early = {name for metrics in run.early.values() for name in metrics}
    assert "accuracy/held_out" in early
    assert not [name for name in early if "test" in name or "shift" in name]
    runs = {r.info.run_name: r for r in run.tracked()}
    board = leaderboard(run.output)
    assert len(runs) == 1 + 4 + len(board)
    parent = runs["sweep mini"]
    shared = {f"accuracy/{n}" for n in ("held_out", "test", "shift_noise", "shift_mean")}
    for name, tracked in runs.items():
        assert tracked.info.status == "FINISHED"
        if name != "sweep mini":
            assert tracked.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert shared <= tracked.data.metrics.keys()
    for entry in board:
        metrics = runs[entry["name"]].data.metrics
        assert metrics["accuracy/test"] == entry["test"]["accuracy"]
        assert metrics["accuracy/shift_mean"] == pytest.approx(entry["shift_mean"])


def attached(home) -> set[str]:
    """Files beside the sweep in MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home.home}/mlflow/mlflow.db")
    (parent,) = [r for r in home.tracked() if r.info.run_name == "sweep mini"]
    return {f.path for f in client.list_artifacts(parent.info.run_id)}


def test_the_index_can_be_deleted_and_published_again(fresh):
    def shape():
        return sorted((r.info.run_name, sorted(r.data.metrics.items())) for r in fresh.tracked())

    before = shape()
    inside("publish", fresh.spec, *fresh.where)
    assert shape() == before
    (fresh.home / "mlflow" / "mlflow.db").rename(fresh.folder / "old.db")
    inside("publish", fresh.spec, *fresh.where)
    assert shape() == before
    assert attached(fresh) >= {"leaderboard.json", "robustness.png", "greedy_trace.png"}


def test_mlflow_away_is_not_fatal(run, fresh):
    text = mini_text(**{"tracking: embedded": "tracking: http://127.0.0.1:9"})
    fresh.spec.write_text(text)
    done = inside("sweep", fresh.spec, *fresh.where)
    assert "4 in the store, 0 to train" in done.stderr
    souped = inside("soup", fresh.spec, *fresh.where, "--all", "--output", fresh.output)
    for said in (done.stderr, souped.stderr):
        assert "note: MLflow at http://127.0.0.1:9" in said
        assert "Nothing is lost: `soupray publish` completes the index." in said
    assert leaderboard(fresh.output) == leaderboard(run.output)


def test_mlflow_says_what_to_take_and_links_soups_to_their_trials(run):
    runs = {r.info.run_name: r for r in run.tracked()}
    parent, greedy = runs["sweep mini"], runs["greedy"]
    assert parent.data.tags["mlflow.note.content"].startswith("Take ")
    entry = next(e for e in leaderboard(run.output) if e["name"] == "greedy")
    by_id = {r.info.run_id: r for r in run.tracked()}
    linked = re.findall(
        r"\(#/experiments/\d+/runs/(\w+)\)", greedy.data.tags["mlflow.note.content"]
    )
    assert [by_id[one].data.tags["soupray.key"].rpartition("/")[2] for one in linked] == entry[
        "ingredients"
    ]
    for one, share in zip(linked, entry["coefficients"], strict=True):
        assert by_id[one].data.metrics["coefficient/greedy"] == share


def test_the_champion_is_registered_and_a_version_only_once(run, fresh):
    from mlflow.tracking import MlflowClient

    inside("publish", fresh.spec, *fresh.where)
    inside("publish", fresh.spec, *fresh.where)
    client = MlflowClient(f"sqlite:///{fresh.home}/mlflow/mlflow.db")
    (version,) = client.search_model_versions("name = 'soupray-mini'")
    champion = client.get_model_version_by_alias("soupray-mini", "champion")
    assert champion.version == version.version
    assert re.search(r"/models/m-[0-9a-f]+/artifacts$", champion.source)
    (soup,) = run.output.glob("*.safetensors")
    assert champion.tags["soupray.sha256"] == sha256_of(soup)
    entry = next(
        e for e in leaderboard(run.output)
        if e["candidate"] == champion.tags["soupray.candidate"]
    )  # fmt: skip
    assert client.get_run(champion.run_id).info.run_name == entry["name"]


@pytest.fixture(scope="module")
def pool(run) -> Pool:
    spec, _, store = run.world()
    return find_pool(store, spec, partial=False)[0]


def test_choices_once_frozen_are_not_made_again(run, pool):
    spec, _, store = run.world()
    selection = blind(pool)
    recipes = chosen_recipes([spec], [], everything=True)
    choices = choose(store, [spec], selection, recipes)
    assert isinstance(choices, Choices)
    assert choices.pool == pool.checkpoints


@pytest.mark.slow
def test_the_local_evaluator_makes_the_same_choices_as_the_ray_driver(run, pool, tmp_path):
    """The same job without Ray: its counts and decisions are those of the leaderboard."""
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


def test_the_champion_is_the_cheapest_of_those_that_cannot_be_told_from_the_first(run, pool):
    """By hand, from the masks of the held-out samples and scipy's binomial test."""
    spec, _, store = run.world()
    entries = msgspec.json.decode((run.output / "leaderboard.json").read_bytes(), type=list[Entry])
    recipes = chosen_recipes([spec], [], everything=True)
    masks = {
        o.name: o.held_out.right_mask()
        for o in choose(store, [spec], blind(pool), recipes).outcomes
    }
    first = masks[entries[0].name]
    models = len({e.candidate for e in entries}) - 1
    equals = []
    for e in entries:
        only_one, only_other = (first & ~masks[e.name]).sum(), (~first & masks[e.name]).sum()
        total = only_one + only_other
        if total == 0 or binomtest(only_one, total).pvalue * models >= 0.05:
            equals.append(e)
    fewest = min(e.forward_passes_per_sample for e in equals)  # all models have the same size
    taken = next(e for e in equals if e.forward_passes_per_sample == fewest)
    made = json.loads((run.output / "run.json").read_bytes())["champion"]
    assert made["name"] == taken.name
    assert made["first"] == entries[0].name
    assert made["equals"] == [e.name for e in equals]
    assert "zero_shot" not in made["equals"]
    assert run.souped.startswith(f"Take {taken.name} (mini@champion), ")
    # The registry, the saved weights and the model that is loaded are this one.
    registered = json.loads((run.output / "champion.json").read_bytes())
    assert registered["candidate"] == taken.candidate
    (weights,) = run.output.glob("*.safetensors")
    assert sha256_of(weights) == registered["sha256"]
    for what in ("mini@champion", "models:/soupray-mini@champion", "models:/soupray-mini/1"):
        assert package.load(what, home=str(run.home)).name == taken.name
    with pytest.raises(TrackingError, match="alias"):
        package.load("models:/soupray-mini@best", home=run.home)
    with pytest.raises(ConfigError, match="write models:/NAME@ALIAS"):
        package.load("models:/soupray-mini", home=run.home)


def test_every_entry_records_the_digest_of_its_weights(run, tmp_path):
    """`rebuild` compares; an ensemble has those of its soups."""
    for path in run.output.glob("*.recipe.json"):
        recipe = read_recipe(path)
        soups = [m for m in recipe.candidate.members if len(m.checkpoints) > 1]
        assert set(recipe.digests) >= {m.digest for m in soups}
        if len(recipe.candidate.members) == 1 and recipe.sha256 is not None:
            said = inside("rebuild", path, *run.where, "--output", tmp_path / "again.safetensors")
            assert "the same bytes as recorded" in said.stdout
            assert sha256_of(tmp_path / "again.safetensors") == recipe.sha256
    assert read_recipe(run.output / "uniform.recipe.json").sha256
