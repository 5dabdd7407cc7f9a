"""Ensembles of models of two families, swept by two specs on the same data."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import copied, inside, leaderboard, without_ray_here

import soupray
from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, EvaluationError
from soupray.data.cache import open_data
from soupray.soup.run import chosen_recipes, joint
from soupray.soup.session import SpecPool, open_session, refuse_other_data
from soupray.spec.sweep_spec import SweepSpec, load, parse

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAINED = {"trained": {"lr": 3e-3, "epochs": 1, "batch_size": 50}}
NETWORK = {
    "kind": "timm",
    "model": "resnet10t",
    "args": {"stem_width": 8, "channels": [8, 16, 16, 16]},
    "classes": DIGITS,
    "size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def network_spec(mini: SweepSpec, **edits: object) -> str:
    """The main job's spec with a network of timm's instead of CLIP, and two trials."""
    plain = mini.model_dump(mode="json")
    plain |= {"name": "network", "task": NETWORK, "init": TRAINED, "anchor": "init"}
    plain |= {"evaluation_batch": 40, "search": plain["search"] | {"trials": 2}}
    plain |= {"resources": plain["resources"] | {"at_most": 1}}
    return json.dumps(plain | edits)  # JSON is YAML


@pytest.fixture(scope="module")
def both(run, tmp_path_factory):
    """(home, specs) after an ensemble of the main job's pool and a network's."""
    with copied(run, tmp_path_factory.mktemp("both") / "copy") as copy:
        other = copy.folder / "network.yaml"
        other.write_text(network_spec(load(copy.spec)))
        with pytest.MonkeyPatch.context() as patched:
            without_ray_here(patched)
            inside("sweep", other, *copy.where)
            inside("soup", copy.spec, other, *copy.where, "--all", "--output", copy.output)
        yield copy, [load(copy.spec), load(other)]


def test_only_outputs_are_mixed_and_all_models_take_part(both):
    copy, specs = both
    entries = {e["name"]: e for e in leaderboard(copy.output)}
    assert {e["recipe"] for e in entries.values()} == {
        "anchor",
        "best_single",
        "update_bn",  # the network has BatchNorm
        "ensemble",
        "greedy_ensemble",
        "ose",
        "vrf",
        "dawin",
    }
    assert entries["ensemble"]["forward_passes_per_sample"] == 6  # four trials and two
    assert joint(specs).name == "mini_and_network"


def test_the_ensemble_is_the_mean_of_both_families_logits(both):
    """By hand: each family's own evaluations, averaged."""
    copy, specs = both
    total, labels = 0.0, None
    for spec in specs:
        with open_session([spec], copy.home, None, partial=False) as session:
            test = session.basis.split("test")
            for ingredient in session.pool.ingredients:
                found = session.evaluator.predictions(mean_of([ingredient.checkpoint.sha256]), test)
                total, labels = total + found.logits.astype(np.float64) / 6, found.labels
    entries = {e["name"]: e for e in leaderboard(copy.output)}
    assert (total.argmax(axis=1) == labels).sum() == entries["ensemble"]["test"]["correct"]


def test_its_recipe_file_loads_each_model_from_its_own_spec(both):
    copy, specs = both
    recipe = json.loads((copy.output / "ensemble.recipe.json").read_text())
    (foreign,) = recipe["foreign"]
    assert foreign["spec"]["name"] == "network"
    assert len(foreign["checkpoints"]) == 2
    model = soupray.load(copy.output / "ensemble.recipe.json", home=copy.home)
    data = open_data(specs[0], copy.home / "cache" / "data")
    images, labels = data.samples(data.split("test"))
    entries = {e["name"]: e for e in leaderboard(copy.output)}
    right = (model(np.array(images)).argmax(axis=1) == labels).sum()
    assert right == entries["ensemble"]["test"]["correct"]


def test_vrf_knows_failures_of_a_model_of_one_family_by_one_of_the_other(both):
    """The anchor is CLIP's; whichever family the best single model is of."""
    copy, _ = both
    recipe = json.loads((copy.output / "vrf_best_single.recipe.json").read_text())
    assert recipe["options"]["failures"] > 0


def test_a_second_run_starts_no_ray_and_gives_the_same_leaderboard(both, tmp_path, monkeypatch):
    from soupray.distributed import cluster

    def refuse(*arguments: object) -> None:
        raise AssertionError("Ray was asked for")

    copy, _ = both
    monkeypatch.setattr(cluster, "attach", refuse)
    other = copy.folder / "network.yaml"
    inside("soup", copy.spec, other, *copy.where, "--all", "--output", tmp_path / "again")
    assert leaderboard(tmp_path / "again") == leaderboard(copy.output)


def test_diagnose_compares_both_families_on_the_same_samples(both, tmp_path, without_ray):
    """Error inconsistency across specs, from each family's own stored logits."""
    copy, specs = both
    other = copy.folder / "network.yaml"
    asked = ("diagnose", copy.spec, *copy.where, "--with", other, "--only", "families", "--json")
    (planned,) = json.loads(inside(*asked, "--dry-run").stdout)
    assert (planned["name"], planned["stored"], planned["left_out"]) == ("families", False, None)
    made = json.loads(inside(*asked, "--output", tmp_path / "made").stdout)["measures"]["families"]
    right: list[dict[str, np.ndarray]] = []
    for spec in specs:
        with open_session([spec], copy.home, None, partial=False) as session:
            test = session.basis.split("test")
            of = {i.trial.key[:8]: mean_of([i.checkpoint.sha256]) for i in session.pool.ingredients}
            found = {key: session.evaluator.predictions(m, test) for key, m in of.items()}
            right.append({k: p.logits.argmax(1) == p.labels for k, p in found.items()})
    across = [p for p in made["points"] if p["specs"] == ["mini", "network"]]
    named = {tuple(p["models"]): p["inconsistency"] for p in across}
    for one, first in right[0].items():
        for two, second in right[1].items():
            if (f"trial {one}", f"trial {two}") in named:  # the champion may be a trial
                expected = (first != second).mean()
                assert named[f"trial {one}", f"trial {two}"] == pytest.approx(expected)
    assert (
        made["groups"][-1]["pairs"]
        == len(across)
        == (made["families"][0]["models"] * made["families"][1]["models"])
    )
    assert made["groups"][-1]["cka_complement"] > 0
    (again,) = json.loads(inside(*asked, "--dry-run").stdout)
    assert (again["stored"], again["passes"]) == (True, 0)
    section = (tmp_path / "made" / "report.html").read_text()
    assert "Error inconsistency across specs" in section


def test_diagnose_refuses_a_spec_with_other_samples(both, tmp_path, without_ray):
    copy, specs = both
    other = tmp_path / "later.yaml"
    text = network_spec(specs[0], name="later", seed=7)
    other.write_text(text)
    inside("sweep", other, *copy.where)
    refused = inside("diagnose", copy.spec, *copy.where, "--with", other, check=False)
    assert refused.returncode != 0
    assert "later has other held-out samples than mini: " in " ".join(refused.stderr.split())
    twice = inside("diagnose", copy.spec, *copy.where, "--with", copy.spec, check=False)
    assert "specs that are compared need a name each" in " ".join(twice.stderr.split())


def test_soups_of_several_specs_are_refused(both):
    _, specs = both
    with pytest.raises(ConfigError, match="greedy averages weights"):
        chosen_recipes(specs, ["greedy"], everything=False)


def test_other_labels_are_refused_before_anything_is_mixed(both):
    _, specs = both
    swapped = NETWORK | {"classes": ["one", "zero", *DIGITS[2:]]}
    other = parse(network_spec(specs[0], task=swapped), "other.yaml")
    with pytest.raises(EvaluationError, match=r"different classes \('zero' and 'one'\)"):
        refuse_other_data(ensembled(specs[0]), ensembled(other))


def test_other_data_are_refused_by_the_name_of_the_split(both):
    copy, specs = both
    with open_session(specs[:1], copy.home, None, partial=False) as session:
        splits = session.basis.splits
    moved = [msgspec.structs.replace(splits[0], digest="0" * 64), *splits[1:]]
    mine, other = (ensembled(s) for s in specs)
    with pytest.raises(EvaluationError, match=rf"split {splits[0].name} of mini .*network \(00000"):
        refuse_other_data(
            mine._replace(basis=session.basis),
            other._replace(basis=msgspec.structs.replace(session.basis, splits=tuple(moved))),
        )


def ensembled(spec: SweepSpec) -> SpecPool:
    """What a spec brings, as far as the check of the data looks."""
    nothing: Any = None
    return SpecPool(spec, *[nothing] * (len(SpecPool._fields) - 1))
