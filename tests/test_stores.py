"""A store that version 0.1.0 wrote before its modules had rooms is read, and nothing is repeated.

`tests/stores/store.tar.xz` holds two finished sweeps and their soups, made by commit 6f0448a:
`one` (cascade, all recipes, a network with BatchNorm) and `two` (TPE, ASHA, NLL, a rank split).
`check.json` and `diagnose.json` are what those verbs printed then.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import inside, leaderboard

import soupray
from soupray.core.requests import FileDigest
from soupray.search.state import find_basis
from soupray.services.place import start_services
from soupray.soup.run import Choices, models_of
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.objects import Store, open_store, read_record
from soupray.training.worker import worker_context

STORES = Path(__file__).parent / "stores"


class Old(NamedTuple):
    """The old store in a folder of its own."""

    folder: Path
    store: Store

    def spec(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def run(self, verb: str, name: str, *options: object):
        return inside(verb, self.spec(name), "--home", self.folder / "home", *options)

    def objects(self) -> dict[str, bytes]:
        """What may never change, by path: all but results and leaderboards, which are views."""
        views = ("/results/", "/leaderboards/")
        paths = [p for p in self.store.list("") if not any(view in p for view in views)]
        return {p: self.store.get(p) for p in paths if not p.endswith("/lease.json")}


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(STORES / "store.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    for name in ("one", "two"):
        text = (STORES / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text.replace("/STORE", f"{folder}/store"))
    return Old(folder, open_store(f"file://{folder}/store"))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    """Whatever would train or evaluate fails: there is no Ray at this address."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


ASKED = {"one": ["--all"], "two": ["--greedy", "--ose", "--vrf", "--uniform"]}


def record_files(old: Old, name: str) -> None:
    """Make the files of weights and their digests; version 0.1.0 did it for one entry only."""
    spec = load(old.spec(name))
    (path,) = old.store.list(f"sweeps/{name}/choices")
    models = models_of(read_record(old.store, path, Choices).outcomes)
    workers = worker_context(spec, start_services(spec, old.folder / "home").place).workers()
    held_out = find_basis(old.store, spec).split("held_out")
    workers.measure([FileDigest(model=model) for model in models], held_out)
    for model in models:
        workers.save(model)


@pytest.mark.parametrize("name", ["one", "two"])
def test_sweep_and_soup_go_on_without_training_or_evaluating_anything(old, name):
    record_files(old, name)
    before = old.objects()
    printed = json.loads(old.store.get(layout.results_file(name, "leaderboard.json")))
    swept = old.run("sweep", name)
    assert "4 in the store, 0 to train" in swept.stderr
    output = old.folder / name
    old.run("soup", name, *ASKED[name], "--output", output)
    assert leaderboard(output) == printed
    assert json.loads(old.run("rank", name, "--json").stdout) == printed
    assert old.objects() == before


@pytest.mark.parametrize(
    ("verb", "options"), [("check", ["--pairs", 3]), ("diagnose", ["--pairs", 2])]
)
def test_what_was_measured_is_found_again(old, tmp_path, verb, options):
    before = old.objects()
    where = ["--output", tmp_path] if verb == "diagnose" else []
    said = old.run(verb, "one", *options, *where, "--json").stdout
    assert json.loads(said) == json.loads((STORES / f"{verb}.json").read_text())
    assert old.objects() == before


def test_status_and_rank_import_no_torch(old):
    code = (
        "import sys; from soupray.cli import cli\n"
        "for verb in ('status', 'rank'): cli([verb, *sys.argv[1:]], standalone_mode=False)\n"
        "assert not {'torch', 'matplotlib', 'ray', 'mlflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, old.spec("one"), "--home", old.folder / "home"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "4 of 4 trials done." in said
    assert "greedy" in said


def test_a_sweep_that_stopped_trials_stands_as_it_stood(old):
    status = json.loads(old.run("status", "two", "--json").stdout)
    counts = {n: status[n] for n in ("trials", "complete", "diverged", "stopped", "missing")}
    assert counts == {"trials": 6, "complete": 4, "diverged": 0, "stopped": 2, "missing": 0}


def test_nothing_of_it_is_garbage_and_its_soup_is_rebuilt_to_the_byte(old, tmp_path):
    found = old.run("gc", "one", "--dry-run", "--older-than", 0, "--json").stdout
    assert json.loads(found) == []
    recipes = {}
    for name in ("greedy", "vrf_greedy"):
        path = layout.results_file("one", f"{name}.recipe.json")
        recipes[name] = tmp_path / f"{name}.recipe.json"
        text = old.store.get(path).decode()
        recipes[name].write_text(text.replace("/tmp/fx/store", f"{old.folder}/store"))
    target = tmp_path / "greedy.safetensors"
    home = ("--home", old.folder / "home")
    assert (
        "the same bytes" in inside("rebuild", recipes["greedy"], *home, "--output", target).stdout
    )
    model = soupray.load(recipes["vrf_greedy"], home=old.folder / "home")
    digit = [[[[0] * 8] * 8]]
    assert model(np.array(digit, np.uint8)).sum() == pytest.approx(1)
