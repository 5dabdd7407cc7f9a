"""What a checkpoint says about its inputs: size, mean, std, interpolation, resize and crop.

It is resolved once, when a spec is read, and is then part of the spec, so that a recipe file or a
worker with another version of the library makes the same inputs. What the spec says itself is kept.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from soupray.core.errors import ConfigError
from soupray.spec.libraries import Memory

log = logging.getLogger(__name__)

NAMES = ("mean", "std", "interpolation", "resize", "crop")
IMAGE_FILES = ("folder", "webdataset", "torchvision", "huggingface", "torch", "captions")
"""Kinds of data that have a `size`."""
ASSETS = Path(__file__).parent.parent / "assets"
CLIP_CONFIG = "open_clip_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What open_clip uses for an architecture without weights: the values of OpenAI's CLIP."""


def with_preprocessing(data: dict[str, Any], source: str, memory: Memory) -> dict[str, Any]:
    """Return the plain data of a spec with the preprocessing that its checkpoint names.

    A value in the spec that differs from that of the checkpoint is kept, and a warning is logged.

    Args:
        data: the plain data of a spec.
        source: names the spec in messages.
        memory: of what the libraries say.

    Raises:
        ConfigError: the checkpoint wants a preprocessing that soupray does not have.
    """
    task, samples = data.get("task"), data.get("data")
    known = {"open_clip": _of_open_clip, "timm": _of_timm, "torch": _of_nobody}
    # Nothing is checked yet: a value of another type is left to the checks of the spec.
    if not isinstance(task, dict) or task.get("kind") not in list(known):
        return data
    try:
        said = known[task["kind"]](task, memory)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    size = task.get("size") or said.get("size")
    names = ("size", *NAMES) if task["kind"] == "timm" else NAMES
    filled = {name: said[name] for name in names if said.get(name) and name not in task}
    for name in NAMES:
        if name in task and name in said and _plain(task[name]) != _plain(said[name]):
            log.warning(
                f"{source}: task.{name} = {task[name]!r} is used; the weights "
                f"{task.get('pretrained') or task.get('model')} were trained with {said[name]!r}."
            )
    found = {**data, "task": {**task, **filled}}
    if isinstance(samples, dict) and samples.get("kind") in IMAGE_FILES and "size" not in samples:
        found["data"] = samples if size is None else {**samples, "size": size}
    return found


def _of_nobody(task: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """What is known of the inputs of a model of the user's own: nothing beyond the spec."""
    return {}


def _plain(value: Any) -> Any:
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    return [float(v) for v in value] if numbers else value


def _of_open_clip(task: dict[str, Any], memory: Memory) -> dict[str, Any]:
    model, tag = task.get("model"), task.get("pretrained")
    if not isinstance(model, str):
        return {}
    if folder := _clip_folder(model):
        return _clip_fields(folder.get("preprocess_cfg", {}), folder.get("model_cfg", {}), own=True)
    config, about = memory.answer(
        "open_clip_torch", json.dumps([model, tag]), lambda: _asked_of_open_clip(model, tag)
    )
    if about and bool(about.get("quick_gelu")) != bool(config.get("quick_gelu")):
        kinds = {True: "QuickGELU", False: "GELU"}
        theirs, mine = (kinds[bool(c.get("quick_gelu"))] for c in (about, config))
        log.warning(
            f"task.model: {model} uses {mine}, but the weights {tag} were trained with {theirs}: "
            f"its outputs are not those of the published model. Write "
            f"{f'{model}-quickgelu' if theirs == 'QuickGELU' else model.removesuffix('-quickgelu')}"
        )
    return _clip_fields(about, config, own=False)


def _asked_of_open_clip(model: str, tag: Any) -> tuple[Any, Any]:
    """The architecture, and what is known of the weights. Empty: open_clip does not know them."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    about = get_pretrained_cfg(model, tag) if isinstance(tag, str) else {}
    return open_clip.get_model_config(model) or {}, about


def _clip_folder(model: str) -> dict[str, Any] | None:
    """The configuration of a model in a folder or on the hub; None for a built-in architecture."""
    kind, _, name = model.partition(":")
    if not name:
        return None
    if kind == "hf-hub":
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(name, CLIP_CONFIG))
        except (OSError, ValueError):  # the task names the reason when it makes the model
            return {}
    else:
        file = (ASSETS / name if kind == "soupray" else Path(name)) / CLIP_CONFIG
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _clip_fields(about: dict[str, Any], config: dict[str, Any], own: bool) -> dict[str, Any]:
    """The fields of a spec from open_clip's `preprocess_cfg`.

    Args:
        about: the `preprocess_cfg` of a checkpoint.
        config: the architecture.
        own: open_clip itself reads mean and std, with the architecture, from the same file.
    """
    found: dict[str, Any] = {}
    size = about.get("size") or config.get("vision_cfg", {}).get("image_size")
    if isinstance(size, list | tuple):
        size = size[0] if size[0] == size[-1] else None
    found["size"] = size
    for name, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        if not own and about.get(name) and tuple(about[name]) != usual:
            found[name] = list(about[name])
    if about.get("interpolation"):
        found["interpolation"] = about["interpolation"]
    mode = about.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ConfigError(
            f"task.resize: the checkpoint wants {mode!r}, which soupray does not have. Write "
            "shortest or squash under task to use it nevertheless."
        )
    return found | {"resize": mode}


def _of_timm(task: dict[str, Any], memory: Memory) -> dict[str, Any]:
    model, tag, args = task.get("model"), task.get("pretrained"), task.get("args") or {}
    if not isinstance(model, str) or not isinstance(args, dict):
        return {}
    complete = all(name in task for name in ("size", "mean", "std"))
    of_tag = isinstance(tag, str) and not {"/", ":"} & set(tag) and not Path(tag).is_file()
    if complete and not of_tag:
        return {}
    name = f"{model}.{tag}" if of_tag else model
    about = memory.answer("timm", name, lambda: _asked_of_timm(name))
    if about is None:
        return {}
    height, width = about["input_size"][-2:]
    if height != width and "size" not in task:
        raise ConfigError(
            f"task.size: the checkpoint has inputs of {height} x {width} pixels; those of soupray "
            "are square. Write a size to use it nevertheless."
        )
    found = {"size": args.get("img_size", height)}
    if args.get("in_chans", 3) == len(about["mean"]):
        found |= {"mean": list(about["mean"]), "std": list(about["std"])}
    if of_tag:
        mode = {"center": "shortest", "squash": "squash"}.get(about.get("crop_mode") or "center")
        if mode is None and "resize" not in task:
            raise ConfigError(
                f"task.resize: the weights {tag} want timm's crop mode {about['crop_mode']!r}, "
                "which soupray does not have. Write shortest or squash under task to use them "
                "nevertheless."
            )
        interpolation = about.get("interpolation") or "bicubic"
        found["interpolation"] = "bicubic" if interpolation == "random" else interpolation
        found |= {"crop": about.get("crop_pct") or 0.875} | ({"resize": mode} if mode else {})
    return found


def _asked_of_timm(name: str) -> dict[str, Any] | None:
    """What timm knows of the inputs of a model, or of its weights with a tag. None: nothing."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError):  # the task names the reason when it makes the model
        return None
    if config is None:
        return None
    about = config.to_dict()
    named = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {key: about.get(key) for key in named}
