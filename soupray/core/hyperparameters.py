"""The hyperparameters of a training: name, type, range, default and meaning, in one table.

The search space of a spec, the training, the help texts and the documents all read this table.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

Subject = Literal[
    "training", "images", "body", "classes", "one class", "numbers", "masks", "pairs", "teacher"
]
"""Where a hyperparameter has a meaning: in any training, only for images, only where the body of
the model is trained, only for targets that are classes (one of them), numbers or masks, only for
pairs of a query and a document, or only with a teacher."""


def _range(low: float, high: float, meaning: str, of: Subject = "training") -> Meta:
    return Meta(ge=low, le=high, description=meaning, extra={"of": of})


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """The hyperparameters of one training.

    The weight decay of 0.1 and the clip norm of 1 are those of WiSE-FT (arXiv:2109.01903). The
    default of a hyperparameter about images or the body leaves the training as it is without it.
    """

    lr: Annotated[float, _range(1e-12, 10, "peak learning rate of AdamW")]
    epochs: Annotated[int, _range(1, 100_000, "passes over the train split")]
    batch_size: Annotated[int, _range(1, 1_000_000, "samples in each step")] = 32
    weight_decay: Annotated[float, _range(0, 10, "weight decay of AdamW")] = 0.1
    label_smoothing: Annotated[
        float, _range(0, 0.999, "share given to all classes alike", "one class")
    ] = 0.0
    rotation: Annotated[float, _range(0, 180, "largest angle in degrees, both ways", "images")] = (
        0.0
    )
    shift: Annotated[float, _range(0, 1, "largest share of the side, both ways", "images")] = 0.0
    crop: Annotated[float, _range(0.01, 1, "smallest share of the area kept", "images")] = 1.0
    flip: Annotated[float, _range(0, 1, "probability of a mirror image", "images")] = 0.0
    randaugment: Annotated[
        float, _range(0, 30, "magnitude of RandAugment (arXiv:1909.13719); 0: none", "images")
    ] = 0.0
    # Also about images. Without `randaugment` it has no effect, so that no spec is refused for it.
    randaugment_ops: Annotated[int, _range(1, 14, "RandAugment operations for each image")] = 1
    mixup: Annotated[
        float, _range(0, 100, "alpha of mixup's Beta distribution (arXiv:1710.09412)", "images")
    ] = 0.0
    ema: Annotated[
        float, _range(0, 0.9999999, "decay of the moving average that is the trial's model")
    ] = 0.0
    layer_decay: Annotated[
        float, _range(0.01, 1, "factor on lr for each block further from the head", "body")
    ] = 1.0
    last_blocks: Annotated[
        int, _range(0, 10_000, "blocks at the end that are trained, with the head; 0: all", "body")
    ] = 0
    warmup: Annotated[float, _range(0, 1, "share of the steps, 500 steps at most")] = 0.1
    clip_norm: Annotated[float, _range(1e-12, 1e12, "largest norm of the gradient")] = 1.0
    focal: Annotated[
        float, _range(0, 20, "gamma of the focal loss (arXiv:1708.02002); 0: none", "classes")
    ] = 0.0
    class_weight: Annotated[
        float,
        _range(
            0,
            1,
            "power of 1 / samples of a class as its weight in the loss; 1: balanced",
            "classes",
        ),
    ] = 0.0
    balanced: Annotated[
        float,
        _range(
            0,
            1,
            "power of 1 / samples of a class as the odds to be drawn; 1: balanced",
            "one class",
        ),
    ] = 0.0
    huber: Annotated[
        float, _range(0, 1e6, "delta of the Huber loss; 0: the squared error", "numbers")
    ] = 0.0
    dice: Annotated[
        float, _range(0, 1, "share of the soft Dice loss (arXiv:1606.04797); 0: none", "masks")
    ] = 0.0
    temperature: Annotated[
        float,
        _range(0, 100, "divides inner products of embeddings in the loss; 0: 1 / scale", "pairs"),
    ] = 0.0
    distillation: Annotated[
        float,
        _range(
            0, 1, "share of the loss that is to the teacher's outputs (arXiv:1503.02531)", "teacher"
        ),
    ] = 0.0
    distillation_temperature: Annotated[
        float, _range(0.1, 100, "divides the logits of teacher and model, for classes", "teacher")
    ] = 1.0

    merge: Annotated[
        int,
        _range(
            0,
            1000,
            "epochs at the end whose weights are averaged, at a constant rate (arXiv:2209.14981); "
            "0: the rate decays",
        ),
    ] = 0
    patience: Annotated[
        int,
        _range(
            0, 100_000, "epochs without a better one after which the trial ends; 0: it does not"
        ),
    ] = 0
    noise: Annotated[
        float,
        _range(0, 0.5, "mean share of labels that a wave gives to all classes", "one class"),
    ] = 0.0
    # Also about one class. Without `noise` they have no effect: no spec is refused for them.
    noise_frequency: Annotated[
        float, _range(1e-6, 1e6, "of the wave (arXiv:2110.02424), in cycles by unit of input")
    ] = 0.038
    noise_phase: Annotated[
        float, _range(-1e6, 1e6, "where the wave is 0, in units of normalised inputs")
    ] = 0.0
    noise_direction: Annotated[
        int, _range(0, 1_000_000, "0: the wave goes from the centre; else the seed of a direction")
    ] = 0


LATER = frozenset(
    (
        *("focal", "class_weight", "balanced", "huber", "dice", "temperature"),
        *("distillation", "distillation_temperature"),
        *("merge", "patience"),
        *("noise", "noise_frequency", "noise_phase", "noise_direction"),
    )
)
"""Hyperparameters that came after others were published. At their defaults they are in no key, so
that trials from before them are found."""


class Hyperparameter(NamedTuple):
    """A row of the table.

    Attributes:
        name: the name in a spec.
        whole: only whole numbers are allowed.
        low, high: the smallest and the largest value that is allowed.
        default: None where a spec must name a value.
        meaning: the description in help texts, with the unit.
        of: where the hyperparameter has a meaning.
    """

    name: str
    whole: bool
    low: float
    high: float
    default: float | None
    meaning: str
    of: Subject


def _row(field: msgspec.structs.FieldInfo) -> Hyperparameter:
    described = inspect.type_info(field.type)
    assert isinstance(described, inspect.Metadata)
    kind = described.type
    assert isinstance(kind, inspect.IntType | inspect.FloatType)
    assert kind.ge is not None
    assert kind.le is not None
    return Hyperparameter(
        name=field.name,
        whole=isinstance(kind, inspect.IntType),
        low=kind.ge,
        high=kind.le,
        default=None if field.default is msgspec.NODEFAULT else field.default,
        meaning=(described.extra_json_schema or {})["description"],
        of=(described.extra or {})["of"],
    )


TABLE: tuple[Hyperparameter, ...] = tuple(map(_row, msgspec.structs.fields(Hyperparameters)))
"""The rows in the order of the fields. The coordinates of a point in the search space have the same
order."""
