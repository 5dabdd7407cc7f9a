"""What the documents say, held against the code."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest
from conftest import HANG_S, ROOT, inside
from own_code import PORTS
from PIL import Image
from shared import piece_of
from sklearn.datasets import load_digits

import soupray
from soupray.cli import cli
from soupray.spec.schema import json_schema
from soupray.spec.yaml import parse_yaml

PAGES = ["README.md", "CONTRIBUTING.md", "cluster/README.md"]
"""Pages whose links lead to files; those of docs/ are checked by `tests/test_site.py`."""

GUIDES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
for folder in ("guide", "plugins", "tutorials"):
    GUIDES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / folder).glob("*.md"))
"""Pages whose commands and snippets are run, unless a title says what they need."""

WITH_WHEELS = [f"docs/plugins/{page}.md" for page in PORTS]
"""Pages whose specs name what their wheels declare: `test_plugin_pages` has these installed."""

ON_THE_MAIN_JOB = ["README.md", "docs/guide/use.md", "docs/guide/specs.md"]
ON_A_COPY = ["docs/guide/diagnose.md"]
"""Pages whose commands write into the store."""

TUTORIALS = ["docs/tutorials/images.md", "docs/tutorials/texts.md"]
"""The pages that have commands without such a title."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_tree_has_a_line_for_every_room_and_file():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("## The code")[1].split("```")[1]
    folder, there = "", set()
    for line in tree.splitlines():
        found = re.match(r"( +)(\w+/|\w+\.py)( |$)", line)
        if found and found[2].endswith("/"):
            folder = found[2]
        elif found:
            there.add(f"{folder}{found[2]}")
    package = Path(soupray.__file__).parent
    found_files = [*package.glob("*.py"), *package.glob("*/*.py")]
    files = {str(path.relative_to(package)) for path in found_files}
    plain = {name for name in files if not Path(name).name.startswith("__")}
    assert plain <= there <= files


def test_the_changelog_starts_with_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == soupray.__version__


def test_every_spec_in_sweeps_loads_and_is_listed():
    from soupray.search.plan import plan
    from soupray.spec.sweep_spec import load

    page = (ROOT / "docs" / "guide" / "specs.md").read_text()
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


class Block(NamedTuple):
    """A fenced block: its language, what it needs that a test has not ("" if nothing), its text."""

    language: str
    needs: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text()
    found = re.findall(
        r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL
    )
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE)), "a fence is not closed"
    return [Block(*one) for one in found]


def commands(text: str) -> list[str]:
    """The lines of a block of commands, without what explains them."""
    return [line.partition(" # ")[0].strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("page", GUIDES)
def test_the_commands_of_the_documents_exist(page):
    """Those that are not run, too: each verb takes its options. So do the targets of make."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = (ROOT / "pyproject.toml").read_text()
    for block in blocks(page):
        assert block.language in ("sh", "python", "yaml", "toml", "text", ""), block.language
        if page not in (*ON_THE_MAIN_JOB, *ON_A_COPY, *TUTORIALS):
            assert block.needs or block.language not in ("sh", "python"), "no test runs it"
        for command in commands(block.text) if block.language == "sh" else ():
            program, *arguments = shlex.split(command)
            if program == "soupray":
                verb, *rest = arguments
                cli.commands[verb].make_context(verb, rest)
            elif program == "make":
                assert arguments[0] in targets
            elif program == "pip":
                for extra in arguments[1].removeprefix("soupray[")[:-1].split(","):
                    assert f"\n{extra} = [" in extras
            else:
                assert block.needs, command


def test_the_commands_of_the_cluster_guide_exist():
    """They need a cluster, and are indented: only what they are called is checked."""
    text = (ROOT / "cluster" / "README.md").read_text()
    found = re.findall(r"^ {4,}soupray (.+?)(?:  #.*)?$", text, re.MULTILINE)
    assert len(found) >= 3
    for command in found:
        verb, *rest = shlex.split(command)
        cli.commands[verb].make_context(verb, rest)
    for page in GUIDES:
        outside = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
        assert not re.findall(r"^ {4,}(?:soupray|make|pip|ray) .*$", outside, re.M), page


@pytest.mark.parametrize("page", [page for page in GUIDES if page not in WITH_WHEELS])
def test_the_pieces_of_specs_in_the_documents_are_valid(page):
    whole = json_schema()
    for block in blocks(page):
        if block.language == "yaml" and not block.text.startswith("garment"):  # a label map
            written = parse_yaml(block.text, page)
            pieces = piece_of(whole)
            if not set(written) & set(whole["properties"]):
                written = {"data": written}
            errors = jsonschema.Draft7Validator(pieces).iter_errors(written)
            assert [error.message for error in errors] == []


MADE = ("sweep", "soup", "ui", "down")
"""What the main job has done already, and what would stop its store."""


@pytest.mark.parametrize("page", ON_THE_MAIN_JOB)
def test_the_commands_of_the_documents_run(page, run, tmp_path, monkeypatch, capsys):
    """As they stand, but for the name of the sweep: the main job's is a smaller digits."""
    stand(run, tmp_path, monkeypatch)
    assert ran(page, run)
    if page == "README.md":
        rows = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
        assert [row.split(",")[:2] for row in rows] == [
            ["photos/0.png", "zero"],
            ["photos/1.png", "one"],
        ]
        assert "['zero', 'one', 'two', 'three', 'four']" in capsys.readouterr().out


@pytest.mark.usefixtures("few_paths")
@pytest.mark.usefixtures("few_paths", "without_ray")
@pytest.mark.parametrize("page", ON_A_COPY)
def test_commands_that_write_into_the_store_run_on_a_copy(page, fresh, tmp_path, monkeypatch):
    stand(fresh, tmp_path, monkeypatch)
    assert ran(page, fresh)


def ran(page: str, run) -> list[str]:
    """Run the commands and snippets of a page, and return the verbs."""
    verbs = []
    for block in blocks(page):
        if block.needs or block.language not in ("sh", "python"):
            continue
        text = named(block.text, run)
        if block.language == "python":
            exec(text, {})
            continue
        for command in commands(text):
            program, verb, *_ = shlex.split(command)
            if program == "soupray" and (verb not in MADE or "--dry-run" in command):
                inside(*shlex.split(command)[1:])
                verbs.append(verb)
    return verbs


def stand(run, folder, monkeypatch) -> None:
    """Stand in a folder in which the commands of the documents work."""
    (folder / ".home").symlink_to(run.home)
    shutil.copytree(run.output, folder / "results" / "mini")  # `rebuild` writes into it
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SOUPRAY_SPEC", str(run.spec))
    digits = load_digits()
    for number in (0, 1):
        path = folder / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(path)


def named(text: str, run) -> str:
    """The text with the main job's sweep in place of the demo."""
    for old, new in {
        "digits@": "mini@",
        "digits:": "mini:",
        "results/digits": "results/mini",
        "sweeps/digits.yaml": shlex.quote(str(run.spec)),
    }.items():
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_the_server_of_the_readme_answers(run, tmp_path, monkeypatch):
    stand(run, tmp_path, monkeypatch)
    (block,) = [b for b in blocks("README.md") if b.needs.startswith("Needs a terminal")]
    serve, asking = commands(named(block.text, run))
    assert asked(serve.removeprefix("soupray "), asking)["predictions"][0]["class"] == "zero"


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_runs_up_to_its_sweep(page, tmp_path, monkeypatch):
    """The snippet makes the images; `init` and the dry run are those of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUPRAY_HOME", str(tmp_path / "home"))
    rows = [f"{of} number {k},{of}" for k in range(40) for of in ("food", "weather")]
    (tmp_path / "topics.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    verbs = []
    for block in blocks(page):
        if block.language == "python" and not block.needs:
            exec(block.text, {})
        for command in commands(block.text) if block.language == "sh" and not block.needs else ():
            program, verb, *_ = shlex.split(command)
            if program == "soupray":
                done = inside(*shlex.split(command)[1:])
                verbs.append(verb)
                if verb == "init" and page.endswith("images.md"):
                    assert done.stdout in [b.text for b in blocks(page)]
    assert verbs == ["init", "sweep"]


def test_the_page_about_installation_has_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "guide" / "install.md").read_text()
    table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) == set(project["optional-dependencies"])
