"""Results written twice: what an earlier soup left does not pass for part of the last one."""

import shutil

import pytest
from conftest import inside, leaderboard, mini_text

from soupray.core.errors import CheckpointError
from soupray.reporting.results import pull, recipes_in, remove_stale, slug
from soupray.spec.sweep_spec import parse
from soupray.store.objects import open_store

FILES = {"leaderboard.json", "leaderboard.csv", "runs.json", "champion.json", "robustness.png"}


def entries(home) -> dict[str, float]:
    """Rank of each entry that MLflow shows."""
    runs = [r for r in home.tracked() if r.data.tags["soupray.kind"] == "entry"]
    return {r.info.run_name: r.data.metrics["rank"] for r in runs}


def test_a_soup_with_other_recipes_replaces_the_results_of_the_first(run, fresh):
    first = [e["name"] for e in leaderboard(fresh.output)]
    assert entries(fresh) == {name: rank for rank, name in enumerate(first, 1)}
    said = inside("soup", fresh.spec, *fresh.where, "--uniform", "--output", fresh.output)
    names = [e["name"] for e in leaderboard(fresh.output)]
    assert set(names) == {"zero_shot", "best_single", "uniform"}
    assert set(names) < set(first)
    assert "greedy" not in said.stdout

    recipes = {f"{slug(name)}.recipe.json" for name in names}
    here = {p.name for p in fresh.output.iterdir()}
    assert here == FILES | recipes | {"uniform.safetensors"}
    _, _, store = fresh.world()
    stored = {p.rpartition("/")[2] for p in store.list("sweeps/mini/results")}
    assert stored == FILES | recipes

    pulled = shutil.copytree(run.output, fresh.folder / "pulled")  # over those of the first
    inside("pull", fresh.spec, *fresh.where, "--output", pulled)
    assert {p.name for p in pulled.iterdir()} == here

    ranks = {name: rank for rank, name in enumerate(names, 1)}
    assert entries(fresh) == ranks
    for _ in range(2):
        inside("publish", fresh.spec, *fresh.where)
        assert entries(fresh) == ranks


def test_results_with_a_recipe_that_cannot_be_read_are_refused_and_none_is_written(tmp_path):
    where = {
        "storage: embedded": f"storage: file://{tmp_path}/s",
        "tracking: embedded": "tracking: off",
    }
    spec, store = parse(mini_text(**where), "x"), open_store(f"file://{tmp_path}/s")
    store.put("sweeps/mini/results/leaderboard.json", b"[]")
    store.put("sweeps/mini/results/greedy.recipe.json", b'{"name": "gre')
    with pytest.raises(CheckpointError, match=r"greedy\.recipe\.json .* cannot be read"):
        pull(spec, tmp_path / "home", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store.delete("sweeps/mini/results/greedy.recipe.json")
    (board,) = pull(spec, tmp_path / "home", tmp_path / "out")
    assert board.read_bytes() == b"[]"


def test_weights_of_a_recipe_that_is_now_another_one_go_and_others_stay(tmp_path):
    for name in ("same", "changed", "gone"):
        (tmp_path / f"{name}.recipe.json").write_text("1")
        (tmp_path / f"{name}.safetensors").write_text("weights")
    (tmp_path / "mine.safetensors").write_text("somebody's")
    earlier = recipes_in(tmp_path)
    (tmp_path / "changed.recipe.json").write_text("2")
    remove_stale(tmp_path, earlier, {"same.recipe.json", "changed.recipe.json"})
    assert {p.name for p in tmp_path.iterdir()} == {
        "same.recipe.json",
        "same.safetensors",
        "changed.recipe.json",
        "mine.safetensors",
    }
