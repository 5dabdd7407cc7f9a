"""Checkpoints of other software: read, renamed, then compared strictly with a model of soupray."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from soupray.core.errors import CheckpointError, ConfigError, IncompatibleWeights
from soupray.spec.class_numbers import class_numbers
from soupray.store.weights_file import MappedWeights, Weights

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every name."""

NOT_WEIGHTS = (".num_batches_tracked", ".position_ids")
"""Endings of the names of buffers that hold counters or positions. Models of soupray have none."""


class ForeignWeights(NamedTuple):
    """Weights of other software, and the place that error messages name."""

    weights: Weights
    where: str


def load_foreign(path: Path) -> Weights:
    """Read a checkpoint of other software.

    Args:
        path: a safetensors file; a file of torch.save with nothing but tensors, which may be under
            the key `state_dict` or `model`; or a folder as the Hugging Face libraries write it,
            with model.safetensors or pytorch_model.bin, in one part or more.

    Raises:
        CheckpointError: the file cannot be read, or would run code when it is loaded.
    """
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".safetensors":
        return {n: MappedWeights(path)[n] for n in MappedWeights(path).names}
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: refused: it is corrupt, or holds more than tensors ({type(error).__name__}). "
            "Save a plain state dict, preferably as safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(t, torch.Tensor) for t in loaded.values()
    ):
        raise CheckpointError(f"{path}: not a state dict of tensors.")
    return loaded


def _load_folder(folder: Path) -> Weights:
    parts = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not parts:
        raise CheckpointError(f"{folder}: there is no model.safetensors or pytorch_model.bin.")
    return {name: tensor for part in parts for name, tensor in load_foreign(part).items()}


STANDARD = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in a folder of Hugging Face, which has a config.json beside them."""


def named_classes(path: Path) -> list[str] | None:
    """The names of the classes of a checkpoint's head, in the order of its rows.

    They are `id2label` of transformers or `label_names` of timm in the folder's config.json.
    `LABEL_3`, the name that transformers gives to a class without a name, becomes `3`.

    Args:
        path: a checkpoint, as `load_foreign` reads it.

    Returns:
        None: the checkpoint does not name its classes.

    Raises:
        CheckpointError: config.json cannot be read, or its names are not a list.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    if not file.is_file() or not (path.is_dir() or path.name in STANDARD):
        return None
    try:
        config = json.loads(file.read_bytes())
        found = config.get("label_names") or config.get("id2label")
        if isinstance(found, dict):
            found = [found[key] for key in sorted(found, key=int)]
        names = None if found is None else [str(name) for name in found]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file}: its class names cannot be read: {error}.") from error
    return names and [re.sub(r"^LABEL_(?=[0-9]+$)", "", name) for name in names]


def in_order(
    found: Weights, named: Sequence[str] | None, classes: Sequence[str], where: str
) -> Weights:
    """The tensors with the rows of the head in the order of the task's classes.

    Args:
        found: tensors by soupray's names.
        named: the names of the classes of the rows; None: the checkpoint does not name them.
        classes: names of the task's classes.
        where: the file that error messages name.

    Raises:
        IncompatibleWeights: the names are not those of the task.
    """
    if named is None or "head.weight" not in found or len(named) != len(classes):
        return found  # `matched` refuses a head of another size
    advice = "Write the names of the checkpoint in task.classes, or edit its config.json."
    try:
        numbers = class_numbers(named, classes, where, advice)
    except ConfigError as error:
        raise IncompatibleWeights(str(error)) from error
    rows = torch.tensor(sorted(range(len(numbers)), key=numbers.__getitem__))
    heads = [name for name in ("head.weight", "head.bias") if name in found]
    return found | {name: found[name][rows] for name in heads}


def unwrapped(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The tensors without `NOT_WEIGHTS`, and without the `WRAPPERS` before their names.

    A prefix is removed if all names have it.
    """
    found = dict(weights)
    while found and (prefix := next((p for p in WRAPPERS if all_start(found, p)), "")):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith(NOT_WEIGHTS)}


def all_start(weights: Mapping[str, torch.Tensor], prefix: str) -> bool:
    """Whether every name starts with `prefix`."""
    return all(name.startswith(prefix) for name in weights)


def renamed(weights: Weights, name: Callable[[str], str | None]) -> Weights:
    """The tensors under new names.

    Args:
        weights: tensors by their old name.
        name: returns the new name for an old one. None: the tensor is left out.
    """
    return {new: tensor for old, tensor in weights.items() if (new := name(old)) is not None}


def matched(found: ForeignWeights, model: torch.nn.Module) -> Weights:
    """The tensors of `found`, with the dtypes of `model`.

    Raises:
        IncompatibleWeights: a tensor of the model is missing or has another shape, or there is a
            tensor that the model does not have. The message names the first such tensor.
    """
    weights, wanted = found.weights, model.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise IncompatibleWeights(
                f"{found.where}: there is no tensor {name!r} {list(tensor.shape)}, which the model "
                f"of this spec has (this is its name in soupray). {_ADVICE}"
            )
        if weights[name].shape != tensor.shape:
            raise IncompatibleWeights(
                f"{found.where}: tensor {name!r} is {list(weights[name].shape)}, but "
                f"{list(tensor.shape)} in the model of this spec. {_ADVICE}"
            )
    if extra := [name for name in weights if name not in wanted]:
        raise IncompatibleWeights(
            f"{found.where}: the tensor {extra[0]!r} {list(weights[extra[0]].shape)} is not one of "
            f"the model of this spec. {_ADVICE}"
        )
    return {name: weights[name].to(tensor.dtype) for name, tensor in wanted.items()}


_ADVICE = "Name the architecture of that file, and its classes, under task in the spec."


def leave_out_batch_counts(model: torch.nn.Module) -> None:
    """Remove the batch counters of BatchNorm layers: nothing reads or can average them."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None
            # For a state dict without the counter, the layer would add one and then refuse it.
            module.register_load_state_dict_pre_hook(_drop_batch_count)


def _drop_batch_count(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *more: Any
) -> None:
    state_dict.pop(f"{prefix}num_batches_tracked", None)
