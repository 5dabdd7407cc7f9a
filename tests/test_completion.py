"""What the Tab key offers."""

import os
import re
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete
from conftest import HANG_S, ROOT

from soupray.cli import cli


def offered(*words: str) -> list[str]:
    """What completes the last word."""
    *before, begun = words
    found = ShellComplete(cli, {}, "soupray", "_SOUPRAY_COMPLETE").get_completions(before, begun)
    return [item.value for item in found if item.type == "plain"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with specs, and a home whose sweeps are `digits` and `other`."""
    for name in ("mine.yaml", "more.yml", "notes.txt", ".hidden.yaml", "sweeps/deep.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    home = tmp_path / "home"
    for name in ("digits", "other"):
        (home / "sweeps").mkdir(parents=True, exist_ok=True)
        (home / "sweeps" / f"{name}.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUPRAY_HOME", str(home))
    return tmp_path


def test_verbs_and_options_are_completed():
    assert offered("st") == ["status", "stop"]
    assert offered("sweep", "--d") == ["--dry-run"]


@pytest.mark.parametrize("verb", ["sweep", "soup", "rank", "show", "delete", "logs", "import"])
def test_a_spec_is_a_yaml_file_or_a_folder_with_one(here, verb):
    assert offered(verb, "m") == ["mine.yaml", "more.yml"]
    assert offered(verb, "") == ["home/", "mine.yaml", "more.yml", "sweeps/"]
    assert offered(verb, "sweeps/") == ["sweeps/deep.yaml"]
    assert offered(verb, f"{here}/mi") == [f"{here}/mine.yaml"]
    assert offered(verb, "nothing/here") == []


@pytest.mark.parametrize("verb", ["predict", "serve", "export", "rebuild"])
def test_a_model_is_the_champion_of_a_sweep_of_this_home(here, verb):
    assert offered(verb, "d") == ["digits@champion"]
    assert offered(verb, "--home", str(here), "") == ["deep@champion"]  # the home that is named


def test_the_line_of_the_documents_works_in_bash(here):
    """The function that bash calls at the Tab key fills COMPREPLY."""
    page = (ROOT / "docs" / "guide" / "use.md").read_text()
    (line,) = re.findall(r"^eval .+$", page, re.MULTILINE)
    (here / "bin").mkdir()
    program = here / "bin" / "soupray"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m soupray "$@"\n')
    program.chmod(0o755)
    script = (
        f"{line}\nCOMP_WORDS=(soupray sweep mi); COMP_CWORD=2; "
        "_soupray_completion soupray mi sweep; echo ${COMPREPLY[@]}"
    )
    env = {
        **os.environ,
        "PATH": f"{here}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=env, timeout=HANG_S
    )
    assert done.stdout.split() == ["mine.yaml"], done.stderr
