"""What is wrong with a spec, in one sentence: pydantic's errors as a person reads them."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import pydantic

from soupray.core.errors import mask
from soupray.space import SpecModel


def explain(error: pydantic.ValidationError, source: str, root: type[SpecModel]) -> str:
    """One message for the deepest of the errors in a `root` (unions report every branch)."""
    vague, keys = ("missing", "model_type"), _all_keys(root)
    first = max(error.errors(), key=lambda e: (e["type"] not in vague, len(e["loc"])))
    *inner, last = first["loc"] or ("(top level)",)
    names = [p for p in inner if isinstance(p, int) or p in keys]
    # The last part is the key itself, unless it is how pydantic names a branch of a union.
    if isinstance(last, int) or first["type"] == "extra_forbidden" or last in keys:
        names.append(last)
    where = ".".join(map(str, names)) or "(top level)"
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(inner, root)
        close = difflib.get_close_matches(str(names[-1]), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{source}: {where}: unknown key.{hint} Allowed: {', '.join(allowed)}."
    if first["type"] == "missing":
        return f"{source}: {where}: required, but not given."
    value = first["input"] if not isinstance(first["input"], dict) else "this mapping"
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: {where}: {mask(repr(value))} is not allowed: {message}."


def _fields_at(loc: list[int | str], root: type[SpecModel]) -> list[str]:
    """Keys allowed in the mapping that `loc`, pydantic's path, leads to."""
    models: list[Any] = [root]
    for part in loc:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        # What is no field is the tag of a union, which says which of its models is meant.
        tagged = [m for m in models if part in _kinds(m)]
        models = [inner for f in fields for inner in _models(f.annotation)] or tagged or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models(annotation: Any) -> list[Any]:
    """The models in a field's type, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _kinds(model: Any) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _all_keys(model: Any) -> set[str]:
    """Keys of a model and of all models in it."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            keys |= _all_keys(inner)
    return keys
