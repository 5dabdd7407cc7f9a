"""The trackers of a spec beside MLflow: their names and options. Nothing of them is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from soupray.core.errors import ConfigError
from soupray.core.plugins import installed, is_plugin
from soupray.recipes.recipe import Option

Trackers = dict[str, dict[str, Option]]
"""Options by the name of the tracker, as in a spec."""

GROUP = "soupray.trackers"
"""Entry points of trackers that are not soupray's own."""

_Folder = Annotated[str, Meta(min_length=1, max_length=4096)]


class WandbOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights & Biases: one run for the sweep, for each trial and for each entry."""

    project: Annotated[str, Meta(pattern=r"^[\w.-]{1,128}\Z", description="The project.")] = (
        "soupray"
    )
    entity: Annotated[
        str, Meta(pattern=r"^[\w.-]{0,128}\Z", description="User or team. Default: your own.")
    ] = ""
    mode: Annotated[
        Literal["online", "offline"],
        Meta(description="`offline`: into the folder only, for `wandb sync`."),
    ] = "online"
    folder: Annotated[_Folder, Meta(description="Folder for what W&B writes here.")] = (
        "results/wandb"
    )


class TensorboardOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TensorBoard: event files, for `tensorboard --logdir FOLDER`."""

    folder: Annotated[_Folder, Meta(description="Folder of the event files.")] = (
        "results/tensorboard"
    )


OWN: Mapping[str, type[msgspec.Struct]] = {
    "wandb": WandbOptions,
    "tensorboard": TensorboardOptions,
}
"""Trackers that come with soupray, by their names in a spec, which are those of their extras."""


def check_trackers(trackers: Trackers, source: str) -> None:
    """Raise ConfigError if a tracker is unknown, or an option of soupray's own.

    A plug-in is only checked to have the form of one: `rank` and `status` need none of its code.

    Args:
        trackers: options by the name of the tracker.
        source: names the place of the trackers, for the message.
    """
    for name, options in trackers.items():
        if name in OWN:
            read_options(name, options, source)
        elif not is_plugin(name, GROUP):
            known = [*OWN, *installed(GROUP)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            mlflow = " MLflow is the key `tracking`." if name == "mlflow" else ""
            raise ConfigError(
                f"{source}: unknown tracker {name!r}. Known trackers: {', '.join(known)}; or "
                f"module:name for your own.{hint}{mlflow}"
            )


def read_options(name: str, options: Mapping[str, Option], source: str) -> dict[str, Any]:
    """Return the options of one of soupray's own trackers, with their defaults.

    Args:
        name: of the tracker.
        options: as in a spec.
        source: names their place, for the message.

    Raises:
        ConfigError: an option is unknown, or its value is not allowed.
    """
    kind = OWN[name]
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"{source}: tracker {name} has no option {key!r}. Its options: {', '.join(known)}."
            )
        try:
            msgspec.convert({key: value}, kind)
        except msgspec.ValidationError as error:
            said = str(error).partition(" - at ")[0]
            raise ConfigError(f"{source}: tracker {name}: {key} = {value!r}: {said}.") from error
    return msgspec.structs.asdict(msgspec.convert(dict(options), kind))
