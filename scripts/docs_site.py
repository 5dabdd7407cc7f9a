"""The pages of the documentation that are made from code, and from files outside docs/.

MkDocs calls the functions `on_*` (mkdocs.yml, `hooks`). Neither torch nor Ray is imported.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from soupray.cli import cli
from soupray.recipes import RECIPES
from soupray.recipes.recipe import Recipe
from soupray.spec.schema import FILLED, json_schema
from soupray.spec.trackers import OWN

ROOT = Path(__file__).parent.parent

COPIED = {
    "index.md": "README.md",
    "guide/cluster.md": "cluster/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{
        f"reports/{p.name}": f"benchmarks/reports/{p.name}"
        for p in (ROOT / "benchmarks").glob("reports/*.md")
    },
}
"""Pages that are files outside docs/, by their place in the site."""

PAGE_OF = {source: page for page, source in COPIED.items()}

LISTED = {"decisions/": ROOT / "docs" / "decisions", "reports/": ROOT / "benchmarks" / "reports"}
"""Folders in the navigation: all their pages, by their titles."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of folders into the navigation."""
    for section in config.nav or []:
        for inner in [one for part in section.values() if isinstance(part, list) for one in part]:
            for title, target in inner.items():
                if target in LISTED:
                    files = sorted(LISTED[target].glob("*.md"))
                    inner[title] = [{_title(file): f"{target}{file.name}"} for file in files]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    made = {page: (ROOT / source).read_text() for page, source in COPIED.items()}
    made |= {
        "reference/keys.md": keys_page(),
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        "reference/messages.md": messages_page(),
        "reference/notebook.md": notebook_page(),
    }
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links of the repository lead to pages; a file that is no page is shown as its path."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it has one page
    source = ROOT / COPIED.get(uri, f"docs/{uri}")

    def linked(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        target = os.path.relpath(source.parent / path, ROOT)
        inside = PAGE_OF.get(target) or target.removeprefix("docs/")
        page = target.startswith("docs/") or target in PAGE_OF or not (ROOT / target).exists()
        if page and not (ROOT / target).is_dir():
            relative = os.path.relpath(inside, Path(uri).parent)
            return f"[{text}]({relative}{anchor or ''})"
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    return re.sub(
        r"(?<!!)\[([^\]]+)\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)",
        linked,
        _images(markdown, source, uri),
    )


def _images(markdown: str, source: Path, uri: str) -> str:
    def shown(found: re.Match[str]) -> str:
        target = os.path.relpath(source.parent / found[2], ROOT / "docs")
        return f"![{found[1]}]({os.path.relpath(target, Path(uri).parent)})"

    return re.sub(r"!\[([^\]]*)\]\((?![a-z]+:)([^)\s]+)\)", shown, markdown)


def _title(file: Path) -> str:
    first = file.read_text().partition("\n")[0].removeprefix("# ")
    dated = re.match(r"\d{4}-\d\d-\d\d", file.name)
    return f"{first} ({dated[0]})" if dated and dated[0] not in first else first


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# The notebook


def notebook_page() -> str:
    """docs/notebook.ipynb with the outputs that it keeps."""
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [_output(one) for one in cell.get("outputs", ())]
    title, *rest = parts
    link = "This page is a notebook: [notebook.ipynb](../notebook.ipynb)."
    return "\n\n".join([title, link, *rest])


def _output(output: dict[str, Any]) -> str:
    """One output of a cell, in the best form that it has."""
    data = {k: "".join(v) for k, v in output.get("data", {}).items() if not isinstance(v, dict)}
    for kind in ("image/svg+xml", "text/html"):
        if kind in data:
            return f"<div class='output'>\n{data[kind]}\n</div>"
    return f"```text\n{data.get('text/plain') or ''.join(output['text'])}\n```"


# The keys of a spec


def keys_page() -> str:
    """Every key of a spec, from its JSON schema."""
    schema = json_schema()
    defs = schema["$defs"]
    lines = [
        "# Keys of a spec",
        "",
        "Made from `soupray schema`. Editors that know the YAML language server complete and check "
        "these keys: the first line of a spec names the schema. A key without a default is needed. "
        "[Specs](../guide/specs.md) says how they work together.",
        "",
        "## Top level",
        "",
        *_table(schema, defs),
    ]
    for title, names in _sections(defs).items():
        lines += [f"## {title}", ""]
        for name in names:
            model = defs[name]
            kind = model.get("properties", {}).get("kind", {}).get("const")
            heading = [f"### `kind: {kind}`", ""] if kind else []
            said = model.get("description", "")
            lines += [*heading, *([said, ""] if said else []), *_table(model, defs)]
    lines += ["## trackers", ""]
    for name, options in OWN.items():
        model = defs[options.__name__]
        lines += [f"### `{name}`", "", model["description"], "", *_table(model, defs)]
    lines += ["## recipes", "", "[Recipes](recipes.md) has the options of each recipe.", ""]
    return "\n".join(lines)


def _sections(defs: dict[str, Any]) -> dict[str, list[str]]:
    """The models of a spec by the key that has them."""
    tagged = {
        name
        for name, model in defs.items()
        if "const" in model.get("properties", {}).get("kind", {})
    }
    tasks = [
        name for name in defs if name in tagged and "templates" in defs[name].get("properties", {})
    ]
    tasks += ["TimmSpec", "TorchSpec"]
    data = [name for name in defs if name in tagged and name not in tasks]
    return {
        "task": tasks,
        "data": data,
        "data.held_out": ["HeldOutParts", "HeldOutIds"],
        "data.shifts": ["NaturalShift", "OwnShift"],
        "objective": ["Regression", "Tolerance"],
        "loss, augmentation": ["OwnFunction"],
        "init": ["TrainedInit", "ProbeInit", "Probe", "FileInit"],
        "search": ["Search"],
        "search.stop": ["Stop"],
        "search.space": ["Space"],
        "A range": ["Dimension"],
        "training": ["TrainingSpec"],
        "resources": ["Resources"],
        "keep": ["KeepBest"],
        "budget": ["Budget", "Price"],
    }


def _table(model: dict[str, Any], defs: dict[str, Any]) -> list[str]:
    needed = model.get("required", [])
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, key in model["properties"].items():
        default = "needed" if name in needed else "from the model or the data"
        if "default" in key:
            default = f"`{_yaml(key['default'])}`" if key["default"] is not None else "-"
        elif name not in needed and name not in FILLED:
            default = "-"
        said = _cell(key["description"])
        rows.append(f"| `{name}` | {_cell(_kind_of(key, defs))} | {_cell(default)} | {said} |")
    return [*rows, ""]


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_yaml(v)}' for k, v in value.items() if v is not None)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind_of(key: dict[str, Any], defs: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        return "a range" if name == "Dimension" else "a mapping"
    for several in ("oneOf", "anyOf"):
        if several in key:
            words = [_kind_of(part, defs) for part in key[several] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(words)) + _limits(key)
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true, false",
    }
    if key.get("type") == "array":
        items = key.get("items", {})
        return f"{len(items)} numbers" if isinstance(items, list) else "a list"
    return names.get(key.get("type", ""), "a mapping") + _limits(key)


def _limits(key: dict[str, Any]) -> str:
    low, high = key.get("minimum"), key.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:.7g}"
    if low is not None:
        return f" from {low:g}"
    if "exclusiveMinimum" in key:
        return f" above {key['exclusiveMinimum']:g}"
    return f" to {high:.7g}" if high is not None else ""


# The commands


def commands_page() -> str:
    """Every command, from the command line itself."""
    rows = [
        f"| [`{name}`](#{name}) | {c.get_short_help_str(90)} |" for name, c in cli.commands.items()
    ]
    lines = [
        "# Commands",
        "",
        "`soupray VERB --help` says the same. The exit status is 0, or 1 if something failed, or 2 "
        "if the command or the spec is wrong.",
        "",
        "| verb | |",
        "|---|---|",
        *map(str, rows),
        "",
    ]
    for name, command in cli.commands.items():
        lines += _command(name, command, 2)
        if isinstance(command, click.Group):
            for inner, sub in command.commands.items():
                lines += _command(f"{name} {inner}", sub, 3)
    return "\n".join(lines)


def _command(name: str, command: click.Command, level: int) -> list[str]:
    ctx = click.Context(command, info_name=f"soupray {name}")
    lines = [f"{'#' * level} {name}", "", f"```text\n{command.get_usage(ctx)[7:]}\n```", ""]
    lines += _paragraphs(command.help or "")
    options = [p for p in command.params if isinstance(p, click.Option)]
    if options:
        lines += ["| option | |", "|---|---|"]
        for option in options:
            named, said = option.get_help_record(ctx) or ("", "")
            lines.append(f"| `{_cell(named)}` | {_cell(said)} |")
        lines.append("")
    return lines + _paragraphs(command.epilog or "")


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text; those after click's mark stay as they are."""
    lines = []
    for part in inspect.cleandoc(text).split("\n\n"):
        fixed = part.lstrip("\n").startswith("\b")
        shown = part.strip("\n\b")
        lines += [f"```text\n{shown}\n```" if fixed else " ".join(shown.split()), ""]
    return lines


# The recipes


def recipes_page() -> str:
    """Every recipe, from its own declaration."""
    lines = [
        "# Recipes",
        "",
        "Made from the declarations in `soupray/recipes/`; `soupray recipes` prints the same. K is "
        "the number of ingredients. The cost is in passes of one model over the held-out data, and "
        "an upper limit: what cannot win is given up early.",
        "",
        "| recipe | what it does | passes at inference |",
        "|---|---|---|",
        *(f"| [`{r.name}`](#{r.name}) | {r.summary} | {r.passes} |" for r in RECIPES),
        "",
    ]
    defs = json_schema()["$defs"]
    for recipe in RECIPES:
        lines += _recipe(recipe, defs)
    return "\n".join(lines)


def _recipe(recipe: Recipe[Any], defs: dict[str, Any]) -> list[str]:
    flag = "always there" if recipe.kind == "baseline" else f"`--{recipe.name.replace('_', '-')}`"
    flag += "" if recipe.with_all else ", which `--all` does not include"
    paper = re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", recipe.paper)
    lines = [
        f"## {recipe.name}",
        "",
        f"{recipe.summary[:1].upper()}{recipe.summary[1:]}. {recipe.when}",
        "",
        "| | |",
        "|---|---|",
        f"| flag of `soupray soup` | {flag} |",
        *([f"| paper | {paper} |"] if recipe.paper != "-" else []),
        f"| chooses on | {recipe.uses} |",
        f"| costs | {recipe.costs} |",
        f"| forward passes at inference | {recipe.passes} |",
        "",
    ]
    options = defs[recipe.options.__name__].get("properties", {})
    if options:
        lines += ["| option | allowed | default | meaning |", "|---|---|---|---|"]
        for name, words in recipe.allowed().items():
            default = options[name]["default"]
            shown = "-" if default is None else f"`{_yaml(default)}`"
            said = _cell(options[name]["description"])
            lines.append(f"| `{name}` | {_cell(words)} | {shown} | {said} |")
        lines.append("")
    return lines


# The messages


def messages_page() -> str:
    """Every message with which a command ends, from the source."""
    lines = [
        "# Messages",
        "",
        "Every message with which a command may end, as the source has it, by the part of soupray "
        "that says it; … stands for a value of yours. A message says what to do next. "
        "[Troubleshooting](../troubleshooting.md) explains those that come up most. Mistakes in a "
        "spec end with status 2, all others with 1.",
        "",
    ]
    room = ""
    for file, message in messages():
        if file.parts[1] != room:
            room = file.parts[1]
            lines += [f"## {room}", ""]
        lines.append(f"- `{message}`" if "`" not in message else f"- ``{message}``")
    return "\n".join(lines) + "\n"


def messages() -> Iterator[tuple[Path, str]]:
    """(File, text) of every message that is raised, with … for what is filled in."""
    for file in sorted((ROOT / "soupray").glob("*/*.py")):
        nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Raise)]
        for node in sorted(nodes, key=lambda n: n.lineno):
            if isinstance(node.exc, ast.Call) and node.exc.args:
                text = " ".join(_text(node.exc.args[0]).split())
                if len(re.findall(r"\w+", text)) > 2:
                    yield file.relative_to(ROOT), text


def _text(node: ast.expr) -> str:
    """The text of a literal, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"
