"""The `objective`, `metric` and `loss` of a spec: what outputs mean, what is counted and trained.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from soupray.core.records import Metric
from soupray.spec.space import Positive, SpecModel
from soupray.spec.task import Code

METRICS: dict[str, tuple[Metric, ...]] = {
    "one_class": ("accuracy", "balanced_accuracy", "macro_f1", "worst_class", "nll"),
    "multi_label": ("accuracy", "micro_f1", "macro_f1", "map", "nll"),
    "regression": ("accuracy", "mae", "r2", "spearman", "nll"),
}
"""The metrics of each objective. Accuracy is the share of samples that are right."""


class Tolerance(SpecModel):
    """What counts as right in a regression."""

    tolerance: Positive
    """A sample is right if no output is further from its target than this, in the unit of the
    targets."""


class Regression(SpecModel):
    """Targets are numbers; `task.classes` are the names of the outputs."""

    regression: Tolerance
    """How far an output may be from its target."""


ObjectiveSpec = Annotated[
    Annotated[Literal["one_class", "multi_label"], Tag("a word")]
    | Annotated[Regression, Tag("a mapping")],
    Discriminator(
        lambda value: "a mapping" if isinstance(value, dict | Regression) else "a word",
        custom_error_type="objective",
        custom_error_message="write one_class, multi_label or {regression: {tolerance: NUMBER}}",
    ),
]


class OwnLoss(SpecModel):
    """A loss of the user."""

    function: str
    """The function, as `package.module:name`, or the name of an entry point in `soupray.losses`."""

    code: Code = ""
    """The digest of its code, filled in when the spec is read."""


def _function(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


Loss = Annotated[OwnLoss, BeforeValidator(_function, json_schema_input_type=OwnLoss | str)]
