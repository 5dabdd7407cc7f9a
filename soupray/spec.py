"""A sweep as a YAML file: what is learnt, on what, with which trials, and where it is kept."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from soupray.errors import ConfigError
from soupray.recipes import Option, check_recipes
from soupray.records import Setting, digest
from soupray.space import Count, NonNegative, Positive, Search, SpecModel


def _matching(pattern: str, allowed: str) -> pydantic.AfterValidator:
    """A text that starts with `pattern`; the message says what is allowed."""

    def check(text: str) -> str:
        if not re.match(pattern, text):
            raise ValueError(f"write {allowed}")
        return text

    return pydantic.AfterValidator(check)


class TaskSpec(SpecModel):
    """An open_clip model, classified zero-shot by prompts, fine-tuned end to end.

    `model` is an architecture that open_clip knows, or `local-dir:PATH`, or `soupray:digits`, the
    small model in this package. `pretrained` is open_clip's tag or a local file.
    """

    kind: Literal["open_clip"]
    model: str
    pretrained: str | None = None
    classes: tuple[str, ...] = Field(min_length=2)
    templates: tuple[str, ...] = Field(min_length=1)

    @pydantic.field_validator("templates")
    @classmethod
    def _have_a_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            rest = template.replace("{}", "", 1)
            if rest == template or "{" in rest or "}" in rest:
                raise ValueError(f"the template {template!r} needs one {{}}, for the class name")
        return templates


class DataSpec(SpecModel):
    """Scikit-learn's copy of the UCI digits, as 32 x 32 images.

    `train_per_class` images a class to train on, `held_out` to choose with, the rest is ID test.
    """

    kind: Literal["digits"]
    train_per_class: Count = 20
    held_out: Annotated[int, Field(ge=0)] = 500
    shifts: tuple[Literal["inverted", "rotated", "noise", "low_contrast", "thickened"], ...] = ()

    @pydantic.field_validator("shifts")
    @classmethod
    def _differ(cls, shifts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(shifts)) < len(shifts):
            raise ValueError("a shift is listed twice")
        return shifts


class Resources(SpecModel):
    """What one trial, and one evaluating actor, reserves on the cluster. Fractions are allowed."""

    cpu: Positive = 1.0
    gpu: NonNegative = 0.0


class SweepSpec(SpecModel):
    """A sweep. Everything that is done follows from it; see `soupray.plan.plan`."""

    name: Annotated[
        str, _matching(r"[a-z0-9][a-z0-9_-]{0,62}$", "1 to 63 lower-case letters, digits, - and _")
    ]
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    evaluation_batch: Count = 250
    precision: Literal["fp32", "cascade", "bf16"] = "fp32"
    task: TaskSpec
    data: DataSpec
    init: Literal["zero_shot"] = "zero_shot"
    anchor: Literal["zero_shot"] = "zero_shot"
    search: Search
    resources: Resources = Resources()
    storage: Annotated[
        str,
        _matching(r"embedded$|s3://.|file:///.", "embedded, s3://bucket/prefix or file:///folder"),
    ]
    tracking: Annotated[
        str,
        _matching(
            r"embedded$|off$|https?://.|sqlite:///.",
            "embedded, off, sqlite:///FILE or the URL of an MLflow server",
        ),
    ]
    recipes: dict[str, dict[str, Option]]

    def __hash__(self) -> int:
        """Of all fields; pydantic's own fails on the dictionary of recipes."""
        return hash(self.model_dump_json())

    @property
    def setting(self) -> Setting:
        """How every model of this sweep is trained and evaluated."""
        return Setting(
            precision="bf16" if self.precision == "bf16" else "fp32",
            batch_size=self.evaluation_batch,
            threads=self.threads,
            device="cuda" if self.resources.gpu else "cpu",
        )

    @property
    def digest(self) -> str:
        """Of the parts that shape the trials: not of recipes, resources, storage or tracking."""
        shaping = (
            "seed",
            "threads",
            "evaluation_batch",
            "task",
            "data",
            "init",
            "anchor",
            "search",
        )
        return digest({k: v for k, v in self.model_dump(mode="json").items() if k in shaping})


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and floats: `off` is a word here, and 5e-5 a number."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load(path: Path) -> SweepSpec:
    """The spec in a YAML file.

    Raises:
        ConfigError: with file, field, offending value and what is allowed.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text.") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> SweepSpec:
    """The spec in YAML `text`; `source` names it in messages. Raises ConfigError as `load`."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a spec is a mapping, not {type(data).__name__}.")
    return parse_data(data, source)


def parse_data(data: dict[str, Any], source: str) -> SweepSpec:
    """The spec in plain data, as YAML or JSON gave it. Raises ConfigError as `load`."""
    try:
        # Through JSON, because pydantic's strict mode takes a list for a tuple only there.
        spec = SweepSpec.model_validate_json(json.dumps(data, default=str))
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, source)) from error
    check_recipes(spec.recipes, f"{source}: recipes")
    return spec


def _explain(error: pydantic.ValidationError, source: str) -> str:
    """One message for the deepest of pydantic's errors (unions report every branch)."""
    vague = ("missing", "model_type")
    first = max(error.errors(), key=lambda e: (e["type"] not in vague, len(e["loc"])))
    *inner, last = first["loc"] or ("(top level)",)
    names = [p for p in inner if isinstance(p, int) or p in _KEYS]
    # The last part is the key itself, unless it is how pydantic names a branch of a union.
    if isinstance(last, int) or first["type"] == "extra_forbidden" or last in _KEYS:
        names.append(last)
    where = ".".join(map(str, names)) or "(top level)"
    if first["type"] == "extra_forbidden":
        allowed = _fields_at([str(p) for p in names[:-1]])
        close = difflib.get_close_matches(str(names[-1]), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{source}: {where}: unknown key.{hint} Allowed: {', '.join(allowed)}."
    if first["type"] == "missing":
        return f"{source}: {where}: required, but not given."
    value = first["input"] if not isinstance(first["input"], dict) else "this mapping"
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: {where}: {value!r} is not allowed: {message}."


def _fields_at(names: list[str]) -> list[str]:
    """Keys allowed in the mapping that `names` lead to."""
    model: Any = SweepSpec
    for name in names:
        annotation = model.model_fields[name].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, SpecModel))
    return list(model.model_fields)


def _all_keys(model: Any) -> set[str]:
    """Keys of a model and of all models in it."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, SpecModel):
                keys |= _all_keys(option)
    return keys


_KEYS = _all_keys(SweepSpec)
