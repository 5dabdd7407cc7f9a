"""Read and write safetensors files whose bytes depend only on their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from soupray.core.errors import CheckpointError

Weights = dict[str, torch.Tensor]


class MappedWeights:
    """A memory-mapped safetensors file; each tensor is read when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}.") from error
        self.names: tuple[str, ...] = tuple(sorted(self._file.keys()))

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor with this name."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


def write_weights(
    path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, str]
) -> None:
    """Write a safetensors file whose bytes depend only on the weights and `about`.

    Args:
        path: the file to write.
        weights: tensors by name.
        about: facts about the weights, written as JSON under one metadata key.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would allow only the owner to read the file
    try:
        save_file(_plain(weights), path, _metadata(about))
    except SafetensorError as error:  # raised for errors of the disk too
        raise OSError(str(error)) from error
    path.chmod(mode)


def digest_of(weights: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, of the file that `write_weights` would write.

    It takes as much memory as the weights.
    """
    return hashlib.sha256(save(_plain(weights), _metadata(about))).hexdigest()


def _plain(weights: Mapping[str, torch.Tensor]) -> Weights:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _metadata(about: Mapping[str, str]) -> dict[str, str]:
    return {"soupray": json.dumps(dict(about), sort_keys=True)}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digests(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the SHA-256 (hexadecimal) of the bytes of each tensor, by name."""
    digests = {}
    for name, tensor in weights.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digests[name] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return digests
