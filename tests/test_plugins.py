"""Recipes, trackers and samplers of the user, from files; `test_plugin_pages` has their wheels."""

import json
import random  # noqa: F401 - of samplers that are written as text
import re
import sys

import msgspec
import pytest
from conftest import FEW, ONE_SLOT, inside, leaderboard, mini_text
from own_code import files_of, standing_in
from shared import ingredient, scores, some_basis
from test_trackers import in_event_files, in_offline_runs

from soupray.core import plugins
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.ports import Seen, TrackedRun
from soupray.recipes import BY_NAME, GROUP, find_recipe, run_recipes
from soupray.recipes.recipe import Recipe
from soupray.search.history import search_key
from soupray.search.plugged import PluginSearch, load_sampler
from soupray.search.state import pool_trials, read_state
from soupray.soup.run import chosen_recipes
from soupray.spec.sweep_spec import load, parse
from soupray.store import layout
from soupray.store.objects import create_record, open_store
from soupray.testing import Shown, check_recipe, check_sampler
from soupray.testing.linear import toy

FILES = files_of("recipe", "tracker", "sampler")


@pytest.fixture
def here(tmp_path, monkeypatch):
    with standing_in(tmp_path / "mine", FILES, monkeypatch) as folder:
        yield folder


SHORT = {name: {"steps": 12} for name in ("learned", "learned_by_layer", "learned_signed")}
SHORT["cma_es"] = {"evaluations": 30}


@pytest.mark.parametrize("name", BY_NAME)
def test_our_own_recipes_keep_the_contract(name, tmp_path):
    check_recipe(BY_NAME[name], tmp_path, SHORT.get(name, {}))


def test_the_recipe_of_the_page_keeps_it_and_averages_the_better_half(here, tmp_path):
    found = check_recipe(find_recipe("trimmed:TRIMMED"), tmp_path / "worlds")
    world = toy(tmp_path / "again")
    (six,) = found["six"]
    assert six.candidate.checkpoints == tuple(world.pool.checkpoints[:3])
    assert six.candidate.coefficients == pytest.approx((1 / 3,) * 3)


def test_a_soup_with_a_recipe_in_a_file_and_its_key_follows_the_code(here, fresh, without_ray):
    spec = here / "mini.yaml"
    spec.write_text(
        re.sub(r"recipes:\n(  .*\n)+", "recipes:\n  trimmed:TRIMMED: {share: 0.5}\n",
               fresh.spec.read_text())
    )  # fmt: skip
    keys = []
    for _ in range(2):
        inside("soup", spec, *fresh.where, "--output", fresh.output)
        by_name = {e["name"]: e for e in leaderboard(fresh.output)}
        assert by_name["trimmed"]["recipe"] == "trimmed"
        assert len(by_name["trimmed"]["ingredients"]) == 2  # of four
        keys.append(json.loads((fresh.output / "run.json").read_text())["key"])
        with (here / "trimmed.py").open("a") as file:
            file.write("\n# edited\n")
        plugins.load.cache_clear()
    assert keys[0] != keys[1]
    # All else needs no plug-in.
    (here / "trimmed.py").unlink()
    plugins.load.cache_clear()
    del sys.modules["trimmed"]
    assert "trimmed" in inside("rank", spec, *fresh.where).stdout
    inside("report", spec, *fresh.where, "--output", here / "r.html")
    refused = inside("soup", spec, *fresh.where, check=False)
    assert refused.returncode == 2
    assert "there is no module 'trimmed', neither in" in refused.stderr


def test_a_sweep_is_shown_by_all_trackers_that_its_spec_names(here, without_ray):
    trackers = """tracking: off
trackers:
  tables:Tables: {folder: tables}
  tensorboard: {folder: events}
  wandb: {mode: offline, folder: wb}
"""
    edits = {"storage: embedded": f"storage: file://{here}/store", "trials: 16": "trials: 2"}
    text = mini_text(**edits | ONE_SLOT | FEW | {"tracking: embedded": trackers})
    (here / "mini.yaml").write_text(text)
    inside("sweep", "mini.yaml", "--home", here / "home")

    def everything() -> dict[str, dict[str, Shown]]:
        tables = {}
        for file in (here / "tables" / "mini").glob("*.json"):
            run = msgspec.json.decode(file.read_bytes(), type=TrackedRun)
            tables[run.key] = Shown(run.params, run.metrics, run.curves)
        return {
            "tables": tables,
            "tensorboard": in_event_files(here / "events"),
            "wandb": in_offline_runs(here / "wb"),
        }

    found = everything()
    keys = set(found["tables"])
    assert len(keys) == 3  # the sweep and its two trials
    for name, runs in found.items():
        assert set(runs) == keys, name
        for key, run in runs.items():
            known = found["tables"][key]
            assert dict(run.params) == dict(known.params), name
            assert run.metrics == pytest.approx(known.metrics, rel=1e-6), name
            for curve, points in known.curves.items():
                assert dict(run.curves[curve]) == pytest.approx(dict(points), rel=1e-6), name
    trial = next(run for key, run in found["wandb"].items() if "/trial/" in key)
    assert {"epoch/train_loss", "epoch/held_out_accuracy"} <= set(trial.curves)
    for _ in range(2):
        done = inside("publish", "mini.yaml", "--home", here / "home")
        assert done.stdout == "3 runs of mini are in the tracker.\n"
        assert everything() == found


def test_the_sampler_of_the_page_goes_where_it_was_good(here):
    suggest = load_sampler("nearby:suggest")
    seen = [Seen((x / 10,), -abs(x / 10 - 0.3)) for x in range(10)]
    found = [suggest(seen, ["lr"], seed)[0] for seed in range(100)]
    assert sum(abs(x - 0.3) < 0.2 for x in found) > 80  # two standard deviations have 95 %


BAD_SAMPLERS = {
    "lambda seen, dimensions, seed: [0.5]": "3 dimensions, 0 points, .*: it returned 1 numbers",
    "lambda seen, dimensions, seed: [1.0] * len(dimensions)": "it returned 1; coordinates are",
    "lambda seen, dimensions, seed: None": "it returned NoneType, not one number for each",
    "lambda seen, dimensions, seed: [random.random() for _ in dimensions]": "a second call sugg",
}


@pytest.mark.parametrize("code", BAD_SAMPLERS)
def test_a_sampler_that_breaks_its_contract_is_told_how(code):
    with pytest.raises(AssertionError, match=BAD_SAMPLERS[code]):
        check_sampler(eval(code))


def sampled(folder, trials: int, sampler: str = "nearby:suggest"):
    """A spec with a sampler in a file."""
    edits = {"storage: embedded": f"storage: file://{folder}/store"}
    asked = {"sampler: random": f"sampler: {sampler}", "trials: 16": f"trials: {trials}"}
    return mini_text(**edits | ONE_SLOT | FEW | {"tracking: embedded": "tracking: off"} | asked)


def test_a_search_goes_on_from_its_points_and_edited_code_is_another(here):
    basis = some_basis()
    spec, store = parse(sampled(here, 20), "x"), open_store("memory://")
    first = PluginSearch(store, spec, basis)
    for number in range(12):
        trial = first.next()
        made = ingredient(trial.key, scores(10 + number, 100))
        create_record(store, layout.manifest(trial.key), msgspec.structs.replace(made, trial=trial))
        first.over(trial.key)
    running = [first.next(), first.next()]
    again = PluginSearch(store, spec, basis)  # after a crash
    assert (again.left, read_state(store, spec, basis).unsuggested) == (8, 6)
    assert [again.next(), again.next()] == running
    assert again.next() == first.next()  # the same arguments, the same point
    assert [t.index for t in pool_trials(store, spec, basis)] == list(range(15))
    rest = [again.next() for _ in range(5)]
    assert [t.index for t in rest] == list(range(15, 20))
    assert again.next() is None
    with (here / "nearby.py").open("a") as file:
        file.write("\n# edited\n")
    plugins.load.cache_clear()
    edited = parse(sampled(here, 20), "x")
    assert search_key(edited, basis) != search_key(spec, basis)
    other = PluginSearch(store, edited, basis)
    assert other.left == 20
    assert other.next().key == pool_trials(store, spec, basis)[0].key  # an equal trial


def test_a_sweep_with_a_sampler_in_a_file_and_one_that_breaks_on_the_way(here, without_ray):
    (here / "mini.yaml").write_text(sampled(here, 2))
    done = inside("sweep", "mini.yaml", "--home", here / "home")
    assert "2 trained, 0 found in the store" in done.stderr
    again = inside("sweep", "mini.yaml", "--home", here / "home")
    assert "2 in the store, 0 to train" in again.stderr
    (here / "bad.py").write_text("def suggest(seen, dimensions, seed):\n    return 1 / 0\n")
    (here / "bad.yaml").write_text(sampled(here, 2, "bad:suggest"))
    broken = inside("sweep", "bad.yaml", "--home", here / "home", check=False)
    said = " ".join(broken.stderr.split())
    assert broken.returncode == 1
    assert "sampler 'bad:suggest' raised ZeroDivisionError: division by zero" in said
    assert "bad.py:2). Finished trials are kept" in said


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        ("sobol", "'sobol' is not allowed: write random, qmc, tpe, or module:name for your own"),
        ("away:suggest", "there is no module 'away'"),
    ],
)
def test_a_sampler_that_is_not_there_is_named(here, sampler, says):
    with pytest.raises(ConfigError, match=says):
        parse(sampled(here, 2, sampler), "x")
    (here / "number.py").write_text("NUMBER = 1")
    with pytest.raises(ConfigError, match=r"sampler 'number:NUMBER' .* is int, which cannot be"):
        load_sampler("number:NUMBER")


BROKEN = {
    "raises": "def choose(selection, earlier, options):\n    return [1 / 0]\n",
    "no list": "def choose(selection, earlier, options):\n    return None\n",
    "other name": "def choose(selection, earlier, options):\n"
    "    return single(selection, 'greedy', mean_of(selection.pool.checkpoints))\n",
    "twice": "def choose(selection, earlier, options):\n"
    "    return 2 * single(selection, 'mine', mean_of(selection.pool.checkpoints))\n",
    "foreign": "def choose(selection, earlier, options):\n"
    "    made = single(selection, 'mine', mean_of(selection.pool.checkpoints))\n"
    "    return [structs.replace(made[0], candidate=mean_of(['f' * 64]))]\n",
}
SAYS = {
    "raises": r"recipe 'broken:MINE' \(.*broken.py\) raised ZeroDivisionError: division by zero "
    r"\(.*broken.py:\d+\). Without it",
    "no list": "it returned NoneType, not a list of Outcome",
    "other name": "its outcome 'greedy' is of recipe 'greedy', not 'mine'",
    "twice": "there are two outcomes of the name 'mine'",
    "foreign": "its outcome 'mine' has weights that are not in the pool",
}


def write(here, body: str, **fields: str) -> None:
    about = {"name": "'mine'", "kind": "'soup'"} | fields
    (here / "broken.py").write_text(
        "from msgspec import structs\n"
        "from soupray.core.candidates import mean_of\n"
        "from soupray.recipes.recipe import Recipe, single\n"
        f"{body}\n"
        f"MINE = Recipe(name={about['name']}, summary='', when='', paper='', "
        f"kind={about['kind']}, costs='', choose=choose)\n"
    )


@pytest.mark.parametrize("how", BROKEN)
def test_a_recipe_that_breaks_its_contract_is_named(here, tmp_path, how):
    write(here, BROKEN[how])
    world = toy(tmp_path / "world")
    with pytest.raises(EvaluationError, match=SAYS[how]):
        run_recipes(world.selection(), {"best_single": {}, "broken:MINE": {}})


@pytest.mark.parametrize(
    ("named", "text", "says"),
    [
        ("away:X", None, "there is no module 'away', neither in .*mine nor installed"),
        ("broken:MIEN", "MINE = 1", r"broken.py has no 'MIEN'. Did you mean broken:MINE\?"),
        ("broken:MINE", "MINE = 1", r"is int, not a soupray.recipes.recipe.Recipe object"),
        ("broken:MINE", "import nowhere", "its import needs 'nowhere', which is not there"),
        ("broken:MINE", "a = 1\nb = a / 0", r"raised ZeroDivisionError: .*broken.py:2\)"),
        ("broken:MINE", "def f(:", "its import raised SyntaxError"),
    ],
)
def test_a_recipe_that_is_not_there_is_named_with_what_is(here, named, text, says):
    if text is not None:
        (here / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=says):
        find_recipe(named)


def test_names_of_recipes_are_their_own(here):
    write(here, "choose = None", name="'greedy'")
    with pytest.raises(ConfigError, match=r"has the name 'greedy'\. Allowed: lower-case letters"):
        find_recipe("broken:MINE")


def test_options_of_a_plugin_are_checked_before_anything_is_evaluated(here, run):
    spec = load(run.spec).model_copy(update={"recipes": {"trimmed:TRIMMED": {"share": 2.0}}})
    with pytest.raises(ConfigError, match=r"recipe trimmed: share = 2.0. Allowed: 0 to 1"):
        chosen_recipes([spec], [], False)
    unknown = {"trimmed:TRIMMED": {"shares": 0.5}}
    with pytest.raises(ConfigError, match="recipe trimmed has no option 'shares'"):
        chosen_recipes([spec.model_copy(update={"recipes": unknown})], [], False)
    good = spec.model_copy(update={"recipes": {"trimmed:TRIMMED": {}, "greedy": {}}})
    assert set(chosen_recipes([good], [], False)) == {"trimmed:TRIMMED", "greedy"}
    assert "trimmed:TRIMMED" in chosen_recipes([good], [], True)
    assert isinstance(find_recipe("trimmed:TRIMMED"), Recipe)
    assert GROUP == "soupray.recipes"
