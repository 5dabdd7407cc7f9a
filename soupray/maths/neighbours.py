"""Exact nearest neighbours with the flat index of faiss, on the CPU or a GPU.

On a GPU, faiss selects at most 2048 neighbours. For a larger k, torch is used there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from soupray.core.arrays import Features, Float32
from soupray.core.errors import ConfigError

FAISS_GPU_K = 2048
"""The largest k of the flat index of faiss on a GPU, without cuVS
(`faiss::gpu::getMaxKSelection`)."""

BLOCK_BYTES = 2**28
"""Bytes of results or distances in memory at a time. faiss on the CPU uses about twice as much in
addition."""

ANSWER_BYTES = 12
"""Bytes of one result of faiss: a distance in float32 and a position in int64."""


def kth_distances(
    queries: Features, points: Features, k: int, threads: int = 1, gpu: bool = False
) -> Float32:
    """Squared L2 distance from each query to its k-th nearest point.

    The number of queries in one search changes low bits of the result. All queries are searched at
    once if their results fit into `BLOCK_BYTES`.

    Args:
        queries: [N, D].
        points: [M, D].
        k: which neighbour, from 1 to M.
        threads: of faiss on the CPU.
        gpu: search on the GPU.

    Returns:
        [N].

    Raises:
        ConfigError: faiss is not installed, the GPU needs another build of faiss, or k is out of
            range.
    """
    if not 1 <= k <= len(points):
        raise ConfigError(
            f"k = {k} neighbours of a set of {len(points)} points: k must be between 1 and the "
            "size of the set."
        )
    if gpu and k > FAISS_GPU_K:
        return kth_by_matmul(queries, points, k, "cuda")
    index = flat_index(points.shape[1], threads, gpu)
    index.add(np.ascontiguousarray(points, dtype=np.float32))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    kth: Float32 = np.empty(len(queries), np.float32)
    block = max(1, BLOCK_BYTES // (ANSWER_BYTES * k))
    for at in range(0, len(queries), block):
        distances, _ = index.search(queries[at : at + block], k)
        kth[at : at + block] = distances[:, -1]
    # |x|^2 - 2xy + |y|^2 in float32 can be slightly below zero where a query equals a point.
    return np.maximum(kth, 0.0)


@torch.inference_mode()
def kth_by_matmul(queries: Features, points: Features, k: int, device: str) -> Float32:
    """Squared L2 distance from each query to its k-th nearest point, with torch, for any k.

    Args:
        queries: [N, D].
        points: [M, D].
        k: which neighbour, from 1 to M.
        device: the torch device that computes.

    Returns:
        [N].
    """
    p = torch.from_numpy(points).to(device, torch.float32)
    lengths = (p * p).sum(dim=1)
    kth: Float32 = np.empty(len(queries), np.float32)
    block = max(1, BLOCK_BYTES // lengths.nbytes)
    for at in range(0, len(queries), block):
        q = torch.from_numpy(queries[at : at + block]).to(device, torch.float32)
        # |x|^2 is the same for all points, so that it is added after the selection.
        nearest = torch.addmm(lengths, q, p.T, alpha=-2).kthvalue(k, dim=1).values
        kth[at : at + block] = (nearest + (q * q).sum(dim=1)).clamp_min(0).cpu().numpy()
    return kth


def flat_index(width: int, threads: int, gpu: bool) -> Any:
    """A new flat index of faiss for vectors of `width`, by Euclidean distance."""
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
            "VRF on a GPU needs faiss for GPUs, but faiss for CPUs is installed: pip uninstall "
            "faiss-cpu, then pip install 'soupray[gpu]'."
        )
    if gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index
