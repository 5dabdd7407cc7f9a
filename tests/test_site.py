"""The documentation as a site: it builds without a warning, and a reader fetches nothing."""

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import HANG_S, ROOT

import soupray
from soupray.cli import cli
from soupray.recipes import RECIPES
from soupray.spec.schema import json_schema

FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
"""Elements for which a browser fetches something by itself."""

PLACEHOLDER = "\N{HORIZONTAL ELLIPSIS}"


class Page(HTMLParser):
    """What a page fetches by itself, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.classes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.classes.update((known.get("class") or "").split())
        if tag in FETCHED and known.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(known.get(FETCHED[tag]) or "")

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built site. Strict: a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    code = (
        "import sys\nfrom mkdocs.__main__ import cli\n"
        "cli(['build', '--quiet', '--strict', '-d', sys.argv[1]], standalone_mode=False)\n"
        "print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]", "the build imports what is slow"
    return folder


@pytest.fixture(scope="module")
def site(built):
    """{path: page}."""
    return {str(p.relative_to(built)): Page(p.read_text()) for p in built.rglob("*.html")}


def test_no_page_fetches_anything_from_elsewhere(site, built):
    assert len(site) > 30
    for name, page in site.items():
        outside = [url for url in page.fetched if re.match(r"(\w+:)?//", url)]
        assert (name, outside) == (name, [])
        assert "mermaid" not in page.classes, name  # its script would come from unpkg.com
    for style in built.rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//", style.read_text()), style


def test_the_references_are_complete(site):
    keys, commands = site["reference/keys.html"].text, site["reference/commands.html"].text
    recipes, python = site["reference/recipes.html"].text, site["reference/python.html"].text
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        if not str(model.get("description", "")).startswith("Options of"):
            assert all(name in keys for name in model.get("properties", {}))
    for verb, command in cli.commands.items():
        assert f"soupray {verb}" in commands
        assert all(p.opts[0] in commands for p in command.params if p.opts[0].startswith("--"))
    for recipe in RECIPES:
        assert recipe.when.replace("`", "") in recipes
        assert all(words in recipes for words in recipe.allowed().values())
    members = ("predict_proba", "network", "to_pandas", "figure", "calibrated")
    for name in {*soupray.__all__, *members} - {"__version__"}:
        assert name in python
    assert "Take " in site["reference/notebook.html"].text


def literals(source: str) -> list[str]:
    """The texts in Python source, with a placeholder for each value that is filled in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return str(node.value) if isinstance(node, ast.Constant) else PLACEHOLDER

    nodes = ast.walk(ast.parse(source))
    return [text(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant)]


def test_the_messages_of_troubleshooting_are_in_the_source():
    said = "\n".join(
        text for path in (ROOT / "soupray").rglob("*.py") for text in literals(path.read_text())
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", page, re.MULTILINE)
    assert len(rows) > 70
    assert [row for row in rows if row not in said] == []


def test_every_message_of_the_source_is_listed(site):
    listed = site["reference/messages.html"].text
    for message in (
        f"the store refuses these credentials ({PLACEHOLDER})",
        f"{PLACEHOLDER} is already in {PLACEHOLDER}.",
        "VRF needs faiss: pip install 'soupray[cpu]', or 'soupray[gpu]' (not both).",
    ):
        assert message in listed
