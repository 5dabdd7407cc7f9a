"""Exact nearest neighbours: faiss' flat index, on the CPU or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.errors import ConfigError

Features = npt.NDArray[np.float32]


def kth_distances(
    queries: Features, points: Features, k: int, threads: int = 1, gpu: bool = False
) -> Features:
    """[N]: squared L2 distance of each of `queries` [N, D] to its k-th nearest of `points`.

    k starts at 1 and is at most the number of points.

    Raises:
        ConfigError: faiss is not installed, or k is out of range.
    """
    if not 1 <= k <= len(points):
        raise ConfigError(
            f"k = {k} neighbours of a set of {len(points)} points: k must be between 1 and the "
            "size of the set."
        )
    index = _flat(points.shape[1], threads, gpu)
    index.add(np.ascontiguousarray(points, dtype=np.float32))
    distances, _ = index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    # |x|^2 - 2xy + |y|^2 in float32 can be slightly below zero for a point itself.
    kth: Features = np.maximum(distances[:, -1], 0.0)
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
    if gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index
