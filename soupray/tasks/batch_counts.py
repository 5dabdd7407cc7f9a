"""BatchNorm's counts of batches, which our models do without."""

from __future__ import annotations

from typing import Any

import torch

_BATCH_COUNT = "num_batches_tracked"


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
    state_dict.pop(f"{prefix}{_BATCH_COUNT}", None)
