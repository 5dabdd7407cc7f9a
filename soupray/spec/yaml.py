"""Read YAML files with the booleans and floats of YAML 1.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from soupray.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """A safe loader in which `off` is a word, and 5e-5 is a number, as in YAML 1.2."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text.") from error


def parse_yaml(text: str, source: str) -> Any:
    """Return the data in YAML text. Raises ConfigError.

    Args:
        text: the YAML text.
        source: names the text in messages.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error


def read_yaml(path: Path) -> Any:
    """Return the data in a YAML file. Raises ConfigError if it cannot be read or is not YAML."""
    return parse_yaml(read_text(path), str(path))


def read_documents(path: Path) -> list[Any]:
    """Return all documents in a YAML file, without empty ones. Raises ConfigError."""
    try:
        found = list(yaml.load_all(read_text(path), _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    return [document for document in found if document is not None]
