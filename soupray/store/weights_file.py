"""A file of weights: safetensors, whose bytes depend on nothing but what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from soupray.core.errors import CheckpointError

Weights = dict[str, torch.Tensor]


class MappedWeights:
    """A safetensors file, read tensor by tensor from the page cache."""

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
        """One tensor."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


def write_weights(
    path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, str]
) -> None:
    """A safetensors file whose bytes depend on nothing but the arguments."""
    metadata = {"soupray": json.dumps(dict(about), sort_keys=True)}
    path.touch()
    mode = path.stat().st_mode  # as any new file's; safetensors makes its own the owner's only
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in weights.items()}, path, metadata)
    except SafetensorError as error:  # of the disk, too
        raise OSError(str(error)) from error
    path.chmod(mode)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digests(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 (hex) of each tensor's bytes, for reads of single tensors."""
    digests = {}
    for name, tensor in weights.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digests[name] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return digests
