"""`soupray demo`: what it does without the extras, and that it is sweep and soup."""

from importlib.util import find_spec

from conftest import inside, leaderboard

from soupray.operations import demo as module
from soupray.operations.demo import prepare_demo
from soupray.spec.sweep_spec import load


def test_without_the_extras_the_demo_runs_on_a_folder_and_says_so(tmp_path, monkeypatch, heard):
    """That SeaweedFS and faiss are away is said, with the package to install."""
    monkeypatch.setattr(module, "find_weed", lambda: None)
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == "faiss" else find_spec(name)
    )
    path, recipes = prepare_demo(tmp_path / "home")
    assert load(path).storage == f"file://{tmp_path}/home/demo/store"
    assert "vrf" not in recipes
    assert "greedy" in recipes
    said = heard()
    assert "pip install 'soupray[cpu]'" in said
    assert "pip install 'soupray[local]'" in said


def test_the_demo_is_sweep_and_soup(run, fresh, tmp_path, monkeypatch):
    """In a folder whose demo is the main job's spec: nothing is trained or evaluated again."""
    here = tmp_path / "here"
    (here / "sweeps").mkdir(parents=True)
    (here / "sweeps" / "digits.yaml").write_bytes(fresh.spec.read_bytes())
    monkeypatch.chdir(here)
    said = inside("demo", *fresh.where)
    assert "0 trained, 4 found in the store" in said.stderr
    assert "\nTake " in said.stdout
    assert leaderboard(here / "results" / "mini") == leaderboard(run.output)
    assert (here / "results" / "mini" / "report.html").stat().st_size > 500_000
    assert [p.name for p in (here / "results").iterdir()] == ["mini"]
