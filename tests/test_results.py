"""Results written twice: what an earlier soup left does not pass for part of the last one."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import inside, leaderboard, mini_text

from soupray.core.errors import CheckpointError
from soupray.core.names import slug
from soupray.reporting.results import pull, recipes_in, remove_stale
from soupray.soup.compare import paired_error
from soupray.spec.sweep_spec import parse
from soupray.store.objects import open_store

FILES = {
    "leaderboard.json",
    "leaderboard.csv",
    "details.json",
    "report.html",
    "run.json",
    "runs.json",
    "champion.json",
    "robustness.png",
    "robustness.svg",
}


def entries(home) -> dict[str, dict[str, float]]:
    """Rank of each entry that MLflow shows, by leaderboard."""
    found: dict[str, dict[str, float]] = {}
    for run in home.tracked():
        tags = run.data.tags
        if tags["soupray.kind"] == "entry":
            board = found.setdefault(tags["soupray.leaderboard"], {})
            board[run.info.run_name] = run.data.metrics["rank"]
    return found


def key(home) -> str:
    """The key of the run of soup whose results are in the folder."""
    return json.loads((home.output / "run.json").read_text())["key"]


def test_a_soup_with_other_recipes_is_the_newest_and_the_first_one_stays(run, fresh, without_ray):
    first, old = [e["name"] for e in leaderboard(fresh.output)], key(fresh)
    ranks = {old[:8]: {name: rank for rank, name in enumerate(first, 1)}}
    assert entries(fresh) == ranks
    said = inside("soup", fresh.spec, *fresh.where, "--uniform", "--output", fresh.output)
    names = [e["name"] for e in leaderboard(fresh.output)]
    assert set(names) == {"zero_shot", "best_single", "uniform"}
    assert set(names) < set(first)
    assert "greedy" not in said.stdout

    recipes = {f"{slug(name)}.recipe.json" for name in names}
    here = {p.name for p in fresh.output.iterdir()}
    champion = json.loads((fresh.output / "run.json").read_text())["champion"]["name"]
    assert here == FILES | recipes | {f"{slug(champion)}.safetensors"}
    _, _, store = fresh.world()
    stored = {p.rpartition("/")[2] for p in store.list("sweeps/mini/results")}
    assert stored == FILES | recipes

    pulled = shutil.copytree(run.output, fresh.folder / "pulled")  # over those of the first
    inside("pull", fresh.spec, *fresh.where, "--output", pulled)
    assert {p.name for p in pulled.iterdir()} == here

    new = key(fresh)
    ranks[new[:8]] = {name: rank for rank, name in enumerate(names, 1)}
    assert entries(fresh) == ranks
    for _ in range(2):
        inside("publish", fresh.spec, *fresh.where)
        assert entries(fresh) == ranks
        shown = [r for r in fresh.tracked() if r.data.tags["soupray.current"] == "yes"]
        kinds = Counter(r.data.tags["soupray.kind"] for r in shown)
        assert kinds == {"sweep": 1, "trial": 4, "entry": 3}  # those of the newest alone

    def ranked(*named: str):
        return json.loads(inside("rank", fresh.spec, *named, *fresh.where, "--json").stdout)

    assert ranked() == ranked(new[:8])
    assert ranked()["entries"] == leaderboard(fresh.output)
    assert ranked()["verdict"]["take"] == champion
    assert ranked(old)["entries"] == leaderboard(run.output)
    assert {r["key"] for r in ranked("--list")} == {old, new}
    shown = inside("rank", "--list", *fresh.where).stdout
    assert old[:8] in shown
    assert new[:8] in shown
    assert "0 runs of soup on mini begin with 'abcdef'" in (
        inside("rank", "abcdef", *fresh.where, check=False).stderr
    )
    both = {e["name"]: e for e in ranked(old[:8], new[:8])["entries"]}
    assert both["uniform"]["same"]
    assert both["uniform"]["difference"] == both["uniform"]["standard_error"] == 0
    assert both["greedy"]["second"] is None
    assert "same model" in inside("rank", old[:8], new[:8], *fresh.where).stdout


def test_a_soup_that_is_run_again_is_the_newest_again(run, fresh, without_ray):
    inside("soup", fresh.spec, *fresh.where, "--uniform", "--output", fresh.output)
    inside("soup", fresh.spec, *fresh.where, "--all", "--output", fresh.output)
    assert leaderboard(fresh.output) == leaderboard(run.output)
    shown = [r.data for r in fresh.tracked() if r.data.tags["soupray.current"] == "yes"]
    entries = [d.tags["soupray.leaderboard"] for d in shown if "soupray.leaderboard" in d.tags]
    assert set(entries) == {key(run)[:8]}
    assert len(entries) == len(leaderboard(run.output))
    sweep = next(d for d in shown if d.tags["soupray.kind"] == "sweep")
    first = json.loads(inside("rank", fresh.spec, *fresh.where, "--json").stdout)
    assert sweep.tags["mlflow.note.content"].startswith(first["verdict"]["lines"][0])


def test_the_error_of_a_paired_difference_is_that_of_its_samples():
    differences = np.array([1] * 3 + [-1] * 7 + [0] * 90)
    assert paired_error(7, 3, 100) == pytest.approx(differences.std() / 10)


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


def test_trials_are_listed_with_what_varies_and_their_coefficients_in_the_champion(run):
    rows = json.loads(inside("trials", run.spec, *run.where, "--json").stdout)
    scores = [row["accuracy"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["state"] for row in rows} == {"complete"}
    name = json.loads((run.output / "run.json").read_text())["champion"]["name"]
    entry = next(e for e in leaderboard(run.output) if e["name"] == name)
    shares = dict(zip(entry["ingredients"], entry["coefficients"], strict=True))
    assert {r["key"]: r["share"] for r in rows} == {r["key"]: shares.get(r["key"], 0) for r in rows}
    by_rate = json.loads(inside("trials", run.spec, *run.where, "--json", "--sort", "lr").stdout)
    rates = [row["hparams"]["lr"] for row in by_rate]
    assert rates == sorted(rates)
    shown = inside("trials", run.spec, *run.where).stdout
    assert all(row["key"] in shown for row in rows)
    assert max(map(len, shown.splitlines())) <= 80
    wrong = inside("trials", run.spec, *run.where, "--sort", "momentum", check=False)
    assert (wrong.returncode, "There are: " in wrong.stderr) == (2, True)


def test_the_sweeps_of_a_home_are_listed_with_what_to_take(run, tmp_path):
    (row,) = json.loads(inside("sweeps", *run.where, "--json").stdout)
    name = json.loads((run.output / "run.json").read_text())["champion"]["name"]
    assert (row["name"], row["complete"], row["trials"]) == ("mini", 4, 4)
    assert (row["soups"], row["champion"]) == (1, name)
    assert f"mini@champion: {name}" in inside("sweeps", *run.where).stdout
    empty = inside("sweeps", "--home", tmp_path / "none")
    assert "no sweep ran with the home" in empty.stdout
    assert not (tmp_path / "none").exists()
