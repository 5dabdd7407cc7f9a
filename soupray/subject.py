"""What is learnt, and from where: the `task` and `init` of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, JsonValue, Tag

from soupray.space import Count, Dimension, Positive, Space, SpecModel


class OpenClipSpec(SpecModel):
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


class TimmSpec(SpecModel):
    """A timm model with a new linear head, trained end to end.

    `args` go to `timm.create_model`. `pretrained` is one of timm's tags for `model`, or a local
    file. Inputs are `size` x `size` pixels in 0..1, less `mean`, by `std`: a number a channel.
    """

    kind: Literal["timm"]
    model: str
    args: dict[str, JsonValue] = Field(default_factory=dict)
    pretrained: str | None = None
    classes: tuple[str, ...] = Field(min_length=2)
    size: Count
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[Positive, ...] = Field(min_length=1)

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


TaskSpec = OpenClipSpec | TimmSpec


class Trained(Space):
    """Hyperparameters of one training. As in a search space, but each is a number."""

    @pydantic.model_validator(mode="after")
    def _are_numbers(self) -> Trained:
        for name in Space.model_fields:
            if isinstance(getattr(self, name), Dimension):
                raise ValueError(f"{name} is a range; this is one training, so write a number")
        return self

    def numbers(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return self.model_dump()


class TrainedInit(SpecModel):
    """theta_0 is trained once, on the train split, and all trials branch from it."""

    trained: Trained


def _how(value: Any) -> str | None:
    if isinstance(value, dict | TrainedInit):
        return "a mapping"
    return "a word" if value == "zero_shot" else None


Init = Annotated[
    Annotated[Literal["zero_shot"], Tag("a word")] | Annotated[TrainedInit, Tag("a mapping")],
    Discriminator(
        _how,
        custom_error_type="init",
        custom_error_message="write zero_shot, or {trained: {lr: ..., epochs: ...}}",
    ),
]
