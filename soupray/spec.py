"""A sweep as a YAML file: what is learnt, on what, with which trials, and where it is kept."""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from soupray.errors import ConfigError
from soupray.recipes import Option, check_recipes
from soupray.records import Setting, digest

Value = float | int | str


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Dimension(_Model):
    """One coordinate of the search space, read off a uniform number u in [0, 1).

    Exactly one of `log_uniform`, `uniform` (half-open ranges), `integer` (both ends included) and
    `choice`. `off: p` makes the value 0 with probability p, as one coordinate: u < p is off.
    """

    log_uniform: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    choice: tuple[Value, ...] | None = None
    off: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k in ("log_uniform", "uniform", "integer", "choice") if getattr(self, k)]
        if len(kinds) != 1:
            raise ValueError(
                "give exactly one of log_uniform, uniform, integer or a choice that is not empty"
            )
        bounds = self.log_uniform or self.uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the range {list(bounds)} is empty; write [low, high], low < high")
        if self.integer and not self.integer[0] <= self.integer[1]:
            raise ValueError(f"the range {list(self.integer)} is empty; write [low, high]")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"a log_uniform range starts above 0, not at {self.log_uniform[0]}")
        return self

    def at(self, u: float) -> Value:
        """The value at coordinate u in [0, 1)."""
        if u < self.off:
            return 0
        u = (u - self.off) / (1 - self.off)
        if self.log_uniform:
            low, high = map(math.log, self.log_uniform)
            return math.exp(low + u * (high - low))
        if self.uniform:
            return self.uniform[0] + u * (self.uniform[1] - self.uniform[0])
        if self.integer:
            return self.integer[0] + int(u * (self.integer[1] - self.integer[0] + 1))
        assert self.choice is not None
        return self.choice[int(u * len(self.choice))]

    def ends(self) -> tuple[Value, ...]:
        """The extreme values, for range checks."""
        values = self.log_uniform or self.uniform or self.integer or self.choice or ()
        return (*values, 0) if self.off else values


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

_LIMITS: dict[str, tuple[float, float]] = {
    "lr": (1e-12, 10),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "weight_decay": (0, 10),
    "label_smoothing": (0, 0.999),
    "rotation": (0, 180),
    "shift": (0, 1),
    "warmup": (0, 1),
    "clip_norm": (1e-12, 1e12),
}


class Space(_Model):
    """The hyperparameters of a trial: a dimension, or a number that all trials share.

    Defaults are those of WiSE-FT (arXiv:2109.01903) where it names one: weight decay 0.1, clip
    norm 1. `warmup` is a share of the steps, at most 500 steps. `rotation` is in degrees and
    `shift` a share of the image's side, both drawn per image.
    """

    lr: Dimension | Positive
    epochs: Dimension | Count
    batch_size: Dimension | Count = 32
    weight_decay: Dimension | NonNegative = 0.1
    label_smoothing: Dimension | NonNegative = 0.0
    rotation: Dimension | NonNegative = 0.0
    shift: Dimension | NonNegative = 0.0
    warmup: Dimension | NonNegative = 0.1
    clip_norm: Dimension | Positive = 1.0

    @pydantic.model_validator(mode="after")
    def _within_limits(self) -> Space:
        for name, (low, high) in _LIMITS.items():
            entry = getattr(self, name)
            for value in entry.ends() if isinstance(entry, Dimension) else (entry,):
                if isinstance(value, str) or not low <= value <= high:
                    raise ValueError(f"{name} = {value!r}; allowed is {low:g} to {high:g}")
        return self


class Search(_Model):
    """How many trials, drawn how, from where."""

    trials: Count
    sampler: Literal["random", "qmc"] = "random"
    space: Space


class TaskSpec(_Model):
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
            if "{}" not in template:
                raise ValueError(f"the template {template!r} has no {{}} for the class name")
        return templates


class DataSpec(_Model):
    """Scikit-learn's copy of the UCI digits, as 32 x 32 images.

    `train_per_class` images a class to train on, `held_out` to choose with, the rest is ID test.
    """

    kind: Literal["digits"]
    train_per_class: Count = 20
    held_out: Annotated[int, Field(ge=0)] = 500
    shifts: tuple[Literal["inverted", "rotated", "noise", "low_contrast", "thickened"], ...] = ()


class Resources(_Model):
    """What one trial, and one evaluating actor, reserves on the cluster. Fractions are allowed."""

    cpu: Positive = 1.0
    gpu: NonNegative = 0.0


class SweepSpec(_Model):
    """A sweep. Everything that is done follows from it; see `soupray.plan.plan`."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    evaluation_batch: Count = 250
    task: TaskSpec
    data: DataSpec
    init: Literal["zero_shot"] = "zero_shot"
    anchor: Literal["zero_shot"] = "zero_shot"
    search: Search
    resources: Resources = Resources()
    storage: str
    tracking: str
    recipes: dict[str, dict[str, Option]]

    @pydantic.field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.match(r"^[a-z0-9][a-z0-9_-]{0,62}$", name):
            raise ValueError("use 1 to 63 lower-case letters, digits, - and _")
        return name

    @pydantic.field_validator("storage")
    @classmethod
    def _is_a_store(cls, storage: str) -> str:
        if not re.match(r"^(embedded$|s3://.|file:///.)", storage):
            raise ValueError("write embedded, s3://bucket/prefix or file:///folder")
        return storage

    @pydantic.field_validator("tracking")
    @classmethod
    def _is_a_tracker(cls, tracking: str) -> str:
        if not re.match(r"^(embedded$|off$|https?://.|sqlite:///.)", tracking):
            raise ValueError("write embedded, off, sqlite:///FILE or the URL of an MLflow server")
        return tracking

    def __hash__(self) -> int:
        """Of all fields; pydantic's own fails on the dictionary of recipes."""
        return hash(self.model_dump_json())

    @property
    def setting(self) -> Setting:
        """How every model of this sweep is trained and evaluated."""
        return Setting(
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
    names = [p for p in first["loc"] if isinstance(p, int) or p.isidentifier()]
    names = [p for p in names if not (isinstance(p, str) and (p[0].isupper() or p in _TYPES))]
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


_TYPES = {"int", "float", "str"}  # how pydantic names the branches of a union in a location


def _fields_at(names: list[str]) -> list[str]:
    """Keys allowed in the mapping that `names` lead to."""
    model: Any = SweepSpec
    for name in names:
        annotation = model.model_fields[name].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, _Model))
    return list(model.model_fields)
