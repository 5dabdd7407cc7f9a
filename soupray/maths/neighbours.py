"""Exact nearest neighbours: faiss' flat index, on the CPU or a GPU.

On a GPU faiss selects no more than 2048 neighbours; the k-th of more is found with torch there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from soupray.core.errors import ConfigError

Features = npt.NDArray[np.float32]

FAISS_GPU_K = 2048
"""The largest k of faiss' flat index on a GPU, without cuVS (`faiss::gpu::getMaxKSelection`)."""

BLOCK_BYTES = 2**28
"""Of answers or distances in memory at a time. faiss on the CPU has about twice that beside."""

ANSWER_BYTES = 12
"""Of one of faiss' answers: a distance in float32 and a position in int64."""


def kth_distances(
    queries: Features, points: Features, k: int, threads: int = 1, gpu: bool = False
) -> Features:
    """[N]: squared L2 distance of each of `queries` [N, D] to its k-th nearest of `points`.

    k starts at 1 and is at most the number of points. How many queries are searched at a time
    changes low bits: all at once if their answers are within `BLOCK_BYTES`.

    Raises:
        ConfigError: faiss is not installed, or not the one for GPUs, or k is out of range.
    """
    if not 1 <= k <= len(points):
        raise ConfigError(
            f"k = {k} neighbours of a set of {len(points)} points: k must be between 1 and the "
            "size of the set."
        )
    if gpu and k > FAISS_GPU_K:
        return kth_by_matmul(queries, points, k, "cuda")
    index = _flat(points.shape[1], threads, gpu)
    index.add(np.ascontiguousarray(points, dtype=np.float32))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    kth: Features = np.empty(len(queries), np.float32)
    block = max(1, BLOCK_BYTES // (ANSWER_BYTES * k))
    for at in range(0, len(queries), block):
        distances, _ = index.search(queries[at : at + block], k)
        kth[at : at + block] = distances[:, -1]
    # |x|^2 - 2xy + |y|^2 in float32 can be slightly below zero for a point itself.
    return np.maximum(kth, 0.0)


@torch.inference_mode()
def kth_by_matmul(queries: Features, points: Features, k: int, device: str) -> Features:
    """As `kth_distances`, for any k, with torch on `device`."""
    p = torch.from_numpy(points).to(device, torch.float32)
    lengths = (p * p).sum(dim=1)
    kth: Features = np.empty(len(queries), np.float32)
    block = max(1, BLOCK_BYTES // lengths.nbytes)
    for at in range(0, len(queries), block):
        q = torch.from_numpy(queries[at : at + block]).to(device, torch.float32)
        # |x|^2 is the same for all points: it is added to the one that is chosen.
        nearest = torch.addmm(lengths, q, p.T, alpha=-2).kthvalue(k, dim=1).values
        kth[at : at + block] = (nearest + (q * q).sum(dim=1)).clamp_min(0).cpu().numpy()
    return kth


def _flat(width: int, threads: int, gpu: bool) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "VRF needs faiss: pip install 'soupray[cpu]', or 'soupray[gpu]' (not both)."
        ) from error
    faiss.omp_set_num_threads(threads)
    index: Any = faiss.IndexFlatL2(width)
    if gpu and not hasattr(faiss, "index_cpu_to_gpu"):
        raise ConfigError(
            "VRF on a GPU needs faiss for GPUs, and the one for CPUs is installed: pip uninstall "
            "faiss-cpu, then pip install 'soupray[gpu]'."
        )
    if gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index
