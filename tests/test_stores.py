"""A store that version 0.1.0 wrote before its modules had rooms is read, and nothing is repeated.

`tests/stores/store.tar.xz` holds two finished sweeps and their soups, made by commit 6f0448a:
`one` (cascade, all recipes, a network with BatchNorm) and `two` (TPE, ASHA, NLL, a rank split).
`check.json` and `diagnose.json` are what those verbs printed then. Single models of `one` are now
evaluated with estimated BatchNorm statistics too: this is all that is computed.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import inside, leaderboard
from shared import STORES, Old, unpacked

import soupray
from soupray.core.candidates import as_trained
from soupray.store import layout

BOARD = "leaderboard.json"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    return unpacked(tmp_path_factory.mktemp("old"))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    """Whatever would train or evaluate fails: there is no Ray at this address."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


THEN = (
    *("uniform", "greedy", "replacement", "pruned", "learned", "learned-by-layer", "fisher"),
    *("model-stock", "wise-ft", "lines", "ensemble", "greedy-ensemble", "ose", "vrf"),
)
"""All recipes of that version."""

ASKED = {"one": [f"--{name}" for name in THEN], "two": ["--greedy", "--ose", "--vrf", "--uniform"]}


def rounded(found):
    """Numbers to twelve digits: another processor has other low bits."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return float(f"{found:.12g}") if isinstance(found, float) else found


GONE = {
    "one": {"ensemble", "greedy_ensemble"},  # one trial is better with estimated statistics
    "two": {"greedy", "ose(best_single, logits)", "ose(best_single, probs)", "vrf(best_single)"},
}
"""Entries that are others now: in `two` the best model, too, is better with estimated ones."""


@pytest.mark.parametrize("name", ["one", "two"])
def test_sweep_and_soup_go_on_and_only_single_models_are_evaluated_anew(old, computed, name):
    before = old.objects()
    printed = {e["name"]: e for e in json.loads(old.store.get(layout.results_file(name, BOARD)))}
    assert "4 in the store, 0 to train" in old.run("sweep", name).stderr
    output = old.folder / name
    old.run("soup", name, *ASKED[name], "--output", output)
    found = {e["name"]: e for e in leaderboard(output)}
    assert json.loads(old.run("rank", name, "--json").stdout)["entries"] == leaderboard(output)
    assert len(set(computed)) == 5  # four trials and theta_0
    assert not any(map(as_trained, computed))
    after = old.objects()
    assert {path: after[path] for path in before} == before
    assert found.keys() >= {"best_single(bn)", "init(bn)"}
    mirrored = found["best_single(bn)"]["test_versus_best_single"]
    versus = found["best_single"]["test_versus_updated"]
    assert mirrored["only_this"] == versus["only_best_single"]
    for entry in found.values():
        for new in ("test_versus_updated", "calibrated", "test_gain", "shift_gain"):
            entry.pop(new, None)
    assert {n for n in printed if rounded(found.get(n)) != rounded(printed[n])} == GONE[name]
    computed.clear()
    old.run("soup", name, *ASKED[name], "--output", output)
    assert computed == []
    assert old.objects() == after


def test_a_check_finds_the_weights_and_means_that_were_measured(old, computed):
    was = json.loads((STORES / "check.json").read_text())
    said = json.loads(old.run("check", "one", "--pairs", 3, "--json").stdout)
    assert not any(map(as_trained, computed))
    rows, rows_then = ({r["trial"]: r for r in one["ingredients"]} for one in (said, was))
    assert rows.keys() == rows_then.keys()
    for key, row in rows.items():
        for field in ("distance", "with_best", "hparams", "finds"):
            assert row[field] == rows_then[key][field], field
    middles, then = ({tuple(p["trials"]): p["middle"] for p in one["pairs"]} for one in (said, was))
    assert middles == then
    assert (
        "training the best ingredient has 83.0 %, with estimated ones 82.0 %" in said["verdict"][2]
    )
    # Greedy starts with the better of the two.
    assert "1 of 3 sampled means with the best ingredient (83.0 % ± 3.8 %)" in said["verdict"][3]


def test_a_diagnosis_finds_the_models_between_two_trials(old, computed, tmp_path):
    was = json.loads((STORES / "diagnose.json").read_text())
    options = ("--only", "pairs", "--pairs", 2, "--output", tmp_path, "--json")
    said = json.loads(old.run("diagnose", "one", *options).stdout)["measures"]["pairs"]
    assert not any(map(as_trained, computed))
    assert said["trials"] == was["trials"]
    for pair, then in zip(said["pairs"], was["pairs"], strict=True):
        assert pair["trials"] == then["trials"]
        for field in ("distance", "angle", "beta"):  # another processor has other low bits
            assert pair[field] == pytest.approx(then[field], rel=1e-12)
        assert pair["soup"]["accuracy"] == then["soup"]["accuracy"]
    assert said["statistics"] == "estimated"


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
