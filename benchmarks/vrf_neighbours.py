"""VRF's distances against faiss called bare: the same index, the same search.

python benchmarks/vrf_neighbours.py
"""

from __future__ import annotations

import statistics
import time

import faiss
import numpy as np

from soupray.maths.neighbours import kth_distances

QUERIES, POINTS, WIDTH, ROUNDS = 10_000, 20_000, 512, 7


def main() -> None:
    """By turns, for the smallest and a larger k."""
    generator = np.random.default_rng(0)
    queries, points = (
        generator.standard_normal((n, WIDTH), dtype=np.float32) for n in (QUERIES, POINTS)
    )
    for k in (1, 20):
        bare, ours = [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            faiss.omp_set_num_threads(2)
            index = faiss.IndexFlatL2(WIDTH)
            index.add(points)
            expected, _ = index.search(queries, k)
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            found = kth_distances(queries, points, k, threads=2)
            ours.append(time.perf_counter() - began)
            assert np.array_equal(found, expected[:, -1])
        share = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
        print(
            f"k = {k:2}: faiss {statistics.median(bare):.2f} s, kth_distances "
            f"{statistics.median(ours):.2f} s, median share {share:.1%}"
        )


if __name__ == "__main__":
    main()
