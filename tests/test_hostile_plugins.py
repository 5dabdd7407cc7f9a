"""Plug-ins that are not what they should be: each is refused by its name, before harm is done."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import FEW, ONE_SLOT, inside, mini_text
from own_code import files_of, standing_in
from shared import some_basis

from soupray.core import plugins
from soupray.core.errors import ConfigError, EvaluationError
from soupray.data.cache import open_data
from soupray.recipes import RECIPES, find_recipe, run_recipes, total_cost
from soupray.recipes.recipe import PoolSize
from soupray.search.plugged import PluginSearch
from soupray.spec.plugged_in import load_code
from soupray.spec.sweep_spec import parse
from soupray.store.objects import open_store
from soupray.tasks import task_of
from soupray.testing.linear import toy

LETTERS = files_of("index")["letters.yaml"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    files = files_of("task", "data", "tracker")
    with standing_in(tmp_path / "mine", files, monkeypatch) as folder:
        yield folder


def code(folder, text: str) -> None:
    (folder / "own.py").write_text(text)
    plugins.forget()
    sys.modules.pop("own", None)


def declare(folder, package: str, **groups: dict[str, str]) -> None:
    """An installed package with these entry points, whose code is in the folder."""
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for group, points in groups.items():
        lines += [f"[soupray.{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))
    plugins.forget()


def edited(**edits: str):
    text = LETTERS
    for old, new in edits.items():
        text = text.replace(old, new)
    return text


# Names


def test_a_name_that_two_packages_declare_is_refused_where_it_is_used(here):
    code(here, "def one(outputs, targets): return 1.0\ndef two(outputs, targets): return 0.5\n")
    declare(here, "first", metrics={"mine": "own:one", "other": "own:one"})
    declare(here, "second", metrics={"mine": "own:two"})
    for metric in ("other", "own:two", "accuracy"):
        assert parse(f"{LETTERS}metric: {metric}\n", "x").metric == metric
    both = r"(first 1.0 and second|second 1.0 and first) 1.0 both declare 'mine'"
    with pytest.raises(
        ConfigError, match=rf"{both}. Uninstall one of them, or name the code as own"
    ):
        parse(f"{LETTERS}metric: mine\n", "x")


def test_soupray_s_own_names_stay_its_own(here):
    """Whatever is installed, a spec means what it meant."""
    before = parse(LETTERS.replace("small]", "inverted]"), "x")
    code(here, "def mine(*given): return given[0] * 0\n")
    point = {"inverted": "own:mine", "accuracy": "own:mine", "random": "own:mine"}
    recipes = {"greedy": "own:mine"}
    declare(here, "taking", shifts=point, metrics=point, samplers=point, recipes=recipes)
    after = parse(LETTERS.replace("small]", "inverted]"), "x")
    assert (after.digest, after.functions, after.search.code) == (before.digest, [], None)
    assert find_recipe("greedy") in RECIPES


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("own", "declares 'mine' as 'own'. An entry point is package.module:name: correct it"),
        ("own:", "declares 'mine' as 'own:'. An entry point is package.module:name"),
        ("own:gone", r"soupray.metrics 'mine' of odd 1.0: .*own.py has no 'gone'"),
        ("own:Class.gone", r"soupray.metrics 'mine' of odd 1.0: .*own.py has no 'Class.gone'"),
        ("away:metric", "'mine' of odd 1.0: there is no module 'away'"),
        ("ends:metric", r"'mine' of odd 1.0: its import raised SystemExit: 3 \(.*ends.py:2\)"),
        ("raises:metric", r"'mine' of odd 1.0: its import raised ZeroDivisionError: .*raises.py:1"),
        ("needs:metric", "'mine' of odd 1.0: its import needs 'nowhere', which is not there"),
        (
            "own:number",
            r"'mine' \(odd 1.0\) is int, which cannot be called. Name a function of \(o",
        ),
        (
            "own:one",
            r"does not take \(outputs, targets\): too many positional arguments. Its param",
        ),
        ("own:three", r"does not take \(outputs, targets\): missing a required argument: 'c'"),
        (
            "own:named",
            r"too many positional arguments. Its parameters are \(\*, a, b\)",
        ),
    ],
)
def test_an_entry_point_that_is_no_function_of_its_port_is_named(here, value, says):
    code(here, "number = 1\nclass Class: ...\ndef one(a): ...\ndef three(a, b, c): ...\n"
         "def named(*, a, b): ...\n")  # fmt: skip
    (here / "ends.py").write_text("import sys\nsys.exit(3)\n")
    (here / "raises.py").write_text("1 / 0\n")
    (here / "needs.py").write_text("import nowhere\n")
    declare(here, "odd", metrics={"mine": value})
    with pytest.raises(ConfigError, match=says):
        load_code(parse(f"{LETTERS}metric: mine\n", "x").functions)


def test_an_entry_point_may_name_what_is_inside_a_class_and_have_capital_letters(here):
    code(here, "class My:\n    @staticmethod\n    def metric(outputs, targets): return 0.5\n"
         "def Fog(images, generator): return images / 2\n")  # fmt: skip
    declare(here, "fine", metrics={"My.Metric": "own:My.metric"}, shifts={"Fog": "own:Fog"})
    spec = parse(LETTERS.replace("small]", "Fog]") + "metric: My.Metric\n", "x")
    load_code(spec.functions)
    data = open_data(spec, here / "cache")
    half, whole = (data.samples(data.split(name))[0] for name in ("fog", "test"))
    assert np.array_equal(half, np.rint(np.array(whole, np.float32) / 2).astype(np.uint8))


@pytest.mark.parametrize("name", ["_fog", "néant", "heavy fog"])
def test_a_shift_whose_name_is_that_of_no_split_is_refused(here, name):
    declare(here, "odd", shifts={name: "own:fog"})
    code(here, "def fog(images, generator): return images\n")
    with pytest.raises(ConfigError, match=rf"the split would be called '{name}'; .*another name"):
        parse(LETTERS.replace("small]", f"{name}]"), "x")


# What is called with the values of a spec


def test_what_a_function_changes_in_its_args_is_its_own_copy(here):
    code(here, """
import convnet, letters
def make_model(num_classes, widths):
    return convnet.make_model(num_classes, widths.pop())
def make_dataset(split, counts):
    return letters.make_dataset(split, counts.pop())
""")  # fmt: skip
    text = LETTERS.replace("convnet:make_model\n  args: {width: 12}",
                           "own:make_model\n  args: {widths: [12]}")  # fmt: skip
    text = text.replace("letters:make_dataset", "own:make_dataset\n  args: {counts: [80]}")
    spec = parse(text, "x")
    before = spec.digest
    assert task_of(spec.task).init()["head.weight"].shape == (4, 16 * 12)
    sizes = [split.size for split in open_data(spec, here / "cache").splits]
    assert sizes == [40, 40, 80, 80, 80]
    assert spec.digest == before


def test_a_dataset_may_use_its_memory_again(here):
    """One array for all images, and one for all targets: each sample has its own values."""
    code(here, """
import numpy as np
class Data:
    def __init__(self, split):
        self.split, self.pixels = split, np.zeros((32, 32), np.uint8)
        self.target = np.zeros(4, np.uint8)
    def __len__(self): return 60
    def __getitem__(self, row):
        self.pixels[:] = row + 100 * (self.split == "test")
        self.target[:] = [row >> k & 1 for k in range(4)]
        return self.pixels, self.target
""")  # fmt: skip
    text = LETTERS.replace("letters:make_dataset", "own:Data").replace("[rotated, small]", "[]")
    text = text.replace("recipes: {uniform: {}, greedy: {}, vrf: {}}", "recipes: {uniform: {}}")
    data = open_data(parse(f"{text}objective: multi_label\n", "x"), here / "cache")
    pixels, targets = data.samples(data.split("test"))
    rows = pixels[:, 0, 0, 0].astype(int) - 100
    assert sorted(rows) == list(range(60))
    assert [[row >> k & 1 for k in range(4)] for row in rows] == targets.tolist()


MODELS = {
    "x.mul_(2)": "forward changes its inputs, which others read too. Leave operations in place",
    "x.relu_()": "forward changes its inputs",
    "x / 0": "its outputs are NaN or infinite for inputs from -1 to 1",
}


@pytest.mark.parametrize("body", MODELS)
def test_a_model_that_harms_its_inputs_is_named(here, body):
    code(here, f"""
from torch import nn
class First(nn.Module):
    def forward(self, x): return {body}
def model(): return nn.Sequential(First(), nn.Flatten(), nn.Linear(1024, 4))
""")  # fmt: skip
    text = LETTERS.replace("convnet:make_model\n  args: {width: 12}", "own:model")
    with pytest.raises(ConfigError, match=rf"'own:model' \(.*own.py\): {MODELS[body]}"):
        task_of(parse(text, "x").task)


# Samplers


def search(folder, text: str) -> PluginSearch:
    code(folder, f"import random, numpy as np, torch\n{text}\n")
    asked = {"sampler: random": "sampler: own:suggest", "trials: 16": "trials: 4"}
    store = {
        "storage: embedded": f"storage: file://{folder}/store",
        "tracking: embedded": "tracking: off",
    }
    spec = parse(mini_text(**store | ONE_SLOT | FEW | asked), "x")
    return PluginSearch(open_store("memory://"), spec, some_basis())


POINTS = {
    "def suggest(seen, dimensions, seed): return (0.5 for _ in dimensions)": 0.5,
    "def suggest(seen, dimensions, seed): return np.full(len(dimensions), 0.25)": 0.25,
    "def suggest(seen, dimensions, seed): return torch.full((len(dimensions),), 0.75)": 0.75,
}


@pytest.mark.parametrize("text", POINTS)
def test_a_point_may_be_any_row_of_numbers(here, text):
    mine = search(here, text)
    trial = mine.next()
    assert trial is not None
    assert set(mine._seen[0].point) == {POINTS[text]}
    assert len(mine._seen[0].point) == len(mine._dimensions) > 1


BAD_POINTS = {
    "return None": "it returned NoneType, not one number for each dimension",
    "return '0' * len(dimensions)": "it returned str, not one number",
    "return {x: 0.5 for x in dimensions}": "it returned dict, not one number",
    "return {0.1, 0.2}": "it returned set, not one number",
    "return [0.5]": r"it returned 1 numbers for \d+ dimensions",
    "return [float('nan')] * len(dimensions)": "it returned nan; coordinates are from 0",
    "return 1 / 0": r"raised ZeroDivisionError: division by zero \(.*own.py:2\)",
    "return torch.zeros(len(dimensions), 2)": "it returned Tensor, not one number",
}


@pytest.mark.parametrize("body", BAD_POINTS)
def test_a_sampler_that_returns_no_point_ends_the_search_by_its_name(here, body):
    mine = search(here, f"def suggest(seen, dimensions, seed): {body}")
    assert mine.next() is None
    said = str(mine.problem)
    assert said.startswith("sampler 'own:suggest'")
    assert "Finished trials are kept: correct it, and run the same command again" in said
    with pytest.raises(type(mine.problem), match=BAD_POINTS[body]):
        raise mine.problem


def test_a_sampler_of_other_parameters_is_refused_first(here):
    with pytest.raises(
        ConfigError, match=r"'own:suggest' \(.*\) does not take \(seen, dimensions, s"
    ):
        search(here, "def suggest(study): return []")


# Recipes


def recipe(folder, body: str, **fields: str) -> None:
    about = {"name": "'mine'", "kind": "'soup'", "choose": "choose"} | fields
    given = ", ".join(f"{key}={text}" for key, text in about.items())
    code(folder, f"""
import numpy as np
from msgspec import structs
from soupray.core.candidates import mean_of
from soupray.recipes.recipe import Cost, Recipe, single
def choose(selection, earlier, options):
    made = single(selection, 'mine', mean_of(selection.pool.checkpoints))
    {body}
def generous(selection, earlier, options):
    yield from choose(selection, earlier, options)
MINE = Recipe(summary='', when='', paper='', costs='', {given})
""")  # fmt: skip


BAD_OUTCOMES = {
    "return [structs.replace(made[0], held_out=None)]": "its outcome 'mine' cannot be stored: .*he",
    "return [structs.replace(made[0], options={'x': float('nan')})]": "cannot be stored|is another",
    "return [structs.replace(made[0], options={'x': np.float64(1)})]": "cannot be stored: .*float",
    "return [structs.replace(made[0], name=7)]": "its outcome '7' cannot be stored",
    "return [structs.replace(made[0], candidate='f' * 64)]": "cannot be stored",
    "return [structs.replace(made[0], notes=['a'])]": "is another one when it is stored and read",
    "return made + [None]": "it returned list, not a list of Outcome",
    "return tuple(made)": "it returned tuple, not a list of Outcome",
    "return selection.pool.ingredients[0].trial.hparams.clear() or made":
        r"changed the hyperparameters of trials in the pool. Copy what it changes",
}  # fmt: skip


@pytest.mark.parametrize("body", BAD_OUTCOMES)
def test_an_outcome_that_could_not_be_read_again_is_refused_by_name(here, tmp_path, body):
    recipe(here, body)
    world = toy(tmp_path / "world")
    with pytest.raises(EvaluationError, match=BAD_OUTCOMES[body]) as error:
        run_recipes(world.selection(), {"own:MINE": {}})
    assert str(error.value).startswith("recipe 'own:MINE' (")


def test_a_recipe_that_is_a_generator_is_refused_by_name(here, tmp_path):
    recipe(here, "return made", choose="generous")
    with pytest.raises(
        EvaluationError, match=r"'own:MINE' .*: it returned generator, not a list of"
    ):
        run_recipes(toy(tmp_path / "world").selection(), {"own:MINE": {}})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "'Mine'"}, "has the name 'Mine'. Allowed: lower-case letters, digits and _"),
        ({"name": "None"}, "has the name None. Allowed"),
        ({"kind": "'soups'"}, "has the kind 'soups'. Allowed: baseline, soup, line, ensemble"),
        ({"options": "dict"}, r"has the options <class 'dict'>. Allowed: a subclass of soupray"),
        ({"choose": "None"}, "choose is NoneType, which cannot be called"),
        (
            {"choose": "lambda pool: []"},
            r"choose does not take \(selection, earlier, options\): too",
        ),
        ({"cost": "Cost(scored=1)"}, "cost is Cost, which cannot be called"),
    ],
)
def test_a_recipe_with_a_wrong_field_is_refused_by_name(here, fields, says):
    recipe(here, "return made", **fields)
    with pytest.raises(ConfigError, match=rf"^recipe 'own:MINE' \(.*own.py\).*{says}"):
        find_recipe("own:MINE")


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        ("lambda pool, options: 1 / 0", "cost raised ZeroDivisionError"),
        ("lambda pool, options: None", "cost returned None. Return a soupray.recipes.recipe.Cost"),
        ("lambda pool, options: Cost(scored=-1)", r"cost returned Cost\(.*scored=-1.* from 0"),
        (
            "lambda pool, options: Cost(scored=0.5)",
            r"cost returned Cost\(.*scored=0.5.* of whole numbers",
        ),
    ],
)
def test_a_cost_that_is_none_is_named_in_the_dry_run(here, cost, says):
    recipe(here, "return made", cost=cost)
    with pytest.raises(ConfigError, match=rf"^recipe 'own:MINE' \(.*own.py\): {says}"):
        total_cost(PoolSize(4, 40), {"own:MINE": {}})


# Losses and augmentations in a sweep


def test_a_trial_whose_own_loss_is_nan_says_so_and_mended_code_trains_again(
    here, without_ray, tmp_path
):
    code(here, "def loss(outputs, targets): return outputs.sum(1) * float('nan')\n")
    more = f"loss: own:loss\nstorage: file://{tmp_path}/store\ntracking: 'off'\n"
    text = LETTERS.replace("{trained: {lr: 3.0e-3, epochs: 2}}", "{file: start.pt}")
    text = text.replace("trials: 3", "trials: 1").replace("epochs: 3", "epochs: 1")
    (here / "letters.yaml").write_text(f"{text}{more}")
    import convnet

    torch.manual_seed(0)
    torch.save(convnet.make_model(4, 12).state_dict(), here / "start.pt")
    broken = inside("sweep", "letters.yaml", "--home", "home", check=False)
    said = " ".join(broken.stderr.split())
    assert "training loss is nan in epoch 1, step 1, by loss 'own:loss'" in said
    mended = "def loss(a, b): return -a.log_softmax(1).gather(1, b[:, None])[:, 0]\n"
    code(here, mended)
    done = inside("sweep", "letters.yaml", "--home", "home")
    assert "1 trained, 0 found in the store" in done.stderr


TRACKER = """
from soupray.reporting.tracker import MemoryTracker
class Fails(MemoryTracker):
    def __init__(self, sweep, at):
        super().__init__()
        self.at = at
        self.fail("open")
    def fail(self, call):
        if self.at == call:
            raise OSError("the disk is full")
    def write(self, runs):
        self.fail("write")
    def attach(self, key, files):
        self.fail("attach")
"""


@pytest.mark.parametrize(("at", "writes"), [("open", 1), ("attach", 0)])
def test_a_tracker_that_fails_stops_neither_the_sweep_nor_the_others(
    here, without_ray, tmp_path, at, writes
):
    code(here, TRACKER)
    trackers = f"{{own:Fails: {{at: {at}}}, tables:Tables: {{folder: shown}}}}"
    more = f"storage: file://{tmp_path}/store\ntracking: 'off'\ntrackers: {trackers}\n"
    text = LETTERS.replace("trials: 3", "trials: 1").replace("epochs: 3", "epochs: 1")
    (here / "letters.yaml").write_text(text + more)
    done = inside("sweep", "letters.yaml", "--home", "home")
    named = "tracker 'own:Fails'"
    assert done.stderr.count(named) == writes
    files = list((here / "shown" / "letters").glob("letters.*json"))
    runs = [json.loads(file.read_text()) for file in files]
    assert sorted(run["kind"] for run in runs) == ["sweep", "trial"]
    assert all(run["finished"] for run in runs)
    published = inside("publish", "letters.yaml", "--home", "home", check=False)
    assert published.returncode == 1
    said = " ".join(published.stderr.split())
    assert f"{named} ({here}/own.py) raised OSError: the disk is full" in said
