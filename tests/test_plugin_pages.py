"""The pages about plug-ins: each example as a wheel of its own, found, tested and used by a run."""

import hashlib
import inspect
import io
import json
import math
import random
import re
import sys
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT, inside, leaderboard
from own_code import PORTS, files_of, forget, installed_wheels, standing_in
from PIL import Image
from safetensors.torch import load_file

from soupray.core import plugins
from soupray.data.cache import open_data
from soupray.recipes import load_recipes
from soupray.reporting.tracker import load_trackers
from soupray.search.plugged import load_sampler
from soupray.search.state import find_basis, pool_trials
from soupray.spec.plugged_in import load_code
from soupray.spec.schema import json_schema
from soupray.spec.sweep_spec import load, parse
from soupray.spec.yaml import parse_yaml
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of

LETTERS = files_of("index")["letters.yaml"]
EPOCHS, ANCHOR_EPOCHS, TRIALS = 3, 4, 3


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return installed_wheels(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def away(site, tmp_path, monkeypatch):
    """An empty folder: all code comes from the installed wheels."""
    before = set(sys.modules)
    with standing_in(tmp_path / "away", {}, monkeypatch) as folder:
        monkeypatch.syspath_prepend(site)
        plugins.forget()
        try:
            yield folder
        finally:
            forget(site, before)


def declared(page: str) -> tuple[str, str, str, str]:
    """What the wheel of a page declares: its name, the group, the entry point and the code."""
    project = tomllib.loads(files_of(page)["pyproject.toml"])["project"]
    ((group, points),) = project["entry-points"].items()
    ((name, value),) = points.items()
    return project["name"], group, name, value


@pytest.mark.parametrize("page", PORTS)
def test_the_wheel_is_found_by_its_entry_point_and_keeps_its_contract(page, away, site, tmp_path):
    package, group, name, value = declared(page)
    module, _, attribute = value.partition(":")
    found = plugins.load(group, name)
    assert found.origin == f"{package} 1.0"
    assert found.value is getattr(sys.modules[module], attribute)
    assert Path(sys.modules[module].__file__).parent == site
    files = files_of(page)
    (test,) = [file for file in files if file.startswith("test_")]
    space: dict = {}
    exec(compile(files[test], test, "exec"), space)
    (check,) = [one for key, one in space.items() if key.startswith("test_")]
    check(**({"tmp_path": tmp_path} if inspect.signature(check).parameters else {}))


def test_editors_know_the_shifts_that_are_installed(away):
    digits = parse_yaml((ROOT / "sweeps" / "digits.yaml").read_text(), "x")
    digits["data"]["shifts"] = ["inverted", "jpeg", "artefacts:jpeg"]
    assert list(jsonschema.Draft7Validator(json_schema()).iter_errors(digits)) == []
    digits["data"]["shifts"] = ["jpg"]
    assert len(list(jsonschema.Draft7Validator(json_schema()).iter_errors(digits))) == 1


@pytest.mark.parametrize("page", PORTS)
def test_the_code_is_used_in_a_spec_both_ways(page, away):
    """What a sweep does first: the spec is read, and all that it names is imported."""
    _, group, name, value = declared(page)
    text = (ROOT / "docs" / "plugins" / f"{page}.md").read_text()
    pieces = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    keys = []
    for piece, named in zip(pieces, (value, name), strict=True):
        assert re.search(rf"[\s\"{{]{re.escape(named)}[,}}\]\s\":]", piece), piece
        whole = merged(parse_yaml(LETTERS, "x"), parse_yaml(piece, "x"))
        assert list(jsonschema.Draft7Validator(json_schema()).iter_errors(whole)) == []
        spec = parse(json.dumps(whole), "x")
        load_code(spec.functions)
        load_recipes(spec.recipes)
        load_trackers(spec)
        task_of(spec.task)
        if spec.search.code:
            load_sampler(spec.search.sampler)
        keys.append(spec.digest)
    # The version of the package is a part of the digest of its code, and that is one of the spec.
    in_none = ("soupray.recipes", "soupray.trackers")
    assert (keys[0] == keys[1]) == (group in in_none)


def merged(whole: dict, piece: dict) -> dict:
    """A spec in which a piece replaces what it names."""
    made = dict(whole)
    for key, value in piece.items():
        inner = isinstance(value, dict) and key in ("task", "data", "search")
        made[key] = merged(whole[key], value) if inner else value
    return made


def all_nine(folder: Path) -> str:
    """The spec of the overview with all nine, by the names of their entry points."""
    edits = {
        "convnet:make_model": "convnet",
        "letters:make_dataset": "letters",
        "[rotated, small]": "[small, jpeg]",
        "trials: 3": f"trials: {TRIALS}\n  sampler: nearby",
        "epochs: 2": f"epochs: {ANCHOR_EPOCHS}",
        "{uniform: {}, greedy: {}, vrf: {}}": "{uniform: {}, trimmed: {share: 0.5}}",
    }
    text = LETTERS
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    return text + (
        f"metric: brier\nloss: gce\naugmentation: erase\nstorage: file://{folder}/store\n"
        'tracking: "off"\ntrackers: {tables: {folder: tables}}\n'
    )


class Recorded:
    """A function with what it got and returned."""

    def __init__(self, function) -> None:
        self.function, self.calls = function, []

    def __call__(self, first, second):
        given = first.detach().clone()
        made = self.function(first, second)
        self.calls.append((given, second, made.detach()))
        return made


def recorded(module: str, name: str, monkeypatch) -> Recorded:
    __import__(module)
    made = Recorded(getattr(sys.modules[module], name))
    monkeypatch.setattr(sys.modules[module], name, made)
    return made


def test_one_run_uses_all_nine_wheels(away, monkeypatch, without_ray):
    erased, losses = (
        recorded(*of, monkeypatch) for of in (("erasing", "erase"), ("robust", "gce"))
    )
    plugins.forget()
    (away / "letters.yaml").write_text(all_nine(away))
    inside("sweep", "letters.yaml", "--home", "home")
    check_training(away, erased.calls, losses.calls)
    inside("soup", "letters.yaml", "--home", "home", "--output", "out")
    check_leaderboard(away)


def tracked(folder: Path, kind: str) -> list[dict]:
    """The runs of a kind, as the tracker of the page keeps them."""
    files = (folder / "tables" / "letters").glob("*.json")
    runs = [json.loads(file.read_text()) for file in files if file.name.startswith("letters")]
    return [run for run in runs if run["kind"] == kind]


def check_training(folder: Path, erased: list, losses: list) -> None:
    """Model, augmentation, loss, sampler and tracker, from what they got and returned."""
    import convnet

    spec = load(folder / "letters.yaml")
    steps = math.ceil(120 / spec.search.space.batch_size)
    assert len(erased) == len(losses) == steps * (ANCHOR_EPOCHS + TRIALS * EPOCHS)
    changed = [float((a != b).flatten(1).any(1).float().mean()) for a, _, b in erased]
    assert 0.4 < np.mean(changed) < 0.6  # of the images: half
    hidden = np.mean([float((a != b).float().mean()) for a, _, b in erased])
    assert 0.5 * 0.25**2 < hidden < 0.5 * 0.5**2  # of the pixels: 1/16 to 1/4 in half of them
    # The outputs in the first step of a trial are those of theta_0 for the erased images.
    store = open_store(f"file://{folder}/store")
    init = Checkpoints(store, folder / "w").load(find_basis(store, spec).init.sha256)
    net = convnet.make_model(4, 12).train()
    theirs = {k.replace("head.", "8.").removeprefix("body."): t for k, t in init.items()}
    net.load_state_dict(theirs, strict=False)  # but for the counters of BatchNorm
    first = ANCHOR_EPOCHS * steps
    outputs, targets, each = losses[first]
    with torch.no_grad():
        assert torch.allclose(net((erased[first][2] / 255 - 0.5) / 0.5), outputs, atol=1e-4)
    p = torch.softmax(outputs.double(), 1).numpy()[np.arange(len(targets)), targets]
    assert each.numpy() == pytest.approx((1 - p**0.7) / 0.7, abs=1e-5)
    # The tracker shows the mean of these losses, and the points of the sampler.
    shown = {run["key"]: run for run in tracked(folder, "trial")}
    planned = pool_trials(store, spec, find_basis(store, spec))
    trials = {one.index: shown.pop(f"letters/trial/{one.key}") for one in planned}
    assert (len(trials), shown) == (TRIALS, {})
    whole = torch.cat([made for _, _, made in losses[first : first + steps]])
    assert trials[0]["curves"]["epoch/train_loss"][0][1] == pytest.approx(float(whole.mean()))
    for index, run in trials.items():
        seed = int.from_bytes(hashlib.sha256(f"{spec.seed} {index}".encode()).digest()[:4])
        x = random.Random(seed).random()  # with fewer than five trials before
        assert float(run["params"]["trial.lr"]) == pytest.approx(1e-3 * 10**x, rel=1e-5)


def check_leaderboard(folder: Path) -> None:
    """Data, shift, metric and recipe, from the exported weights and the modules alone."""
    import calibrated
    import convnet
    import letters

    entries = {entry["name"]: entry for entry in leaderboard(folder / "out")}
    assert {run["name"] for run in tracked(folder, "entry")} == set(entries)
    best = {
        run["key"].rpartition("/")[2]: max(
            value for _, value in run["curves"]["epoch/held_out_brier"]
        )
        for run in tracked(folder, "trial")
    }
    used = set(entries["trimmed"]["ingredients"])
    assert used == set(sorted(best, key=best.get)[-2:])  # of three, the better half, rounded
    inside("export", "letters:uniform", "--home", "home", "--output", "exported")
    net = convnet.make_model(4, 12)
    net.load_state_dict(load_file(folder / "exported" / "model.safetensors"))
    test = letters.make_dataset("test")
    pixels = np.stack([np.asarray(test[row][0]) for row in range(len(test))])
    labels = np.array([letters.NAMES.index(test[row][1]) for row in range(len(test))])
    data = open_data(load(folder / "letters.yaml"), folder / "cache")
    shifted = np.array(data.samples(data.split("jpeg"))[0])[:, 0]
    qualities = [quality_of(*pair) for pair in zip(pixels, shifted, strict=True)]
    assert set(qualities) == set(range(5, 16))
    for split, images in (("test", pixels), ("jpeg", shifted)):
        inputs = (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            logits = net.eval()(inputs).numpy()
        scores = entries["uniform"]
        said = scores["test"] if split == "test" else scores["shifts"][split]
        assert said["correct"] == (logits.argmax(axis=1) == labels).sum()
        brier = calibrated.brier(logits, labels).mean()
        assert said["others"]["brier"] == pytest.approx(brier, abs=1e-5)


def quality_of(image: np.ndarray, saved: np.ndarray) -> int:
    """The first quality at which Pillow saves an image as the other one."""
    for quality in range(1, 100):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        if np.array_equal(np.asarray(Image.open(file)), saved):
            return quality
    raise AssertionError("no JPEG of the image")
