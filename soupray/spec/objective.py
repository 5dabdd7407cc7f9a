"""The `objective`, `metric` and `loss` of a spec: what outputs mean, what is counted and trained.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from soupray.core.plugins import METRICS as METRIC_GROUP
from soupray.core.plugins import is_plugin
from soupray.core.records import KnownMetric
from soupray.spec.space import (
    CLASSES_ONLY,
    NUMBERS_ONLY,
    OF_LOSS,
    ONE_CLASS_ONLY,
    TEACHER_ONLY,
    Positive,
    SpecModel,
    refuse,
)
from soupray.spec.task import Code, ProbeInit, TrainedInit

METRICS: dict[str, tuple[KnownMetric, ...]] = {
    "one_class": ("accuracy", "balanced_accuracy", "macro_f1", "worst_class", "nll"),
    "multi_label": ("accuracy", "micro_f1", "macro_f1", "map", "nll"),
    "regression": ("accuracy", "mae", "r2", "spearman", "nll"),
}
"""The metrics of each objective. Accuracy is the share of samples that are right."""


KNOWN: frozenset[str] = frozenset(get_args(KnownMetric))


def _says_metrics(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which metrics there are, and that a function may be named."""
    schema.pop("type", None)
    schema["anyOf"] = [{"enum": list(get_args(KnownMetric))}, {"type": "string"}]


def _is_metric(name: str) -> str:
    if name not in KNOWN and not is_plugin(name, METRIC_GROUP):
        near = difflib.get_close_matches(name, sorted(KNOWN), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"there is no metric {name!r}{hint}; allowed are {', '.join(get_args(KnownMetric))}, "
            "or module:name for your own"
        )
    return name


MetricName = Annotated[str, Field(json_schema_extra=_says_metrics), AfterValidator(_is_metric)]


class Tolerance(SpecModel):
    """What counts as right in a regression."""

    tolerance: Positive
    """A sample is right if no output is further from its target than this, in the unit of the
    targets."""


class Regression(SpecModel):
    """Targets are numbers; `task.classes` are the names of the outputs."""

    regression: Tolerance
    """How far an output may be from its target."""


def _form(value: Any) -> str | None:
    if isinstance(value, dict | Regression):
        return "a mapping"
    return "a word" if value in ("one_class", "multi_label") else None


ObjectiveSpec = Annotated[
    Annotated[Literal["one_class", "multi_label"], Tag("a word")]
    | Annotated[Regression, Tag("a mapping")],
    Discriminator(
        _form,
        custom_error_type="objective",
        custom_error_message="write one_class, multi_label or {regression: {tolerance: NUMBER}}",
    ),
]


def not_in_tables(kind: str, names: Sequence[str]) -> str:
    """Say which name would be read as something else in a table of predictions; empty: none.

    Args:
        kind: the objective.
        names: of the classes, or of the outputs of a regression.
    """
    if kind == "regression" and "input" in names:
        return "an output cannot be called 'input': that is a column of each table of predictions"
    joined = [name for name in names if "|" in name]
    if kind == "multi_label" and joined:
        return f"the class {joined[0]!r} has a |, which is between classes in tables of predictions"
    return ""


class OwnFunction(SpecModel):
    """A function of the user."""

    function: str
    """The function, as `package.module:name`, or the name of an entry point in the group of its
    kind, such as `soupray.losses`."""

    code: Code = ""
    """The digest of its code, filled in when the spec is read."""


def _function(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


Own = Annotated[OwnFunction, BeforeValidator(_function, json_schema_input_type=OwnFunction | str)]


def check_objective(value: Any, said: Mapping[str, Any]) -> None:
    """Raise ValueError if an objective does not go together with what stands before it in a spec.

    Args:
        value: the objective.
        said: the keys before it, as they were checked.
    """
    kind = "regression" if isinstance(value, Regression) else value
    metric, task, data = (said.get(name) for name in ("metric", "task", "data"))
    if metric in KNOWN and metric not in METRICS[kind]:
        raise ValueError(f"{kind} has no metric {metric}; write metric: {', '.join(METRICS[kind])}")
    if kind != "regression" and task is not None and len(task.classes) < 2:
        raise ValueError(f"{kind} has at least two classes; task.classes names one")
    if task is not None and (taken := not_in_tables(kind, task.classes)):
        raise ValueError(taken)
    if kind == "one_class":
        return
    if task is not None and task.kind not in ("timm", "torch"):
        raise ValueError(
            f"a {task.kind} model has a head for one class; {kind} needs kind: timm or torch"
        )
    if data is not None and data.kind != "torch":
        raise ValueError(
            f"data of kind {data.kind} have one class for each sample; {kind} needs kind: "
            "torch, a function that returns datasets"
        )
    if getattr(data, "label_map", None) is not None:
        raise ValueError(f"data.label_map is for one class, not for {kind}; leave it out")
    if said.get("precision") == "cascade":
        raise ValueError(f"precision: cascade counts one class; with {kind} write fp32")


def check_training(value: Any, said: Mapping[str, Any]) -> None:
    """Raise ValueError if `init` or `search` does not go together with the objective.

    Args:
        value: of `init` or `search`.
        said: the keys before it, as they were checked.
    """
    objective = said.get("objective", "one_class")
    space = value.trained if isinstance(value, TrainedInit) else getattr(value, "space", None)
    if objective != "one_class" and isinstance(value, ProbeInit):
        raise ValueError(
            "a probe is a logistic regression for one class; write init: {trained: ...}"
        )
    if space is None:
        return
    check_distillation(space, None if isinstance(value, TrainedInit) else said.get("teacher"))
    if said.get("loss") is not None:
        refuse(space, OF_LOSS, "changes the losses of soupray, not your `loss`")
    if isinstance(objective, Regression):
        refuse(space, CLASSES_ONLY | {"mixup": 0.0}, "is for classes, not for regression")
    else:
        refuse(space, NUMBERS_ONLY, "is for regression")
    if objective == "multi_label":
        refuse(space, ONE_CLASS_ONLY, "is for one class, not for multi_label")


def check_distillation(space: Any, teacher: str | None) -> None:
    """Raise ValueError if trials have a teacher and do not learn from it, or the other way round.

    Args:
        space: the hyperparameters.
        teacher: of the spec; None if there is none, or if theta_0 is trained: it has none.
    """
    if teacher is None:
        refuse(space, TEACHER_ONLY, "needs the key `teacher`, and trials; theta_0 has none")
    elif space.distillation == 0:
        raise ValueError(
            f"there is a teacher, {teacher}, and no trial learns from it; write "
            "distillation: 0.5, or {uniform: [0, 1]}"
        )
