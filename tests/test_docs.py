"""What the documents say, held against the code."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_S, ROOT, inside
from PIL import Image
from sklearn.datasets import load_digits

import soupray
from soupray.core.hyperparameters import TABLE

PAGES = ["README.md", "CONTRIBUTING.md", "sweeps/README.md", "cluster/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readme_has_a_line_for_every_room_and_file():
    tree = (ROOT / "README.md").read_text().split("## The code")[1].split("```")[1]
    folder, there = "", set()
    for line in tree.splitlines():
        found = re.match(r"( +)(\w+/|\w+\.py)( |$)", line)
        if found and found[2].endswith("/"):
            folder = found[2]
        elif found:
            there.add(f"{folder}{found[2]}")
    package = Path(soupray.__file__).parent
    files = {str(path.relative_to(package)) for path in package.glob("*/*.py")}
    plain = {name for name in files if not Path(name).name.startswith("__")}
    assert plain <= there <= files


def test_the_changelog_starts_with_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == soupray.__version__


def test_every_spec_in_sweeps_loads_and_is_listed():
    from soupray.search.plan import plan
    from soupray.spec.sweep_spec import load

    page = (ROOT / "sweeps" / "README.md").read_text()
    for path in (ROOT / "sweeps").glob("*.yaml"):
        assert len(plan(load(path))) == load(path).search.trials
        assert path.name in page


def test_the_packaged_model_says_what_it_is():
    card = json.loads((ROOT / "soupray/assets/digits/card.json").read_text())
    assert card
    assert (ROOT / "soupray/assets/digits/open_clip_model.safetensors").stat().st_size < 3e6


def test_the_public_names_are_there_and_no_others():
    assert soupray.__all__ == sorted(soupray.__all__)
    assert all(getattr(soupray, name) for name in soupray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        _ = soupray.sweeps


def test_the_hyperparameters_of_the_documents_are_those_of_the_program():
    page = (ROOT / "sweeps" / "README.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) to (\S+) \| (.+) \|$", page, re.MULTILINE)
    assert found == [
        (
            h.name,
            "needed" if h.default is None else f"{h.default:g}",
            f"{h.low:g}",
            f"{h.high:.7g}",
            h.meaning,
        )
        for h in TABLE
    ]


def asked(serve: str, asking: str) -> dict:
    """What the server of one command answers to the other one; then Ctrl-C. The port is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "soupray", *shlex.split(serve), "--port", port]
    server = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        first, second = server.stdout.readline(), server.stdout.readline()
        assert first.startswith(f"http://127.0.0.1:{port}  ")
        assert second == f"curl -F image=@image.png http://127.0.0.1:{port}/predict\n"
        done = subprocess.run(
            shlex.split(asking.replace("8000", port)), capture_output=True, timeout=HANG_S
        )
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        assert server.wait(HANG_S) == 0
    finally:
        server.kill()
    return json.loads(done.stdout)


def test_what_the_readme_shows_after_the_demo_runs(run, tmp_path, monkeypatch, capsys):
    """As it stands, but for the name of the sweep: the main job's is a smaller digits."""
    page = (ROOT / "README.md").read_text().split("## Two commands")[1].split("## Where")[0]
    page = page.replace("digits@", "mini@").replace("results/digits", "results/mini")
    (tmp_path / ".home").symlink_to(run.home)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mini").symlink_to(run.output)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUPRAY_SPEC", str(run.spec))
    digits = load_digits()
    for number in (0, 1):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(path)
    verbs = ["predict", "serve", "report", "rank", "rebuild"]
    commands = re.findall(r"^    soupray (?!ui)(.+?)(?: {2,}#.*| # .*)?$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == verbs
    serve = commands.pop(1)
    for command in commands:
        inside(*shlex.split(command))
    rows = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [
        ["photos/0.png", "zero"],
        ["photos/1.png", "one"],
    ]
    (asking,) = re.findall(r"^    (curl .*)$", page, re.MULTILINE)
    assert asked(serve, asking)["predictions"][0]["class"] == "zero"
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    capsys.readouterr()
    exec(snippet, {})
    assert "['zero', 'one', 'two', 'three', 'four']" in capsys.readouterr().out
