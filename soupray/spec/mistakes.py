"""Say what is wrong with a spec: all mistakes at once, with line, column, allowed keys, example."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import pydantic

from soupray.core.errors import mask, one_line
from soupray.spec.examples import example_of
from soupray.spec.space import SpecModel
from soupray.spec.yaml import find_key

MOST_SHOWN, MOST_MISTAKES = 200, 20
"""Characters of a value that a message shows, and mistakes."""


def explain(
    error: pydantic.ValidationError, source: str, root: type[SpecModel], text: str | None = None
) -> str:
    """Return one message for all mistakes, each with its line and column.

    Args:
        error: the errors.
        source: names the spec in messages.
        root: the model that was validated.
        text: the YAML text; None if there is none.
    """
    found = _mistakes(error, root)
    said = []
    for place, mistake in found.items():
        at = None if text is None else find_key(text, place)
        words = _explained(place, mistake, root)
        said.append((at or (0, 0), words if at is None else f"{at}: {words}"))
    if len(said) == 1:
        return f"{source}: {said[0][1]}"
    lines = [words for _, words in sorted(said, key=lambda one: one[0])]
    left = len(lines) - MOST_MISTAKES
    more = [f"and {left} more"] if left > 0 else []
    return "\n".join([f"{source}: {len(lines)} mistakes:", *lines[:MOST_MISTAKES], *more])


Place = tuple[int | str, ...]


def _mistakes(error: pydantic.ValidationError, root: type[SpecModel]) -> dict[Place, Any]:
    """Return one error for each place: pydantic reports every branch of a union.

    The most specific error of a place stays. What is around a mistake, and what a branch of a union
    misses, is left out, unless there is nothing else.
    """
    vague, keys, kinds = ("missing", "model_type"), _all_keys(root), _all_kinds(root)
    found: dict[Place, Any] = {}
    errors = sorted(error.errors(), key=lambda e: (e["type"] in vague, -len(e["loc"])))
    for one in errors:
        *inner, last = one["loc"] or ("(top level)",)
        names = [p for p in inner if isinstance(p, int) or p in keys]
        # A tag says which branch is meant. Other branches of a union are only tried.
        in_branch = any(p not in kinds for p in inner if p not in names)
        # The last part is a key, unless it is pydantic's name of a branch of a union.
        if isinstance(last, int) or one["type"] == "extra_forbidden" or last in keys:
            names.append(last)
        place = tuple(names)
        around = any(other[: len(place)] == place for other in found)
        if around or (found and one["type"] in vague and (in_branch or _is_inside(place, found))):
            continue
        found[place] = one
    return found


def _is_inside(place: Place, found: dict[Place, Any]) -> bool:
    return any(place[: len(other)] == other for other in found)


def _explained(place: Place, mistake: Any, root: type[SpecModel]) -> str:
    """Return what is wrong at a place, and what is allowed."""
    where = one_line(".".join(map(str, place))) or "(top level)"
    if mistake["type"] == "extra_forbidden":
        allowed = _fields_at(list(mistake["loc"][:-1]), root)
        hint, example = _hint(place, allowed, root)
        return f"{where}: unknown key.{hint} Allowed: {', '.join(allowed)}.{example}"
    write = example_of(place)
    if mistake["type"] == "missing":
        return f"{where}: required, but not given.{f' For example: {write}.' if write else ''}"
    value = mistake["input"]
    message = mistake["msg"].removeprefix("Value error, ")
    if not message.isprintable():  # it repeats a value
        message = one_line(message)
    if isinstance(value, dict):  # too long to show; the message says what in it is wrong
        return f"{where}: {message}."
    shown = mask(repr(value))
    shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]} ..."
    example = f" For example: {write}." if write else ""
    if place[:2] == ("search", "space") and isinstance(value, list):
        example = f" Write {place[-1]}: {{log_uniform: {shown}}}, or uniform, integer, choice."
    return f"{where}: {shown} is not allowed: {message}.{example}"


def _hint(place: Place, allowed: list[str], root: type[SpecModel]) -> tuple[str, str]:
    """Return what an unknown key may mean, and an example of that.

    It may be a key that is near, or one that belongs elsewhere.
    """
    key = str(place[-1])
    if close := difflib.get_close_matches(key, allowed, n=1):
        example = example_of((*place[:-1], close[0]))
        return f" Did you mean {close[0]!r}?", f" For example: {example}." if example else ""
    for home in ("search.space", "search", "training", "resources", "data", "task"):
        section = home.split(".")
        if key in _fields_at(list(section), root):
            inside = section[-1] in place[:-1]
            return f" It {'is a key of another kind of' if inside else 'belongs into'} {home}.", ""
    return "", ""


def _fields_at(loc: list[int | str], root: type[SpecModel]) -> list[str]:
    """Return the keys that are allowed in the mapping at `loc`, a path of pydantic."""
    models: list[Any] = [root]
    for part in loc:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        # A part that is not a field is the tag of a union, which selects one of its models.
        tagged = [m for m in models if part in _kinds(m)]
        models = [inner for f in fields for inner in _models(f.annotation)] or tagged or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models(annotation: Any) -> list[Any]:
    """Return the models in the type of a field, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _kinds(model: Any) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _all_kinds(model: Any) -> set[str]:
    """Return the tags of all unions in a model."""
    inner = [one for field in model.model_fields.values() for one in _models(field.annotation)]
    return {*_kinds(model), *(kind for one in inner for kind in _all_kinds(one))}


def _all_keys(model: Any) -> set[str]:
    """Return the keys of a model and of all models in it."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            keys |= _all_keys(inner)
    return keys
