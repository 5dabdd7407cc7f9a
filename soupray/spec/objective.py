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
    BODY_ONLY,
    CLASSES_ONLY,
    MASKS_ONLY,
    NUMBERS_ONLY,
    OF_LOSS,
    ONE_CLASS_ONLY,
    PAIRS_ONLY,
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
    "segmentation": ("iou", "dice", "pixel_accuracy", "nll"),
    "retrieval": ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "nll"),
}
"""The metrics of each objective. Accuracy is the share of samples that are right; `iou` is the mean
over images of the intersection over union; `recall_at_k` the share of queries whose document is
among the k nearest ones, and `mrr` the mean of 1 / its place. MLflow takes no @ in a name."""

RECALL = tuple(name for name in METRICS["retrieval"] if name.startswith("recall_at_"))

DOCUMENT = ("document",)
"""What stands for `task.classes` in retrieval, which has none."""

STAYING = ("inverted", "noise", "low_contrast", "blurred", "faded", "grainy", "pixelated")
"""Corruptions that change pixels where they are, so that a mask stays as it is."""

MOVING = ("rotated", "moved")
"""Corruptions that move pixels: a mask is moved with its image."""


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


Word = Literal["one_class", "multi_label", "segmentation", "retrieval"]


def _form(value: Any) -> str | None:
    if isinstance(value, dict | Regression):
        return "a mapping"
    return "a word" if value in get_args(Word) else None


ObjectiveSpec = Annotated[
    Annotated[Word, Tag("a word")] | Annotated[Regression, Tag("a mapping")],
    Discriminator(
        _form,
        custom_error_type="objective",
        custom_error_message="write one_class, multi_label, segmentation, retrieval or "
        "{regression: {tolerance: NUMBER}}",
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


def check_readable(data: Any, task: Any) -> None:
    """Raise ValueError if a model cannot read data.

    Args:
        data: of the spec.
        task: of the spec; None: it is wrong itself.
    """
    if task is None:
        return
    if (task.kind == "transformers") != (data.kind == "text"):
        raise ValueError(
            f"a {task.kind} model cannot read data of kind {data.kind}: texts are for "
            "transformers, images for the others"
        )
    if data.kind == "captions" and task.kind != "open_clip":
        raise ValueError(
            f"a {task.kind} model cannot read captions; data of kind captions need kind: open_clip"
        )


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
    if task is not None:
        _check_classes(kind, task)
    _refuse_captions(kind, data)
    if kind == "one_class":
        return
    if said.get("precision") == "cascade":
        raise ValueError(f"precision: cascade counts one class; with {kind} write fp32")
    if kind == "retrieval":
        _check_pairs(task, data)
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
    if kind == "segmentation":
        _check_masks(task, data)


def _refuse_captions(kind: str, data: Any) -> None:
    """Raise ValueError if data have captions, and an objective has other targets."""
    if data is not None and data.kind == "captions" and kind != "retrieval":
        raise ValueError(
            f"data of kind captions have no targets of {kind}; write objective: retrieval"
        )


def _check_classes(kind: str, task: Any) -> None:
    """Raise ValueError if the outputs or the classes of a task are not those of an objective."""
    if kind in ("one_class", "multi_label") and len(task.classes) < 2:
        raise ValueError(f"{kind} has at least two classes; task.classes names one")
    if taken := not_in_tables(kind, task.classes):
        raise ValueError(taken)
    wanted = {"segmentation": "masks", "retrieval": "embeddings"}.get(kind, "classes")
    if getattr(task, "outputs", wanted) != wanted:
        raise ValueError(
            f"task.outputs is {task.outputs}, but {kind} has {wanted}; leave it out: it is filled "
            "in"
        )


def _check_pairs(task: Any, data: Any) -> None:
    """Raise ValueError if a model makes no embeddings of pairs, or the data are no pairs."""
    if task is not None and task.kind not in ("transformers", "open_clip"):
        raise ValueError(
            f"a {task.kind} model reads images; retrieval needs kind: transformers, which embeds "
            "queries and documents, or open_clip, which embeds images and captions"
        )
    if data is not None and data.kind not in ("text", "captions"):
        raise ValueError(
            f"data of kind {data.kind} have no documents; retrieval needs kind: text, with "
            "queries in text_column and documents in label_column, or captions, with images in "
            "image_column and captions in caption_column"
        )
    if data is not None and len(set(data.columns.values())) == 1:
        keys = " and ".join(f"data.{key}" for key in data.columns)
        raise ValueError(
            f"{keys} are both {next(iter(data.columns.values()))!r}: each query would be its own "
            "document; name two columns"
        )
    if task is None:
        return
    if task.classes != DOCUMENT:
        raise ValueError("retrieval has documents and no classes; leave task.classes out")
    if task.templates:
        raise ValueError("task.templates are of a head for classes; retrieval has none")
    if getattr(task, "pooling", None) == "own":
        raise ValueError(
            "task.pooling: own is the library's classifier; write mean or cls, which make one "
            "vector of a text"
        )


def _check_masks(task: Any, data: Any) -> None:
    """Raise ValueError if images would be resized, cut or moved without their masks."""
    if task is not None and task.kind != "torch":
        raise ValueError(
            f"a {task.kind} model has a head for classes; segmentation needs kind: torch, a "
            "function that returns a module"
        )
    if task is not None and len(task.classes) != 1:
        raise ValueError(
            f"segmentation has one mask for each image: task.classes is its name, not "
            f"{len(task.classes)} names"
        )
    if task is not None and task.crop != 1:
        raise ValueError(f"task.crop = {task.crop:g} cuts images, not masks; leave it out")
    if data is None:
        return
    sides = {"data.size": data.size, "data.train_size": data.side_of_train}
    for name, side in sides.items():
        if task is not None and side != task.size:
            raise ValueError(
                f"{name} is {side}, and task.size is {task.size}: masks are not resized; write "
                f"data.size and data.train_size: {task.size}"
            )
    words = {"shifts": data.corruptions, "proxy_shifts": data.proxy_shifts}
    named = [(k, s) for k, of in words.items() for s in of if s not in (*STAYING, *MOVING)]
    named += [("shifts", shift.function) for shift in data.functions]
    if named:
        key, name = named[0]
        raise ValueError(
            f"data.{key}: {name} changes what is in an image, and nothing says how its mask "
            f"changes; allowed are {', '.join((*STAYING, *MOVING))}, and splits of your dataset"
        )


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
    if objective == "segmentation":
        _check_mask_training(value, said)
    if objective == "retrieval":
        _check_pair_training(value, said)
    if space is None:
        return
    check_noise(space, said, head=getattr(value, "train", "all") == "head")
    check_distillation(space, None if isinstance(value, TrainedInit) else said.get("teacher"))
    if objective == "segmentation":
        refuse(space, {"randaugment": 0.0}, "moves images without their masks")
    else:
        refuse(space, MASKS_ONLY, "is for segmentation")
    if said.get("loss") is not None:
        refuse(space, OF_LOSS, "changes the losses of soupray, not your `loss`")
    _check_targets(space, objective)


def _check_targets(space: Any, objective: Any) -> None:
    """Raise ValueError for hyperparameters about targets that an objective does not have."""
    if objective == "retrieval":
        refuse(space, CLASSES_ONLY, "is for classes, not for retrieval")
    else:
        refuse(space, PAIRS_ONLY, "is for retrieval")
    if isinstance(objective, Regression):
        refuse(space, CLASSES_ONLY | {"mixup": 0.0}, "is for classes, not for regression")
    else:
        refuse(space, NUMBERS_ONLY, "is for regression")
    if objective in ("multi_label", "segmentation"):
        refuse(space, ONE_CLASS_ONLY, f"is for one class, not for {objective}")


def _check_mask_training(value: Any, said: Mapping[str, Any]) -> None:
    """Raise ValueError for what would part images and their masks, or needs classes."""
    if said.get("augmentation") is not None:
        raise ValueError(
            "augmentation: a function of yours gets images and no masks, so that they may come "
            "apart; leave it out: rotation, shift, crop and flip move both"
        )
    if said.get("teacher") is not None:
        raise ValueError(
            "teacher: its outputs would not move with images that are augmented; leave it out "
            "of a segmentation"
        )
    if getattr(value, "train", "all") == "head":
        raise ValueError("train: head is a linear layer for classes; segmentation has none")


def _check_pair_training(value: Any, said: Mapping[str, Any]) -> None:
    """Raise ValueError for what needs classes, or outputs that two models have in common."""
    if said.get("teacher") is not None:
        raise ValueError(
            "teacher: the embeddings of one model are not those of another; leave it out of "
            "retrieval"
        )
    if getattr(value, "train", "all") == "head":
        raise ValueError("train: head is a linear layer for classes; retrieval has none")
    space = value.trained if isinstance(value, TrainedInit) else getattr(value, "space", None)
    if space is not None and getattr(said.get("task"), "kind", None) == "open_clip":
        refuse(space, BODY_ONLY, "counts the blocks of one tower, and this model has two")


def check_parts(objective: Any, training: Any) -> None:
    """Raise ValueError if batches would be divided whose pairs need one another.

    Args:
        objective: of the spec.
        training: how trials are computed.
    """
    if objective != "retrieval":
        return
    divides = {"workers": training.workers > 1, "micro_batch": training.micro_batch is not None}
    for name, divided in divides.items():
        if divided:
            raise ValueError(
                f"{name} divides a batch, and in retrieval the other pairs of a batch are the "
                f"wrong answers to a query; leave {name} out"
            )


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


def check_noise(space: Any, said: Mapping[str, Any], head: bool) -> None:
    """Raise ValueError if label noise stands beside what changes the loss in another way.

    Args:
        space: the hyperparameters.
        said: the keys of the spec before `search`, as they were checked.
        head: trials train the head alone.
    """
    if space.noise == 0:
        return
    if head:
        raise ValueError("noise is a wave over pixels; train: head sees features; leave it out")
    if said.get("loss") is not None:
        raise ValueError("noise changes the labels of soupray's own loss, not of your `loss`")
    if getattr(said.get("task"), "kind", None) == "transformers":
        raise ValueError("noise is a wave over pixels; texts have none; leave it out")
    if said.get("class_weights"):
        raise ValueError("noise changes the loss, and so do class_weights; leave one out")
    refuse(
        space,
        {n: OF_LOSS[n] for n in ("label_smoothing", "focal", "class_weight")},
        "changes the loss, and so does noise",
    )


def check_class_weights(value: Mapping[str, float], said: Mapping[str, Any]) -> None:
    """Raise ValueError if a weight is of no class, or the loss has no classes.

    Args:
        value: weights by the name of a class.
        said: the keys before it, as they were checked.
    """
    task, objective = said.get("task"), said.get("objective", "one_class")
    if not value or task is None:
        return
    if objective not in ("one_class", "multi_label"):
        kind = "regression" if isinstance(objective, Regression) else objective
        raise ValueError(f"a {kind} has no classes to weigh; leave class_weights out")
    if said.get("loss") is not None:
        raise ValueError("class_weights change the losses of soupray, not your `loss`")
    for name in value:
        if name not in task.classes:
            near = difflib.get_close_matches(name, task.classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"there is no class {name!r}{hint}; task.classes are "
                f"{', '.join(task.classes[:10])}{', ...' if len(task.classes) > 10 else ''}"
            )
