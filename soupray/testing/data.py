"""The contract of a function that returns datasets, as `data.kind: torch` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from soupray.data.decoding import Look, decoded
from soupray.data.opening import Unreadable
from soupray.data.torch_sets import list_torch
from soupray.spec.data import TorchDataSpec


def check_dataset(
    dataset: str,
    *,
    splits: Sequence[str] = ("train", "test"),
    args: Mapping[str, Any] = MappingProxyType({}),
    size: int = 32,
) -> dict[str, dict[str | int, int]]:
    """Check that a function keeps its contract: every sample can be read, and none is random.

    Args:
        dataset: the function, as a spec names it: `package.module:name` or an entry point.
        splits: what the function is called with.
        args: its keyword arguments.
        size: side to which images are brought, in pixels.

    Returns:
        For each split, the number of samples of each class, by name where classes have names.

    Raises:
        ConfigError: a sample is of a form that soupray does not know; the message names it.
        AssertionError: a sample cannot be read, or changes from one read to the next.
    """
    spec = TorchDataSpec.model_validate(
        {"kind": "torch", "dataset": dataset, "args": dict(args), "held_out": 0, "size": size}
    )
    look, found = Look(size, 3), {}
    for split in splits:
        (listed, names), (again, _) = list_torch(spec, split), list_torch(spec, split)
        where = f"{dataset}: split {split!r}"
        assert (listed.labels == again.labels).all(), f"{where}: a second call has other targets"
        for row in range(len(listed.ids)):
            try:
                one, two = (decoded(part.raw(row), look).pixels for part in (listed, again))
            except Unreadable as error:
                raise AssertionError(f"{where}: sample {row}: {error}") from error
            assert np.array_equal(one, two), f"{where}: sample {row} changes between two reads"
        numbers, counts = np.unique(listed.labels, return_counts=True)
        called = [names[k] if names else k for k in numbers.tolist()]
        found[split] = dict(zip(called, counts.tolist(), strict=True))
    return found
