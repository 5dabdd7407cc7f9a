"""The JSON schema of a spec: complete, as the program has it, and true of the specs that come."""

import json
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest
from conftest import ROOT, inside, mini_text
from shared import piece_of

from soupray.core.errors import ConfigError
from soupray.core.hyperparameters import TABLE
from soupray.operations.first_spec import texts_spec
from soupray.recipes import BY_NAME
from soupray.spec.examples import EXAMPLES
from soupray.spec.schema import FILLED, json_schema, shipped
from soupray.spec.sweep_spec import load, parse
from soupray.spec.trackers import OWN
from soupray.spec.yaml import parse_yaml

MINIMAL = """
name: least
task: {kind: open_clip, model: "soupray:digits", classes: [a, b], templates: ["{}"]}
data: {kind: digits}
search: {trials: 1, space: {lr: 1.0e-3, epochs: 1}}
"""


def keys(node: object, where: str = "") -> Iterator[tuple[str, str, dict, bool]]:
    """(place, key, schema, is it needed) of every key of a schema."""
    if isinstance(node, dict):
        for name, key in node.get("properties", {}).items():
            yield where, name, key, name in node.get("required", [])
        for name, part in node.items():
            yield from keys(part, f"{where}/{name}")
    elif isinstance(node, list):
        for part in node:
            yield from keys(part, where)


def wrong(text: str) -> list[str]:
    """What jsonschema finds in a spec."""
    found = jsonschema.Draft7Validator(json_schema()).iter_errors(parse_yaml(text, "it"))
    return [error.message for error in found]


def test_every_key_has_a_description_and_a_default_unless_it_is_needed():
    found = list(keys(json_schema()))
    assert len(found) > 150
    assert [(w, name) for w, name, key, _ in found if len(key.get("description", "")) < 5] == []
    without = {name for w, name, key, needed in found if "default" not in key and not needed}
    assert without - set(BY_NAME) - set(OWN) - {"lr", "epochs"} == FILLED


def test_the_defaults_and_the_hyperparameters_are_those_of_the_program():
    schema = json_schema()
    spec = parse(MINIMAL, "it")
    made = spec.model_dump(mode="json")
    # What is left out of a dump at its default keeps the digests of earlier specs.
    made |= {name: getattr(spec, name) for name in type(spec).model_fields if name not in made}
    assert all(made[n] == key["default"] for n, key in schema["properties"].items() if n not in made
               or "default" in key)  # fmt: skip
    space = schema["$defs"]["Space"]["properties"]
    assert list(space) == [row.name for row in TABLE]
    for row in TABLE:
        assert space[row.name].get("default") == row.default
        assert space[row.name]["description"].lower().startswith(row.meaning.lower())
    assert list(schema["properties"]["recipes"]["properties"]) == list(BY_NAME)
    greedy = schema["$defs"]["GreedyOptions"]["properties"]["accept"]
    assert (greedy["default"], greedy["enum"]) == ("ge", ["ge", "gt"])


def test_the_shipped_file_is_the_schema(tmp_path):
    shown = inside("schema").stdout
    assert shipped().read_text() == shown, "run `soupray schema --output sweeps/schema.json`"
    inside("schema", "--output", tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == shown
    jsonschema.Draft7Validator.check_schema(json.loads(shown))


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_specs_fit_it_and_name_it(path):
    text = path.read_text()
    assert wrong(text) == []
    first = text.splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials: 4", "trials: four"),
        ("sampler: random", "sampler: sobol"),
        ("held_out: 200", "held_out: {select: 9}"),
        ("gpu: 0", "gpu: 2"),
        ("name: mini", "name: My sweep"),
        ("storage: embedded", "storage: ftp://x"),
        ("batch_size: 50", "batch_sice: 50"),
        ("batch_size: 50", "batch_size: 0"),
        ("off: 0.5", "off: 1"),
        ("{accept: ge}", "{accept: le}"),
        ("uniform: {}", "unifrom: {}"),
        ("[inverted, noise]", "[inverted, nois]"),
        ("[inverted, noise]", "[{kind: folder}]"),
        ("init: zero_shot", "init: {trained: {lr: {uniform: [0, 1]}, epochs: 1}}"),
        ("kind: digits", "kind: didgits"),
    ],
)
def test_what_it_refuses_the_program_refuses(old, new):
    text = mini_text()
    assert (old in text, wrong(text)) == (True, [])
    parse(text, "it")
    assert wrong(text.replace(old, new)) != []
    with pytest.raises(ConfigError):
        parse(text.replace(old, new), "it")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size: 50", "batch_size: {choice: [50, 60]}"),
        ("held_out: 200", "held_out: {select: 100, rank: 100}"),
        ("init: zero_shot", "init: {probe: {}}"),
        ("init: zero_shot", "init: {trained: {lr: 1.0e-3, epochs: 1}}"),
        ("[inverted, noise]", "[inverted, {kind: folder, root: /x, name: y}]"),
        ("wise_ft: {}", "wise_ft: {alphas: [0.25], theta_1: uniform}"),
        ("wise_ft: {}", "ensemble: {space: probabilities}"),
        ("gpu: 0", "gpu: 0.5"),
    ],
)
def test_what_the_program_takes_it_takes(old, new):
    text = mini_text()
    assert old in text
    parse(text.replace(old, new), "it")
    assert wrong(text.replace(old, new)) == []


@pytest.mark.parametrize("place", EXAMPLES)
def test_the_examples_of_the_messages_fit_it(place):
    whole = json_schema()
    written = parse_yaml(EXAMPLES[place], place)
    for key in reversed(place.split(".")):
        written = {key: written}
    errors = jsonschema.Draft7Validator(piece_of(whole)).iter_errors(written)
    assert [error.message for error in errors] == []


def test_a_first_spec_names_the_file(tmp_path):
    rows = "\n".join(f"text {k},{'xy'[k % 2]}" for k in range(20))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}\n")
    drafted = texts_spec("t", tmp_path / "t.csv", "m").text
    named = drafted.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert unquote(urlsplit(named).path) == str(shipped())
    assert wrong(drafted) == []
    (tmp_path / "t.yaml").write_text(drafted)
    assert load(tmp_path / "t.yaml").name == "t"


def test_it_is_printed_without_large_libraries():
    code = (
        "import sys\nfrom soupray.cli import cli\ncli(['schema'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'ray', 'numpy', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
