"""Checkpoints of other software: read, renamed, then compared strictly with a model of soupray."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from soupray.core.errors import CheckpointError, ConfigError, IncompatibleWeights, one_line
from soupray.spec.class_numbers import class_numbers
from soupray.store.weights_file import MappedWeights, Weights

log = logging.getLogger(__name__)

WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "model.", "net.")
"""Prefixes that DataParallel, torch.compile, Lightning and modules around a model add to names."""

NOT_WEIGHTS = (".num_batches_tracked", ".position_ids")
"""Endings of the names of buffers that hold counters or positions. Models of soupray have none."""

AVERAGED = "n_averaged"
"""The counter that torch.optim.swa_utils.AveragedModel has beside its `module.`."""

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys of a state dict in a file of torch.save, in the order in which timm looks for them: the
moving average comes first (timm.models._helpers.load_state_dict)."""

OTHER_CONTAINERS = ("model_state_dict", "model_state", "net", "network", "params_ema", "params")
"""Keys of a state dict in files of other programs. Which of them comes first, no rule says."""


class ForeignWeights(NamedTuple):
    """Weights of other software, and the place that error messages name."""

    weights: Weights
    where: str


def load_foreign(path: Path) -> Weights:
    """Read a checkpoint of other software.

    Args:
        path: a safetensors file; a file of torch.save with a state dict, which may be under one of
            `CONTAINERS` or `OTHER_CONTAINERS`; or a folder as the libraries write it, with
            model.safetensors, open_clip_model.safetensors or pytorch_model.bin, in one part or
            more. A head.safetensors beside them is the head, as `soupray export` writes it.

    Raises:
        CheckpointError: the file cannot be read, would run code when it is loaded, holds something
            other than dense tensors, or does not say which of several models is meant.
    """
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".safetensors":
        mapped = MappedWeights(path)
        return _plain({name: mapped[name] for name in mapped.names}, path)
    try:
        # timm's training script keeps its arguments, plain values in a Namespace, in the file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: refused: it is corrupt, or holds more than tensors ({_why(path, error)}). "
            "Save a plain state dict, preferably as safetensors."
        ) from error
    return _plain(_contained(loaded, path), path)


def _why(path: Path, error: Exception) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # noqa: BLE001 - not a file of torch.save
        names = []
    return one_line(", ".join(sorted(names)) or type(error).__name__)


def _contained(loaded: Any, path: Path) -> Any:
    """The state dict inside what a file of torch.save holds."""
    if not isinstance(loaded, dict):
        return loaded
    inside = [key for key in CONTAINERS if isinstance(loaded.get(key), dict)]
    others = [key for key in OTHER_CONTAINERS if isinstance(loaded.get(key), dict)]
    if not inside and len(others) > 1:
        raise CheckpointError(
            f"{path}: it holds several models: {', '.join(others)}. Save the one you mean as a "
            "plain state dict."
        )
    found = [*inside, *others]
    if not found:
        return loaded
    if len(found) > 1:
        log.warning(f"{path}: {found[0]} is read, not {', '.join(found[1:])}.")
    return loaded[found[0]]


def _plain(weights: Any, path: Path) -> Weights:
    """`weights`, if they are dense tensors with values, by name.

    Raises:
        CheckpointError: something else is among them. The message names it.
    """
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path}: not a state dict of tensors.")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: not a state dict of tensors: {one_line(name)!r} is a "
                f"{type(tensor).__name__}."
            )
        problem = ""
        if tensor.is_meta:
            problem = "has no values (a tensor of the meta device)"
        elif tensor.is_quantized:
            problem = f"is quantised ({_dtype(tensor)})"
        elif tensor.layout != torch.strided:
            problem = f"is sparse ({str(tensor.layout).removeprefix('torch.')})"
        if problem:
            raise CheckpointError(
                f"{path}: tensor {one_line(name)!r} {problem}. Save the model with dense tensors "
                "of float32, float16 or bfloat16."
            )
    return {name: tensor.detach() for name, tensor in weights.items()}


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _load_folder(folder: Path) -> Weights:
    files = sorted(folder.glob("*.safetensors"), key=lambda f: f.name)
    heads = [file for file in files if file.name == HEAD_FILE]
    files = [file for file in files if file.name != HEAD_FILE]
    pickled = sorted(f for f in folder.glob("*.bin") if "pytorch_model" in f.name)
    if not files and not pickled:
        raise CheckpointError(f"{folder}: there is no model.safetensors or pytorch_model.bin.")
    if files and pickled:  # as in transformers and open_clip
        log.warning(f"{folder}: {files[0].name} is read, not {pickled[0].name}.")
    found: Weights = {}
    for part in _one_model(folder, files or pickled):
        weights = load_foreign(part)
        if twice := sorted(found.keys() & weights):
            raise CheckpointError(f"{part}: tensor {twice[0]!r} is in another file of it too.")
        found |= weights
    for head in heads:
        own = load_foreign(head)
        if any(name.startswith("head.") for name in found):
            raise CheckpointError(f"{folder}: the model has a head, and {HEAD_FILE} is another.")
        found |= {f"head.{name}": tensor for name, tensor in own.items()}
    return found


HEAD_FILE = "head.safetensors"
"""The head of an exported model whose library has no place for it."""

_PART = re.compile(r"(.*)-(\d+)-of-(\d+)(\..*)")
"""The name of one file of a model in several files, as transformers and open_clip write it."""


def _one_model(folder: Path, files: list[Path]) -> list[Path]:
    """The files of the one model in a folder.

    An index file or their names say that several files are parts of one model.

    Raises:
        CheckpointError: there are several models, or a part is missing.
    """
    names = {file.name for file in files}
    if indices := sorted(p.name for p in folder.glob(f"*{files[0].suffix}.index.json")):
        try:
            index = json.loads((folder / indices[0]).read_bytes())
            wanted = set(map(str, index["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / indices[0]}: not an index of parts.") from error
    elif len(names) > 1 and (parts := [m for n in names if (m := _PART.fullmatch(n))]):
        start, _, count, end = parts[0].groups()
        if int(count) > MOST_PARTS:
            raise CheckpointError(f"{folder}: {parts[0][0]}: more than {MOST_PARTS} parts.")
        wanted = {f"{start}-{k:05d}-of-{count}{end}" for k in range(1, int(count) + 1)}
    else:
        wanted = names if len(names) == 1 and not _PART.fullmatch(min(names)) else set()
    if lacking := sorted(wanted - names):
        raise CheckpointError(f"{folder}: the part {lacking[0]!r} of the model is missing.")
    if not wanted or names - wanted:
        raise CheckpointError(
            f"{folder}: {', '.join(sorted(names))}: no index file says that they are one whole "
            "model. Name the file that you mean."
        )
    return [folder / name for name in sorted(wanted)]


MOST_PARTS = 10_000
"""Parts of one model. The largest public models have some hundreds."""


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
    found = {
        name: tensor
        for name, tensor in weights.items()
        if name != AVERAGED and not name.endswith(NOT_WEIGHTS)
    }
    while found and (prefix := next((p for p in WRAPPERS if all_start(found, p)), "")):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


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

    Tensors that are one in the model (tied) may have one of their names only, as transformers saves
    them.

    Raises:
        IncompatibleWeights: a tensor of the model is missing or has another shape or kind of
            number, or there is a tensor that the model does not have, or tied ones differ. The
            message names the first such tensor.
        CheckpointError: a value is NaN or infinite.
    """
    weights, wanted, where = found.weights, model.state_dict(), found.where
    extra = [name for name in weights if name not in wanted]
    made = {}
    for names in tied(model):
        given = [name for name in names if name in weights]
        for name in given:
            _refuse_unlike(name, weights[name], wanted[name], where)
        if not given:
            raise IncompatibleWeights(
                f"{where}: there is no tensor {names[0]!r} {list(wanted[names[0]].shape)}, which "
                f"the model of this spec has (this is its name in soupray). {_ADVICE}"
            )
        for other in given[1:]:
            if not torch.equal(weights[given[0]], weights[other]):
                raise IncompatibleWeights(
                    f"{where}: the tensors {given[0]!r} and {other!r} differ, but the model of "
                    "this spec has one tensor for both."
                )
        for name in names:
            made[name] = weights[given[0]].to(wanted[name].dtype, copy=True)
    if extra:
        raise IncompatibleWeights(
            f"{where}: the tensor {one_line(extra[0])!r} {list(weights[extra[0]].shape)} is not "
            f"one of the model of this spec. {_ADVICE}"
        )
    return {name: made[name] for name in wanted}


def tied(model: torch.nn.Module) -> list[list[str]]:
    """The names of the tensors of a model. Names of one and the same tensor are together."""
    groups: dict[object, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def separate(weights: Weights) -> Weights:
    """The tensors, with a copy in place of each one that is there under another name already.

    A file of safetensors cannot have one tensor under two names.
    """
    seen: set[int] = set()
    made = {}
    for name, tensor in weights.items():
        made[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return made


def _refuse_unlike(name: str, tensor: torch.Tensor, wanted: torch.Tensor, where: str) -> None:
    """Refuse a tensor with another kind of number or shape, or with values that are not finite."""
    floats = tensor.is_floating_point() and tensor.element_size() > 1
    if floats != wanted.is_floating_point() or tensor.is_complex():
        raise IncompatibleWeights(
            f"{where}: tensor {name!r} is {_dtype(tensor)}, but {_dtype(wanted)} in the model of "
            "this spec. Quantised numbers without their scales are no weights: save the model in "
            "float32, float16 or bfloat16."
        )
    if tensor.shape != wanted.shape:
        raise IncompatibleWeights(
            f"{where}: tensor {name!r} is {list(tensor.shape)}, but {list(wanted.shape)} in the "
            f"model of this spec. {_ADVICE}"
        )
    if floats and (bad := tensor.numel() - int(torch.isfinite(tensor).sum())):
        raise CheckpointError(
            f"{where}: tensor {name!r} is NaN or infinite at {bad} of its {tensor.numel()} "
            "elements: nothing to average. Leave it out."
        )


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
