"""The spec of a sweep, a YAML file: the task, the data, the trials, and where to store results.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import pydantic
from msgspec import UNSET, UnsetType
from pydantic import Field

from soupray.core.errors import ConfigError, one_line
from soupray.core.plugins import METRICS as METRIC_GROUP
from soupray.core.records import Objective, Setting, digest
from soupray.recipes import check_recipes
from soupray.recipes.recipe import Option
from soupray.spec.addresses import STORAGE_PATTERN, TRACKING_PATTERN, check_url
from soupray.spec.class_names import resolved
from soupray.spec.files import read_text
from soupray.spec.libraries import Memory
from soupray.spec.limits import Budget, Keep, check_budget
from soupray.spec.mistakes import explain
from soupray.spec.objective import (
    RECALL,
    MetricName,
    ObjectiveSpec,
    Own,
    Regression,
    check_class_weights,
    check_objective,
    check_parts,
    check_readable,
    check_training,
)
from soupray.spec.plugged_in import AUGMENTATIONS, LOSSES, SHIFTS, with_code
from soupray.spec.preprocessing import with_preprocessing
from soupray.spec.proxies import check_dials
from soupray.spec.resources import Resources, TrainingSpec, check_resources, check_workers
from soupray.spec.space import (
    IMAGE_ONLY,
    Count,
    Search,
    SpecModel,
    refuse,
)
from soupray.spec.tables import DataSpec
from soupray.spec.task import Code, Init, TaskSpec, TorchSpec, TrainedInit
from soupray.spec.trackers import check_trackers
from soupray.spec.yaml import find_key, parse_yaml

NAME_LENGTH = 63
NAME_PATTERN = rf"[a-z0-9][a-z0-9_-]{{0,{NAME_LENGTH - 1}}}"
NAME_ALLOWED = f"1 to {NAME_LENGTH} lower-case letters, digits, - and _"

TEACHER_PATTERN = rf"{NAME_PATTERN}(@champion|:.+)"

IN_CODE = "SweepSpec"
"""What messages call a spec that is given in code."""

USUAL: dict[str, dict[str, Option]] = {
    name: {} for name in ("uniform", "greedy", "wise_ft", "greedy_ensemble")
}
"""The recipes of a spec that lists none: quick ones, with what most people ask for."""


def _matching(pattern: str, allowed: str) -> pydantic.AfterValidator:
    """Return a check that a text is as `pattern` says; its message says what is allowed."""

    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"write {allowed}")
        return text

    return pydantic.AfterValidator(check)


def _shown(pattern: str) -> Any:
    """Return what has the JSON schema say the pattern that `_matching` checks."""
    return Field(json_schema_extra={"pattern": f"^({pattern})$"})


class SweepSpec(SpecModel):
    """The spec of a sweep; all its trials and results follow from it."""

    name: Annotated[str, _matching(NAME_PATTERN, NAME_ALLOWED), _shown(NAME_PATTERN)]
    """The name of the sweep, in commands, in MLflow and in folders of results."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The trials, and everything that is drawn, follow from it."""

    threads: Annotated[Count, Field(le=1024)] = 1
    """Threads of each trial. Training is bit-equal from run to run at a fixed number."""

    evaluation_batch: Annotated[Count, Field(le=1_000_000)] = 250
    """Samples in a forward pass of the evaluation. Early rejection decides after each one, so that
    small batches suit a small held-out set."""

    precision: Literal["fp32", "cascade", "bf16"] = "fp32"
    """Of the evaluation. `cascade`: bfloat16, and float32 again where the margin is small; the
    counts are those of float32. `bf16`: no second pass."""

    metric: MetricName = "accuracy"
    """On held-out data, it decides which epoch of a trial is the best one, what recipes choose, and
    the order of the leaderboard. A function of your own, as `package.module:name`, gets outputs and
    targets, and returns a number, or one for each sample: larger is better. With the attribute
    `per_sample` it is graded: early rejection, tests and tables are then about it. Another metric
    means other trials."""

    metric_code: Annotated[Code, Field(exclude_if=lambda code: not code)] = ""
    """The digest of the code of a metric of your own, filled in when the spec is read."""

    task: Annotated[TaskSpec, Field(discriminator="kind")]
    """What is learnt: the model and its classes."""

    data: Annotated[DataSpec, Field(discriminator="kind")]
    """What is learnt from, what chooses, and what is reported."""

    # Left out if not given, so that digests of specs from before these fields do not change.
    objective: Annotated[ObjectiveSpec, Field(exclude_if=lambda value: value == "one_class")] = (
        "one_class"
    )
    """What the outputs of the model mean: the logits of one class of several; of any number of
    classes (`multi_label`); numbers (`regression`); a mask for each image (`segmentation`); or
    embeddings of queries and documents (`retrieval`)."""

    loss: Annotated[Own | None, Field(exclude_if=lambda value: value is None)] = None
    """The loss of the trials, a function of your own. Left out: cross-entropy, binary
    cross-entropy (of labels or pixels), the squared error, or InfoNCE, by `objective`."""

    augmentation: Annotated[Own | None, Field(exclude_if=lambda value: value is None)] = None
    """A function of your own that augments batches of training images, after those of
    `search.space`."""

    class_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default={}, exclude_if=lambda value: not value
    )
    """Weights of classes in the loss, by name; the others have 1. The mean over the samples is then
    made 1, so that they do not change the learning rate. `search.space.class_weight` makes weights
    of the numbers of samples."""

    teacher: Annotated[
        str | None,
        _matching(TEACHER_PATTERN, "SWEEP:ENTRY or SWEEP@champion"),
        Field(exclude_if=lambda value: value is None),
    ] = None
    """A model that the trials learn from, beside the labels: `SWEEP:ENTRY` or `SWEEP@champion` of
    an earlier leaderboard of this home, such as an ensemble, on the same training samples.
    `search.space.distillation` says how much."""

    init: Annotated[Init, Field(validate_default=True)] = "zero_shot"
    """Where all trials start (theta_0): the zero-shot model, `{trained: ...}`, `{probe: ...}` or
    `{file: PATH}`."""

    anchor: Annotated[Literal["zero_shot", "init"], Field(validate_default=True)] = "zero_shot"
    """The model from which WiSE-FT interpolates: the zero-shot model, or theta_0."""

    search: Search
    """Which trials there are."""

    training: TrainingSpec = TrainingSpec()
    """How trials are computed."""

    resources: Resources = Resources()
    """What one trial, or one actor that evaluates, reserves."""

    storage: Annotated[
        str,
        _matching(STORAGE_PATTERN, "embedded, s3://bucket/prefix or file:///folder"),
        _shown(STORAGE_PATTERN),
    ] = "embedded"
    """Where checkpoints and records are: `embedded`, an S3 server on this machine;
    `s3://bucket/prefix`; or `file:///folder`."""

    tracking: Annotated[
        str,
        _matching(TRACKING_PATTERN, "embedded, off, sqlite:///FILE or the URL of an MLflow server"),
        _shown(TRACKING_PATTERN),
    ] = "embedded"
    """Where trials are shown: `embedded`, MLflow on this machine; the URL of an MLflow server;
    `sqlite:///FILE`; or `off`."""

    trackers: dict[str, dict[str, Option]] = Field(default={})
    """Where trials are shown beside MLflow: `wandb`, `tensorboard`, or `module:name` for your own,
    each with its options."""

    recipes: dict[str, dict[str, Option]] = Field(default=USUAL)
    """The recipes that `soupray soup` runs when no flag names one, each with its options."""

    keep: Annotated[Keep, Field(exclude_if=lambda value: value == "all")] = "all"
    """Which trials keep their weights after `soupray soup` and `soupray gc`: `all`; `ingredients`,
    those that an entry of a stored leaderboard is made of; or `{best: N}`, these and the N best by
    `metric`. Logits and records always stay. With `all`, `soupray sweep` trains again what was let
    go."""

    budget: Annotated[Budget | None, Field(exclude_if=lambda value: value is None)] = None
    """What the trials may cost. When it is spent, no further trial starts."""

    slices: dict[str, str | tuple[str, ...]] = Field(default={}, exclude_if=lambda value: not value)
    """Named parts of ID test, for `soupray diagnose`: ids of samples, or the path of a file with
    an id in each line."""

    def __init__(self, **keys: Any) -> None:
        """Make a spec in code, with the checks of a file.

        Args:
            **keys: as in YAML: texts, numbers, lists and dicts, and `Path` objects for paths.

        Raises:
            ConfigError: the spec is not valid; the message has field, value and what is allowed.
        """
        _fill(self, _ready(_as_written(keys), IN_CODE, None), IN_CODE)

    # Specs that are read from records are checked already: pydantic makes them without this method.
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010 - pydantic's own mark

    @pydantic.field_validator("storage", "tracking")
    @classmethod
    def _can_be_opened(cls, url: str, info: pydantic.ValidationInfo) -> str:
        check_url(url, is_storage=info.field_name == "storage")
        return url

    @pydantic.field_validator("objective")
    @classmethod
    def _suits_metric_and_data(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        check_objective(value, info.data)
        return value

    @pydantic.field_validator("class_weights")
    @classmethod
    def _are_of_classes(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        check_class_weights(value, info.data)
        return value

    @pydantic.field_validator("teacher")
    @classmethod
    def _is_of_another_sweep(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
        if value is not None and re.split("[:@]", value)[0] == info.data.get("name"):
            raise ValueError("the teacher is of this sweep itself; give the sweep another name")
        return value

    @pydantic.field_validator("init", "search")
    @classmethod
    def _suits_the_objective(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        check_training(value, info.data)
        return value

    @pydantic.field_validator("init", "anchor")
    @classmethod
    def _suits_the_task(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        task = info.data.get("task")
        if info.data.get("objective") == "retrieval":  # an encoder needs no head
            return value
        if value == "zero_shot" and task is not None and not getattr(task, "templates", ()):
            new = "init: {probe: {l2: ...}}, or init: {trained: {lr: ..., epochs: ...}}"
            write = {"init": new, "anchor": "anchor: init"}
            prompts = ", or prompts in task.templates" if task.kind == "transformers" else ""
            raise ValueError(
                f"a {task.kind} model has no zero-shot head; write "
                f"{write[str(info.field_name)]}{prompts}"
            )
        return value

    @pydantic.field_validator("data")
    @classmethod
    def _can_be_read(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        check_readable(value, info.data.get("task"))
        return value

    @pydantic.field_validator("search")
    @classmethod
    def _has_what_is_augmented(cls, value: Search, info: pydantic.ValidationInfo) -> Search:
        if info.data.get("augmentation") is None:
            return value
        if getattr(info.data.get("task"), "kind", None) == "transformers":
            raise ValueError("augmentation is for images; leave it out")
        if getattr(info.data.get("data"), "kind", None) == "captions":
            raise ValueError("augmentation changes images and not their captions; leave it out")
        if value.train == "head":
            raise ValueError("augmentation needs the body: train: head sees it once; leave it out")
        return value

    @pydantic.field_validator("init", "search")
    @classmethod
    def _augments_images(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        space = value.trained if isinstance(value, TrainedInit) else getattr(value, "space", None)
        if space and getattr(info.data.get("task"), "kind", None) == "transformers":
            refuse(space, IMAGE_ONLY, "is for images")
        if space and getattr(info.data.get("data"), "kind", None) == "captions":
            refuse(space, IMAGE_ONLY, "changes images and not their captions")
        return value

    @pydantic.field_validator("training")
    @classmethod
    def _suits_the_search(cls, value: TrainingSpec, info: pydantic.ValidationInfo) -> TrainingSpec:
        check_parts(info.data.get("objective"), value)
        check_workers(value, info.data.get("search"))
        return value

    @pydantic.field_validator("resources")
    @classmethod
    def _suits_the_workers(cls, value: Resources, info: pydantic.ValidationInfo) -> Resources:
        check_resources(value, info.data.get("training"))
        return value

    @pydantic.field_validator("budget")
    @classmethod
    def _can_be_spent(cls, value: Budget | None, info: pydantic.ValidationInfo) -> Budget | None:
        resources = info.data.get("resources")
        check_budget(value, 0.0 if resources is None else resources.gpu)
        return value

    def __hash__(self) -> int:
        """Return a hash of all fields; pydantic's own fails because `recipes` is a dictionary."""
        return hash(self.model_dump_json())

    @property
    def setting(self) -> Setting:
        """How every model of this sweep is trained and evaluated."""
        return Setting(
            precision="bf16" if self.precision == "bf16" else "fp32",
            batch_size=self.evaluation_batch,
            threads=self.threads,
            device="cuda" if self.resources.gpu else "cpu",
            inputs=digest(self.task.model_dump(mode="json"))[:16],
        )

    @property
    def targets(self) -> Objective | UnsetType:
        """What the targets are; unset: one class for each sample."""
        if isinstance(self.objective, Regression):
            return Objective(kind="regression", tolerance=self.objective.regression.tolerance)
        if self.objective == "segmentation":
            assert isinstance(self.task, TorchSpec), "checked above"
            return Objective(kind="segmentation", side=self.task.size)
        if self.objective == "retrieval":
            assert self.task.kind == "transformers" or self.task.kind == "open_clip", "checked"
            first = int(self.metric.removeprefix("recall_at_")) if self.metric in RECALL else 1
            return Objective(kind="retrieval", first=first, scale=self.task.scale)
        return Objective(kind="multi_label") if self.objective == "multi_label" else UNSET

    @property
    def own_metric(self) -> tuple[str, str] | UnsetType:
        """Name and digest of the code of a metric of the user."""
        return (self.metric, self.metric_code) if self.metric_code else UNSET

    @property
    def own_augmentation(self) -> tuple[str, str] | None:
        """Name and digest of the code of an augmentation of the user."""
        own = self.augmentation
        return None if own is None else (own.function, own.code)

    @property
    def functions(self) -> list[tuple[str, str]]:
        """The functions of the user that this spec names: group of entry points, and name."""
        named = [(METRIC_GROUP, self.metric)] if self.metric_code else []
        named += [(LOSSES, self.loss.function)] if self.loss else []
        named += [(AUGMENTATIONS, self.augmentation.function)] if self.augmentation else []
        return named + [(SHIFTS, shift.function) for shift in self.data.functions]

    @property
    def own_loss(self) -> tuple[str, str] | None:
        """Name and digest of the code of a loss of the user."""
        return None if self.loss is None else (self.loss.function, self.loss.code)

    @property
    def loss_weights(self) -> tuple[float, ...] | None:
        """The weights of all classes in the loss, in their order; None: no weight is given."""
        if not self.class_weights:
            return None
        return tuple(self.class_weights.get(name, 1.0) for name in self.task.classes)

    @property
    def init_name(self) -> str:
        """How theta_0 is made: zero_shot, trained, probe or file."""
        if isinstance(self.init, str):
            return self.init
        return next(iter(type(self.init).model_fields))  # each kind has one field

    @property
    def digest(self) -> str:
        """Digest of the fields that determine the trials.

        It does not depend on recipes, resources, storage, tracking, trackers, keep or budget.
        """
        shaping: tuple[str, ...] = (
            "seed",
            "threads",
            "evaluation_batch",
            "precision",
            "task",
            "data",
            "init",
            "anchor",
            "search",
            "training",
        )
        if self.metric != "accuracy":
            shaping += ("metric", "metric_code")
        shaping += (
            "objective",
            "loss",
            "augmentation",
            "teacher",
            "class_weights",
        )  # left out of the dump where they are not given
        return digest({k: v for k, v in self.model_dump(mode="json").items() if k in shaping})


def load(path: Path, memory: Path | None = None) -> SweepSpec:
    """Return the spec in a YAML file.

    Args:
        path: of the file.
        memory: a folder for what libraries say about checkpoints, so that they need not be imported
            again. None: they are.

    Raises:
        ConfigError: the spec is not valid; the message has file, field, value and what is allowed.
    """
    return parse(read_text(path), str(path), memory)


def parse(text: str, source: str, memory: Path | None = None) -> SweepSpec:
    """Return the spec in YAML text. Raises ConfigError.

    Args:
        text: the YAML text.
        source: names the text in messages.
        memory: see `load`.
    """
    data = parse_yaml(text, source)
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a spec is a mapping, not {type(data).__name__}.")
    return parse_data(_ready(data, source, memory), source, text)


def _ready(data: dict[str, Any], source: str, memory: Path | None) -> dict[str, Any]:
    """Return plain data with what files and checkpoints say in place of their names."""
    return with_code(with_preprocessing(resolved(data, source), source, Memory(memory)), source)


def _as_written(keys: dict[str, Any]) -> dict[str, Any]:
    """Return keys that are given in code as the plain data that a file would have."""

    def text_of(value: object) -> str:
        if isinstance(value, PurePath):
            return str(value)
        raise ConfigError(
            f"{IN_CODE}: {one_line(repr(value))} is of type {type(value).__name__}. Write texts, "
            "numbers, lists and dicts, as in a YAML file; `.item()` of a NumPy number, "
            "`.tolist()` of an array."
        )

    try:
        written: dict[str, Any] = json.loads(json.dumps(keys, default=text_of))
    except (TypeError, ValueError, RecursionError) as error:  # a key, or a list in itself
        raise ConfigError(f"{IN_CODE}: {error}. Write a spec as in a YAML file.") from error
    return written


def parse_data(data: dict[str, Any], source: str, text: str | None = None) -> SweepSpec:
    """Return the spec in plain data that `parse` made: it refers to no file or checkpoint.

    Somebody else may have written the record that it is from. For this reason no file is read that
    it names.

    Args:
        data: the plain data.
        source: names the data in messages.
        text: the YAML text of the data, whose lines messages name; None if there is none.

    Raises:
        ConfigError: the data are not a valid spec.
    """
    spec = SweepSpec.__new__(SweepSpec)
    _fill(spec, data, source, text)
    return spec


def _fill(spec: SweepSpec, data: dict[str, Any], source: str, text: str | None = None) -> None:
    """Check plain data and put them into a spec that is still empty; see `parse_data`."""
    try:
        # Through JSON, because pydantic's strict mode takes a list for a tuple only there.
        written = json.dumps(data, default=str)
        SweepSpec.__pydantic_validator__.validate_json(written, self_instance=spec)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, source, SweepSpec, text)) from error
    for key, named in (("recipes", spec.recipes), ("trackers", spec.trackers)):
        check = check_recipes if key == "recipes" else check_trackers
        for name, options in named.items():
            at = None if text is None else find_key(text, (key, name))
            check({name: options}, f"{source}: {'' if at is None else f'{at}: '}{key}")
    check_dials(spec.recipes, spec.data, source)
