"""Task vectors tau_i = theta_i - theta_0: TIES and DARE.

Everything is summed in float64, model by model in the candidate's order, and rounded once to the
storage type, as in `maths.weights`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from soupray.core.arrays import Mask, Uint64
from soupray.core.task_vectors import DareSoup, TaskVectorSoup, TiesSoup

CHUNK = 2**16
"""Elements of a tensor whose K task vectors are in memory at a time, in float64."""


def direction(
    soup: TaskVectorSoup, name: str, origin: torch.Tensor, models: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The merged task vector of one tensor, which a soup scales and adds to theta_0.

    Args:
        soup: the soup. Its scale does not matter.
        name: of the tensor.
        origin: the tensor of theta_0, of floating point.
        models: the tensors of the theta_i, in the order of the soup.

    Returns:
        A flat float64 tensor.
    """
    out = torch.empty(origin.numel(), dtype=torch.float64)
    start, flat = origin.reshape(-1), [model.reshape(-1) for model in models]
    for at in range(0, out.numel(), CHUNK):
        rows = slice(at, min(at + CHUNK, out.numel()))
        base, parts = start[rows], [model[rows] for model in flat]
        deltas = [part.double() - base.double() for part in parts]
        if isinstance(soup, TiesSoup):
            thresholds = [threshold for _, threshold in soup.parts]
            kept = [magnitudes(p, base) >= t for p, t in zip(parts, thresholds, strict=True)]
            trimmed = [torch.where(m, d, 0.0) for m, d in zip(kept, deltas, strict=True)]
            out[rows] = elected_mean(trimmed)
        else:
            masks = [_mask(soup, sha, name, rows) for sha in soup.models]
            out[rows] = dropped_mean(deltas, masks, soup.drop)
    return out


def moved(origin: torch.Tensor, change: torch.Tensor, scale: float) -> torch.Tensor:
    """theta_0 + scale * change, rounded once to the dtype of theta_0.

    Args:
        origin: a tensor of theta_0.
        change: its `direction`.
        scale: of the soup.
    """
    made = torch.empty(origin.shape, dtype=origin.dtype)
    out, start = made.view(-1), origin.reshape(-1)
    for at in range(0, out.numel(), CHUNK):
        rows = slice(at, min(at + CHUNK, out.numel()))
        out[rows].copy_(start[rows].double() + scale * change[rows])
    return made


def magnitudes(model: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """|theta_i - theta_0| in float32, as thresholds are found and applied.

    Args:
        model: elements of theta_i.
        origin: the same elements of theta_0.
    """
    return (model.to(torch.float32) - origin.to(torch.float32)).abs()


def threshold_of(found: Iterable[torch.Tensor], size: int, keep: float) -> float:
    """The magnitude that the largest entries of a task vector reach (TIES, step 1).

    The float32 magnitudes of one whole model are in memory.

    Args:
        found: the magnitudes of all tensors, each in any shape.
        size: the number of their entries.
        keep: the share of entries to keep, above 0. At least one is kept.

    Returns:
        The smallest kept magnitude. Entries that equal it are all kept.
    """
    flat, filled = np.empty(size, np.float32), 0
    for one in found:
        flat[filled : filled + one.numel()] = one.reshape(-1).numpy()
        filled += one.numel()
    at = size - max(1, int(keep * size))
    flat.partition(at)
    return float(flat[at])


def elected_mean(trimmed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Elect a sign for each entry, and average the entries that have it (TIES, steps 2 and 3).

    The elected sign is that of the sum. If the sum is 0, no sign is elected and the mean is 0, as
    in the paper; the released code gives such entries the sign of most others.

    Args:
        trimmed: the task vectors, with 0 for what is not kept, each [n].

    Returns:
        [n].
    """
    sign = functools.reduce(torch.add, trimmed).sign()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for one in trimmed:
        agrees = one * sign > 0
        total += torch.where(agrees, one, 0.0)
        count += agrees
    return total / count.clamp_min(1)


def dropped_mean(
    deltas: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], drop: float
) -> torch.Tensor:
    """Drop entries, rescale the others by 1 / (1 - drop), and average (DARE).

    Args:
        deltas: the task vectors, each [n].
        kept: for each task vector, which entries stay, [n].
        drop: the probability with which an entry does not stay.

    Returns:
        [n].
    """
    terms = [torch.where(mask, one, 0.0) for one, mask in zip(deltas, kept, strict=True)]
    return functools.reduce(torch.add, terms) / (len(terms) * (1 - drop))


def _mask(soup: DareSoup, checkpoint: str, name: str, rows: slice) -> torch.Tensor:
    named = hashlib.sha256(f"{soup.seed}/{checkpoint}/{name}".encode()).digest()
    stream = int.from_bytes(named[:8], "big")
    return torch.from_numpy(kept_entries(stream, rows, soup.drop))


def kept_entries(stream: int, rows: slice, drop: float) -> Mask:
    """Which entries of a task vector DARE keeps.

    Args:
        stream: the seed of their random numbers, from 0 to 2**64 - 1.
        rows: positions from `start` to `stop`.
        drop: the probability that an entry is not kept.
    """
    uniform = (split_mix(stream, rows.start, rows.stop) >> np.uint64(11)) * 2.0**-53
    kept: Mask = uniform >= drop
    return kept


def split_mix(stream: int, start: int, stop: int) -> Uint64:
    """Numbers `start` to `stop` - 1 of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    Each number follows from its position alone, so that the size of chunks does not matter. NumPy's
    and torch's generators may change with their versions.

    Args:
        stream: the seed.
        start: position of the first number, from 0.
        stop: position after the last number.
    """
    position = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z = np.uint64(stream) + position * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Uint64 = z ^ (z >> np.uint64(31))
    return mixed
