"""Somebody else's tensors: read, renamed, then held strictly against a model of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from soupray.core.errors import CheckpointError, IncompatibleWeights
from soupray.store.weights_file import MappedWeights, Weights

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

NOT_WEIGHTS = (".num_batches_tracked", ".position_ids")
"""Endings of buffers that are counted, not learnt; our models have none of them."""


class ForeignWeights(NamedTuple):
    """Weights as they were found, and where."""

    weights: Weights
    where: str


def load_foreign(path: Path) -> Weights:
    """Somebody else's checkpoint: safetensors, or a .pt file that would run no code when loaded.

    A training's file may have them under `state_dict` or `model`; a folder has model.safetensors,
    in parts or whole, or pytorch_model.bin, as the Hugging Face libraries write it.

    Raises:
        CheckpointError: unreadable, or it would run code when loaded.
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
            "Save a plain state dict, best as safetensors."
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


def unwrapped(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Without the prefixes that all names have, and without what is no weight."""
    found = dict(weights)
    while found and (prefix := next((p for p in WRAPPERS if all_start(found, p)), "")):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith(NOT_WEIGHTS)}


def all_start(weights: Mapping[str, torch.Tensor], prefix: str) -> bool:
    """Whether every name starts with `prefix`."""
    return all(name.startswith(prefix) for name in weights)


def renamed(weights: Weights, name: Callable[[str], str | None]) -> Weights:
    """Under the names that `name` gives; tensors for which it gives None are left out."""
    return {new: tensor for old, tensor in weights.items() if (new := name(old)) is not None}


def matched(found: ForeignWeights, model: torch.nn.Module) -> Weights:
    """Exactly the tensors of `model`, in its types.

    Raises:
        IncompatibleWeights: names the first tensor that is missing, of another shape, or not of
            the model, in the model's order.
    """
    weights, wanted = found.weights, model.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise IncompatibleWeights(
                f"{found.where}: there is no tensor {name!r} {list(tensor.shape)}, which the model "
                f"of this spec has (names as soupray writes them). {_ADVICE}"
            )
        if weights[name].shape != tensor.shape:
            raise IncompatibleWeights(
                f"{found.where}: tensor {name!r} is {list(weights[name].shape)}, and "
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
    """BatchNorm's count of batches is no weight: nothing reads it, and it has no average."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None
            # When it loads a state dict without the count, it would put one in and refuse it.
            module.register_load_state_dict_pre_hook(_drop_batch_count)


def _drop_batch_count(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *more: Any
) -> None:
    state_dict.pop(f"{prefix}num_batches_tracked", None)
