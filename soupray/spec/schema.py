"""The JSON schema of a spec as a person writes it: for editors, and for the reference of keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from soupray.core.plugins import MODULE, installed
from soupray.recipes import GROUP, RECIPES
from soupray.spec import trackers
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.trackers import OWN

FILLED = {"classes", "size", "mean", "std"}
"""Keys that may be left out: they are filled in from the checkpoint or the data before a check."""

INTERNAL = ("code", "metric_code")
"""Keys that soupray fills in, and nobody writes."""

PACKAGE = Path(__file__).parent.parent


def json_schema() -> dict[str, Any]:
    """Return the schema, with a description of every key and the default of each that has one."""
    found: dict[str, Any] = _plain(SweepSpec.model_json_schema())
    recipes, options = _recipes()
    shown, theirs = _trackers()
    defs = {**found.pop("$defs"), **options, **theirs}
    for model in (found, *defs.values()):
        for name in INTERNAL:
            model.get("properties", {}).pop(name, None)
    for model in defs.values():
        _complete(model)
    ranges = {"$ref": "#/$defs/Dimension"}
    for key in defs["Trained"]["properties"].values():  # one training: numbers, no ranges
        key["anyOf"].remove(ranges)
    found["properties"]["recipes"] |= recipes
    found["properties"]["trackers"] |= shown
    # Draft 7, because editors know no newer one.
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A spec of soupray"}
    return {**head, **found, "$defs": dict(sorted(defs.items()))}


def as_text() -> str:
    """Return the schema as it is in a file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def shipped() -> Path:
    """Return the file of the schema that comes with the package, beside the specs."""
    in_checkout, in_wheel = PACKAGE.parent / "sweeps", PACKAGE / "sweeps"
    return (in_wheel if in_wheel.is_dir() else in_checkout) / "schema.json"


def _plain(node: Any) -> Any:
    """Return a schema of pydantic in draft 7, without its titles; descriptions are sentences."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("title", "discriminator"):
            continue
        if key in ("properties", "$defs"):
            made[key] = {name: _plain(part) for name, part in value.items()}
        elif key in ("default", "const", "enum", "required"):
            made[key] = value
        elif key == "description":
            made[key] = _sentence(value)
        else:
            made["items" if key == "prefixItems" else key] = _plain(value)
    return made


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", ")")) else ".")


def _complete(model: dict[str, Any]) -> None:
    """Say of a model what its fields do not: what `kind` means, and what may be left out."""
    kind = model.get("properties", {}).get("kind", {})
    if "const" in kind:
        kind["description"] = model["description"]
    if needed := [key for key in model.pop("required", []) if key not in FILLED]:
        model["required"] = needed


def _recipes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of `recipes`, and those of the options by name."""
    schemas, options = msgspec.json.schema_components(
        [recipe.options for recipe in RECIPES], ref_template="#/$defs/{name}"
    )
    keys = {
        recipe.name: {**schema, "description": _sentence(f"{recipe.summary}. {recipe.when}")}
        for recipe, schema in zip(RECIPES, schemas, strict=True)
    }
    return _with_plugins(keys, GROUP, "A recipe of yours"), _plain(options)


def _trackers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of `trackers`, and those of the options by name."""
    schemas, options = msgspec.json.schema_components(OWN.values(), ref_template="#/$defs/{name}")
    said = [_sentence((kind.__doc__ or "").splitlines()[0]) for kind in OWN.values()]
    keys = {
        name: {**schema, "description": words}
        for name, schema, words in zip(OWN, schemas, said, strict=True)
    }
    return _with_plugins(keys, trackers.GROUP, "A tracker of yours"), _plain(options)


def _with_plugins(keys: dict[str, Any], group: str, what: str) -> dict[str, Any]:
    """Return the schema of a mapping whose keys may also be plug-ins of a group."""
    own = {"type": "object", "description": f"{what}: its options."}
    return {
        "properties": keys | dict.fromkeys(installed(group), own),
        "patternProperties": {f"^{MODULE}$": own},
        "additionalProperties": False,
    }
