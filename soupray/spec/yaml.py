"""Read YAML files as YAML 1.2 does, and refuse what people read in two ways.

PyYAML reads YAML 1.1: `0010` is 8, `1:30` is 90, `2026-11-29` is a date, `off` is false, 5e-5 is a
text, and of two equal keys the last one wins. Here `off`, dates and times are texts, and 5e-5 is a
number. Equal keys, and numbers that are different numbers in the two versions, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from soupray.core.errors import ConfigError, one_line
from soupray.spec.files import read_text

MOST_NODES = 1_000_000
"""The most values of a document, where each alias counts as what it stands for. Nine lines of
aliases to the line before can stand for a thousand million values."""

DEEPEST = 50
"""The most levels of a document; a spec has five."""

CORE = ("null", "bool", "int", "float", "str", "seq", "map")
"""The types of YAML 1.2's core schema. Others, such as sets and dates, have no place in a spec."""

_TAG = "tag:yaml.org,2002:"
_TWO_WAYS = "!soupray/two-ways"


class _Older(yaml.SafeLoader):
    """The files of other programs, such as Kubernetes: with the numbers of YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raises yaml.YAMLError if two keys are equal."""
        if isinstance(node, yaml.MappingNode):  # not so for a list with the tag !!map
            seen: dict[str, yaml.Node] = {}
            for key, _ in node.value:
                if key.tag == f"{_TAG}merge":
                    continue
                if not isinstance(key, yaml.ScalarNode):
                    raise _refused(key, "a key is a list or a mapping; write a text")
                # As texts: a spec is stored as JSON, where 1 and "1" are one key.
                before = seen.setdefault(str(self.construct_object(key)), key)
                if before is not key:
                    raise _refused(
                        key,
                        f"the key {key.value[:80]!r} is already in line "
                        f"{before.start_mark.line + 1}; remove one of them",
                    )
        return super().construct_mapping(node, deep)


class _Loader(_Older):
    """Specs, label maps and lists of names."""

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Return the text of a node. Raises yaml.YAMLError if it is not Unicode."""
        text = str(self.construct_scalar(node))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _refused(node, "half of a surrogate pair is no character") from None
        return text

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Return the whole number of a node. Raises yaml.YAMLError if it is too long."""
        text = str(self.construct_scalar(node))
        if len(text) > 100:
            raise _refused(node, f"a whole number of {len(text)} digits; allowed are 100")
        return int(text, 0)

    def refuse_two_ways(self, node: yaml.ScalarNode) -> Any:
        """Raise yaml.YAMLError for a number that readers of YAML understand in two ways."""
        raise _refused(
            node,
            f"{node.value[:80]} is one number in YAML 1.1 and another one, or a text, in YAML 1.2; "
            "write a plain number, or a text in quotes",
        )


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_implicit_resolver(
    _TWO_WAYS,
    re.compile(
        r"^[-+]?(0[0-9_]+([eE][-+]?[0-9]+)?|0o[0-7]+|0b[01_]+"
        r"|[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?)$"
    ),
    list("-+0123456789"),
)
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in [_TAG + kind for kind in CORE]
}
_Loader.add_constructor(_TAG + "str", _Loader.construct_text)
_Loader.add_constructor(_TAG + "int", _Loader.construct_number)
_Loader.add_constructor(_TWO_WAYS, _Loader.refuse_two_ways)


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse_yaml(text: str, source: str) -> Any:
    """Return the data in YAML text. Raises ConfigError.

    Args:
        text: the YAML text.
        source: names the text in messages.
    """
    documents = _documents(text, source, _Loader)
    if len(documents) > 1:
        raise ConfigError(f"{source}: {len(documents)} documents, divided by ---; write one.")
    return documents[0] if documents else None


class At(NamedTuple):
    """A place in a text; both are counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        """Return the place in words."""
        return f"line {self.line}, column {self.column}"


def _at(mark: yaml.Mark) -> At:
    return At(mark.line + 1, mark.column + 1)


def find_key(text: str, place: Sequence[int | str]) -> At | None:
    """Return where a key is, or the innermost key of its place that is there.

    Args:
        text: one YAML document that `parse_yaml` can read.
        place: keys and positions in lists that lead to the value.

    Returns:
        Line and column; None if not even the first key is there.
    """
    node = yaml.compose(text, _Loader)
    found = None
    for part in place:
        inner: Any = None
        if isinstance(node, yaml.MappingNode):
            inner = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            values = node.value
            inner = (values[part], values[part]) if part < len(values) else None
        if inner is None:
            break
        found, node = inner
    return None if found is None else _at(found.start_mark)


def read_yaml(path: Path) -> Any:
    """Return the data in a YAML file. Raises ConfigError if it cannot be read or is not YAML."""
    return parse_yaml(read_text(path), str(path))


def read_documents(path: Path) -> list[Any]:
    """Return all documents in a YAML file, without empty ones. Raises ConfigError."""
    found = _documents(read_text(path), str(path), _Older)
    return [document for document in found if document is not None]


def _documents(text: str, source: str, kind: type[_Older]) -> list[Any]:
    try:
        loader = kind(text)
        try:
            return list(_constructed(loader))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {_in_one_line(error)}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not YAML: more than {DEEPEST} levels.") from error
    # The constructors of PyYAML raise these: int() and date() refuse what their patterns allow.
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{source}: not YAML: {_in_one_line(error)}.") from error


def _constructed(loader: _Older) -> Iterator[Any]:
    construct: Callable[[yaml.Node], Any] = loader.construct_document
    while loader.check_node():
        node = loader.get_node()
        assert node is not None
        _check_size(node, {}, 0)
        yield construct(node)


def _check_size(node: yaml.Node, sizes: dict[int, int], level: int) -> int:
    """Return the number of values in a node, and refuse too many of them or too many levels.

    Args:
        node: with all nodes in it.
        sizes: the sizes of nodes by identity; 0 for a node that contains `node`.
        level: of the node, from 0.
    """
    if level > DEEPEST:
        raise _refused(node, f"more than {DEEPEST} levels")
    if (known := sizes.get(id(node))) is not None:
        if known == 0:
            raise _refused(node, "an alias stands for something that contains it")
        return known
    sizes[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    size = 1
    for part in inner:
        for one in part if isinstance(part, tuple) else (part,):
            size += _check_size(one, sizes, level + 1)
    if size > MOST_NODES:
        raise _refused(node, f"aliases stand for more than {MOST_NODES} values")
    sizes[id(node)] = size
    return size


def _in_one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        said = one_line(", ".join(part for part in (error.context, error.problem) if part))
        return f"{_at(mark)}: {said}" if mark else said
    return one_line(error)
