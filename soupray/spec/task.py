"""The `task` and `init` of a spec: the model, its classes, and the start of all trials."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, JsonValue, Tag

from soupray.spec.class_names import is_imagenet
from soupray.spec.space import Count, Dimension, Positive, Space, SpecModel


def _with_names_that_differ(classes: tuple[str, ...]) -> tuple[str, ...]:
    if blank := [k for k, name in enumerate(classes) if not name.strip()]:
        raise ValueError(f"class {blank[0]} has no name")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    # OpenAI's names of ImageNet's classes have two pairs of equal ones
    if twice and not is_imagenet(classes):
        raise ValueError(f"the class {twice[0]!r} is listed twice; give each class its own name")
    return classes


Classes = Annotated[
    tuple[str, ...], Field(min_length=2), pydantic.AfterValidator(_with_names_that_differ)
]


# Fields with these values are left out of digests, which do not change for specs from before them.
Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"], Field(exclude_if=lambda v: v == "bicubic")
]
"""How an image is resized, by Pillow's name."""
Resize = Annotated[Literal["shortest", "squash"], Field(exclude_if=lambda v: v == "shortest")]
"""`shortest` keeps the proportions and cuts the centre out; `squash` resizes both sides."""
Crop = Annotated[float, Field(gt=0, le=1, exclude_if=lambda v: v == 1.0)]
"""Share of the side that is left after the centre of an evaluated image is cut out."""


Channels = tuple[float, float, float]
PositiveChannels = tuple[Positive, Positive, Positive]


class OpenClipSpec(SpecModel):
    """An open_clip model with a zero-shot head from prompts, fine-tuned end to end.

    `model` is an architecture of open_clip, `local-dir:PATH`, or `soupray:digits`, the small model
    in this package. `pretrained` is a tag of open_clip or a local file. `head_bias` gives the head
    a bias that starts at 0, as the models of the published soups have. `mean` and `std` normalise
    the channels (values in 0..1), `interpolation` and `resize` say how images are brought to size;
    left out, they are those of the checkpoint.
    """

    kind: Literal["open_clip"]
    model: str
    pretrained: str | None = None
    classes: Classes
    templates: tuple[str, ...] = Field(min_length=1)
    # Left out if false, so that digests of specs from before this field do not change.
    head_bias: bool = Field(default=False, exclude_if=lambda bias: not bias)
    mean: Channels | None = Field(default=None, exclude_if=lambda value: value is None)
    std: PositiveChannels | None = Field(default=None, exclude_if=lambda value: value is None)
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    crop: Crop = 1.0

    @pydantic.field_validator("templates")
    @classmethod
    def _have_a_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        return _with_a_slot(templates)


def _with_a_slot(templates: tuple[str, ...]) -> tuple[str, ...]:
    for template in templates:
        rest = template.replace("{}", "", 1)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError(f"the template {template!r} needs one {{}}, for the class name")
    return templates


_WORD = re.compile(r"[A-Za-z0-9_]+")

TIMM_ARGS = frozenset(
    _WORD.findall("""
    act_layer attn_drop_rate avg_down base_width block_args cardinality channels class_token
    conv_mlp depth depth_mult depths dims distilled down_kernel_size drop_block_rate drop_path_rate
    drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims expand_ratio fc_norm final_norm
    global_pool growth_rate growth_rates head_dim head_hidden_size head_init_scale head_norm_first
    heads img_size in_chans init_values kernel_size key_dim layer_scale_init_value layers
    ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps norm_layer num_features num_heads
    num_init_features output_stride pad_type patch_drop_rate patch_size pool_size pool_type
    pos_drop_rate pos_embed pre_norm proj_drop_rate qk_norm qkv_bias reg_tokens
    replace_stem_pool se_ratio stem_chs stem_size stem_type stem_width strict_img_size strides
    use_abs_pos use_grn use_rel_pos weight_init width width_factor width_mult widths window_size
    window_sizes zero_init_last
    """)
)
"""The arguments of timm's constructors that a spec may give: sizes, rates and names of layers. No
argument that names a file, a configuration or a cache is among them: timm would read it, and with
`checkpoint_path` some versions of timm run the code in a pickle."""


def _is_size_or_name(value: JsonValue) -> bool:
    """Whether a value is a number, a word, or a list of these."""
    if isinstance(value, list):
        return all(map(_is_size_or_name, value))
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, int | float)


class TimmSpec(SpecModel):
    """A timm model with a new linear head, trained end to end.

    `args` are passed to `timm.create_model`; `TIMM_ARGS` has their names. `pretrained` is a tag of
    timm for `model`, or a local file. Inputs have `size` x `size` pixels with values in 0..1; then
    `mean` is subtracted and the result is divided by `std`, with one number per channel.
    `interpolation`, `resize` and `crop` say how image files are brought to size. What is left out
    is that of the checkpoint.
    """

    kind: Literal["timm"]
    model: str
    args: dict[str, JsonValue] = Field(default_factory=dict)
    pretrained: str | None = None
    classes: Classes
    size: Annotated[Count, Field(le=10_000)]
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[Positive, ...] = Field(min_length=1)
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    crop: Crop = 1.0

    @pydantic.field_validator("args")
    @classmethod
    def _are_sizes_and_names(cls, args: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if refused := sorted(set(args) - TIMM_ARGS):
            raise ValueError(
                f"{', '.join(refused)}: timm does not get it. Write task.pretrained for weights. "
                f"Allowed are {', '.join(sorted(TIMM_ARGS))}"
            )
        if wrong := [name for name, value in args.items() if not _is_size_or_name(value)]:
            raise ValueError(
                f"{', '.join(wrong)}: write a number, a word of letters, digits and _, or a list "
                "of these"
            )
        return args

    @pydantic.field_validator("std")
    @classmethod
    def _one_a_channel(
        cls, std: tuple[float, ...], info: pydantic.ValidationInfo
    ) -> tuple[float, ...]:
        channels = info.data.get("args", {}).get("in_chans", 3)
        if not len(info.data.get("mean", std)) == len(std) == channels:
            raise ValueError(
                f"the model reads {channels} channels (args.in_chans, else 3): mean and std have "
                "a number for each"
            )
        return std


class TransformersSpec(SpecModel):
    """A text model of transformers that classifies sequences, fine-tuned end to end.

    `model` is a folder in the library's layout, `package:NAME/FOLDER` for a folder in an installed
    Python package, or a name on the hub (HF_HUB_OFFLINE=1 prevents requests to the hub). `pooling`
    makes one feature vector of a text: the `mean` of its tokens, the first token (`cls`), or the
    method of the library's `own` classifier for that architecture. With `templates`, the head is
    zero-shot: `scale` times the normalised embeddings of the prompts. Sentence encoders are trained
    with a scale of 20 (the default of sentence-transformers' ranking loss).
    """

    kind: Literal["transformers"]
    model: str
    classes: Classes
    templates: tuple[str, ...] = ()
    pooling: Literal["mean", "cls", "own"] = "mean"
    normalise: bool = True
    scale: Positive = 20.0
    max_tokens: Annotated[int, Field(ge=2)] = 128

    @pydantic.model_validator(mode="after")
    def _head_suits_the_pooling(self) -> TransformersSpec:
        _with_a_slot(self.templates)
        if self.pooling == "own" and (self.templates or self.normalise):
            raise ValueError(
                "pooling: own is a classifier with a new head: leave `templates` out and write "
                "normalise: false"
            )
        if self.templates and not self.normalise:
            raise ValueError(
                "a zero-shot head compares directions: with `templates`, write normalise: true"
            )
        return self


TaskSpec = OpenClipSpec | TimmSpec | TransformersSpec


class Trained(Space):
    """The hyperparameters of one training: those of a search space, but each is a number."""

    @pydantic.model_validator(mode="after")
    def _are_numbers(self) -> Trained:
        for name in Space.model_fields:
            if isinstance(getattr(self, name), Dimension):
                raise ValueError(f"{name} is a range; this is one training, so write a number")
        return self

    def numbers(self) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return self.model_dump()


class TrainedInit(SpecModel):
    """theta_0 is trained once on the train split, and all trials start from it."""

    trained: Trained


class Probe(SpecModel):
    """A logistic regression on the features; `l2` times half the squared norm is its penalty.

    `statistics` is for bodies with BatchNorm. With `train`, the statistics are first estimated on
    the train split; training normalises by batches, so it then starts from the features to which
    the head was fitted. With `pretrained`, they stay those of the pre-trained body, which suits
    trials of the head.
    """

    l2: Positive = 1e-3
    statistics: Literal["train", "pretrained"] = "train"


class FileInit(SpecModel):
    """theta_0 is a checkpoint in a file or folder, in any layout that `soupray import` reads."""

    file: str


class ProbeInit(SpecModel):
    """theta_0 is the pre-trained body with a head that is fitted to features of the train split."""

    probe: Probe


def _how(value: Any) -> str | None:
    for kind, field in ((ProbeInit, "probe"), (FileInit, "file")):
        if isinstance(value, kind) or (isinstance(value, dict) and field in value):
            return f"a {field}"
    if isinstance(value, dict | TrainedInit):
        return "a mapping"
    return "a word" if value == "zero_shot" else None


Init = Annotated[
    Annotated[Literal["zero_shot"], Tag("a word")]
    | Annotated[TrainedInit, Tag("a mapping")]
    | Annotated[ProbeInit, Tag("a probe")]
    | Annotated[FileInit, Tag("a file")],
    Discriminator(
        _how,
        custom_error_type="init",
        custom_error_message="write zero_shot, {trained: {lr: ..., epochs: ...}}, "
        "{probe: {l2: ...}} or {file: PATH}",
    ),
]
