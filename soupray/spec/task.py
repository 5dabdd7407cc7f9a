"""The `task` and `init` of a spec: the model, its classes, and the start of all trials.

The text under a field describes the key, in the JSON schema and in the reference of keys.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, JsonValue, Tag

from soupray.spec.class_names import is_imagenet
from soupray.spec.space import Count, Dimension, Positive, Space, SpecModel, refuse


def _also_a_text(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that a list may also be named, as `class_names` resolves it."""
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [listed, {"type": "string"}]


def _with_names_that_differ(classes: tuple[str, ...]) -> tuple[str, ...]:
    if blank := [k for k, name in enumerate(classes) if not name.strip()]:
        raise ValueError(f"class {blank[0]} has no name")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    # OpenAI's names of ImageNet's classes have two pairs of equal ones
    if twice and not is_imagenet(classes):
        raise ValueError(f"the class {twice[0]!r} is listed twice; give each class its own name")
    return classes


Classes = Annotated[
    tuple[str, ...],
    Field(min_length=1, json_schema_extra=_also_a_text),
    pydantic.AfterValidator(_with_names_that_differ),
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


Scale = Annotated[float, Field(gt=0, le=1000)]
"""A factor on cosines. CLIP learns at most 100; logits are stored as float16, up to 65 504."""

Code = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
"""SHA-256 (hex) of the code of a plug-in."""

Channels = tuple[float, float, float]
PositiveChannels = tuple[Positive, Positive, Positive]


Outputs = Annotated[
    Literal["classes", "embeddings"], Field(exclude_if=lambda outputs: outputs == "classes")
]
"""What a model returns: a number for each class, or the vectors of two that belong together."""


class OpenClipSpec(SpecModel):
    """A CLIP of open_clip: its image tower with a zero-shot head, or with `retrieval` both towers.

    All of it is fine-tuned, end to end.
    """

    kind: Literal["open_clip"]

    model: str
    """An architecture of open_clip, `local-dir:PATH`, or `soupray:digits`, the small model in this
    package."""

    pretrained: str | None = None
    """A tag of open_clip, or a local file."""

    classes: Classes
    """The names of the classes, as the prompts have them: a list, `imagenet`, or the path of a YAML
    list. Left out, for data of kind `folder`: the names of the folders. Left out with `objective:
    retrieval`, which has none."""

    # Left out if there are none, which only retrieval has, so that older digests do not change.
    templates: tuple[str, ...] = Field(
        default=(), json_schema_extra=_also_a_text, exclude_if=lambda prompts: not prompts
    )
    """The prompts of the zero-shot head, each with {} for the name of the class: a list, `imagenet`
    (80 prompts), `imagenet_simple` (7), or the path of a YAML list. Left out with `objective:
    retrieval`, which has no head."""

    # Left out if false, so that digests of specs from before this field do not change.
    head_bias: bool = Field(default=False, exclude_if=lambda bias: not bias)
    """The head has a bias that starts at 0, as the models of the published soups have."""

    mean: Channels | None = Field(default=None, exclude_if=lambda value: value is None)
    """Subtracted from each channel (values in 0..1). Left out: that of the checkpoint."""

    std: PositiveChannels | None = Field(default=None, exclude_if=lambda value: value is None)
    """Divides each channel after that. Left out: that of the checkpoint."""

    interpolation: Interpolation = "bicubic"
    """How an image is resized, by Pillow's name. Left out: as the checkpoint says."""

    resize: Resize = "shortest"
    """`shortest` keeps the proportions and cuts the centre out; `squash` resizes both sides. Left
    out: as the checkpoint says."""

    crop: Crop = 1.0
    """Share of the side that is left after the centre of an evaluated image is cut out."""

    scale: Scale = Field(default=100.0, exclude_if=lambda scale: scale == 100)
    """With `objective: retrieval`: the factor on inner products in the loss, 1 / temperature. 100
    is the largest that CLIP learns. The scale in a checkpoint is not used."""

    outputs: Outputs = "classes"
    """Filled in from `objective`: a number for each class, or with `retrieval` the vectors of image
    and caption."""

    @pydantic.model_validator(mode="after")
    def _has_prompts_for_a_head(self) -> OpenClipSpec:
        _with_a_slot(self.templates)
        if self.outputs == "classes" and not self.templates:
            raise ValueError(
                "templates has no prompt, and the zero-shot head is made of them; write templates: "
                '["a photo of a {}."]'
            )
        return self


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
    """A timm model with a new linear head, trained end to end."""

    kind: Literal["timm"]

    model: str
    """A model of timm, without the tag of its weights."""

    args: dict[str, JsonValue] = Field(default={})
    """Arguments of `timm.create_model`: sizes, rates and names of layers."""

    pretrained: str | None = None
    """A tag of timm for `model`, or a local file."""

    classes: Classes
    """The names of the classes: a list, `imagenet`, or the path of a YAML list. Left out, for data
    of kind `folder`: the names of the folders."""

    size: Annotated[Count, Field(le=10_000)]
    """Side of the inputs in pixels. Left out: that of the checkpoint."""

    mean: tuple[float, ...] = Field(min_length=1)
    """Subtracted from each channel (values in 0..1). Left out: that of the checkpoint."""

    std: tuple[Positive, ...] = Field(min_length=1)
    """Divides each channel after that. Left out: that of the checkpoint."""

    interpolation: Interpolation = "bicubic"
    """How an image is resized, by Pillow's name. Left out: as the checkpoint says."""

    resize: Resize = "shortest"
    """`shortest` keeps the proportions and cuts the centre out; `squash` resizes both sides. Left
    out: as the checkpoint says."""

    crop: Crop = 1.0
    """Share of the side that is left after the centre of an evaluated image is cut out. Left out:
    as the checkpoint says."""

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
    """A text model of transformers that classifies sequences, fine-tuned end to end."""

    kind: Literal["transformers"]

    model: str
    """A folder in the library's layout, `package:NAME/FOLDER` for a folder in an installed Python
    package, or a name on the hub (`HF_HUB_OFFLINE=1`: the local cache only)."""

    classes: Classes
    """The names of the classes, as the prompts have them: a list, or the path of a YAML list. Left
    out with `objective: retrieval`, which has none."""

    templates: tuple[str, ...] = Field(default=(), json_schema_extra=_also_a_text)
    """The prompts of the zero-shot head, each with {} for the name of the class: a list, or the
    path of a YAML list. Left out: the head is new."""

    pooling: Literal["mean", "cls", "own"] = "mean"
    """What makes one vector of a text: the mean of its tokens, the first token, or the way of the
    library's own classifier."""

    normalise: bool = True
    """The head sees vectors of length one."""

    scale: Scale = 20.0
    """Factor of a zero-shot head: the logits are this times the cosines. 20 is the default of
    sentence-transformers' ranking loss. In `retrieval` the factor on inner products in the loss."""

    max_tokens: Annotated[int, Field(ge=2)] = 128
    """All texts are padded to this number of tokens."""

    outputs: Outputs = "classes"
    """Filled in from `objective`: a number for each class, or with `retrieval` the vectors of query
    and document."""

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


class TorchSpec(SpecModel):
    """A model of your own: a function that returns an `nn.Module`, trained end to end."""

    kind: Literal["torch"]

    model: str
    """The function, as `package.module:name`, or the name of an entry point in `soupray.tasks`. It
    is called with `args`, and with `num_classes` if it has a parameter of that name."""

    args: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of the function."""

    pretrained: str | None = None
    """A file of weights with the names that the module has. Its last layer is left out: the head is
    new. For a whole classifier write `init: {file: PATH}`."""

    classes: Classes
    """The names of the classes: a list, `imagenet`, or the path of a YAML list. Left out, for data
    of kind `folder`: the names of the folders."""

    size: Annotated[Count, Field(le=10_000)]
    """Side of the inputs in pixels."""

    mean: tuple[float, ...] = Field(min_length=1)
    """Subtracted from each channel (values in 0..1). One number: the model reads grey images."""

    std: tuple[Positive, ...] = Field(min_length=1)
    """Divides each channel after that."""

    interpolation: Interpolation = "bicubic"
    """How an image is resized, by Pillow's name."""

    resize: Resize = "shortest"
    """`shortest` keeps the proportions and cuts the centre out; `squash` resizes both sides."""

    crop: Crop = 1.0
    """Share of the side that is left after the centre of an evaluated image is cut out."""

    outputs: Annotated[
        Literal["classes", "masks"], Field(exclude_if=lambda outputs: outputs == "classes")
    ] = "classes"
    """Filled in from `objective`: forward returns a number for each class, [N, C], or with
    `segmentation` a logit for each pixel, [N, H, W] or [N, 1, H, W]."""

    code: Code = ""
    """The digest of the function's code, filled in when the spec is read: edited code is another
    model, and makes other trials."""

    @pydantic.field_validator("std")
    @classmethod
    def _one_a_channel(
        cls, std: tuple[float, ...], info: pydantic.ValidationInfo
    ) -> tuple[float, ...]:
        if not len(info.data.get("mean", std)) == len(std) in (1, 3):
            raise ValueError(
                "mean and std have a number for each channel: three for RGB, one for grey images"
            )
        return std


TaskSpec = OpenClipSpec | TimmSpec | TransformersSpec | TorchSpec


class Trained(Space):
    """The hyperparameters of one training: those of a search space, but each is a number."""

    @pydantic.model_validator(mode="after")
    def _are_numbers(self) -> Trained:
        for name in Space.model_fields:
            if isinstance(getattr(self, name), Dimension):
                raise ValueError(f"{name} is a range; this is one training, so write a number")
        refuse(self, {"patience": 0}, "looks at held-out data, which theta_0 must not see")
        return self

    def numbers(self) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return self.model_dump()


class TrainedInit(SpecModel):
    """theta_0 is trained once on the train split, and all trials start from it."""

    trained: Trained
    """The hyperparameters of that training, as plain numbers."""


class Probe(SpecModel):
    """A logistic regression on the features of the pre-trained body."""

    l2: Positive = 1e-3
    """Weight of the penalty, half the squared norm of the head, beside the mean loss."""

    # Training normalises by batches: with `train` it starts from the features to which the head
    # was fitted.
    statistics: Literal["train", "pretrained"] = "train"
    """For bodies with BatchNorm. `train`: its statistics are first estimated on the train split.
    `pretrained`: they stay as they are, which suits `search.train: head`."""


class FileInit(SpecModel):
    """theta_0 is a checkpoint of another library."""

    file: str
    """A file or folder, in any layout that `soupray import` reads."""


class ProbeInit(SpecModel):
    """theta_0 is the pre-trained body with a head that is fitted to features of the train split."""

    probe: Probe
    """How the head is fitted."""


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
