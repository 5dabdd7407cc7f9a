"""A WiSE-FT line of 21 points: what is fetched, read and computed.

    python benchmarks/wise_ft_grid.py

Two models of 350 MB in a store of files. The grid is made as the evaluator makes it (exact, from
memory-mapped files, into one live model), against `torch.lerp` over two state dicts in memory and
against the published way: both checkpoints loaded with torch.load for every point.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from soupray.core.candidates import mean_of
from soupray.maths.weights import Mixer
from soupray.recipes.starts import interpolate
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store

MODEL_MB, TENSORS, GRID, ROUNDS = 350, 50, 20, 3


class Counted(Checkpoints):
    """Checkpoints that count what crosses the network."""

    downloads = 0

    def _download(self, sha256: str, local: Path) -> None:
        self.downloads += 1
        super()._download(sha256, local)


def seconds(work: Callable[[], None]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ways(
    states: list[dict[str, torch.Tensor]], checkpoints: Checkpoints, shas: list[str], folder: Path
) -> dict[str, Callable[[], None]]:
    """Three ways to make all points of the line in one live model."""
    live = {n: torch.empty_like(t) for n, t in states[0].items()}
    line = [interpolate(mean_of([shas[0]]), mean_of([shas[1]]), k, GRID) for k in range(GRID + 1)]

    def ours() -> None:
        mixer = Mixer(checkpoints.open)
        for point in line:
            for name, tensor in mixer.tensors(point):
                live[name].copy_(tensor)

    def in_memory() -> None:
        for k in range(GRID + 1):
            for name, start in states[0].items():
                live[name].copy_(torch.lerp(start, states[1][name], k / GRID))

    def published() -> None:
        for k in range(GRID + 1):
            a, b = (torch.load(folder / f"{i}.pt", weights_only=True) for i in range(2))
            for name in a:
                live[name].copy_((1 - k / GRID) * a[name] + k / GRID * b[name])

    return {"exact, mapped files": ours, "float32 in memory": in_memory, "loaded": published}


def main() -> None:
    """By turns."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(f"file://{folder}/store")
        written = Checkpoints(store, folder / "written")
        generator = torch.Generator().manual_seed(0)
        shape = (MODEL_MB * 1_000_000 // 4 // TENSORS,)
        states = [
            {f"t{i}": torch.randn(shape, generator=generator) for i in range(TENSORS)}
            for _ in range(2)
        ]
        shas = [written.save(state, {}).sha256 for state in states]
        for i, state in enumerate(states):
            torch.save(state, folder / f"{i}.pt")
        checkpoints = Counted(store, folder / "cache")
        for sha in shas:
            checkpoints.fetch(sha)
        took: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for way, work in ways(states, checkpoints, shas, folder).items():
                took.setdefault(way, []).append(seconds(work))
        for way, found in took.items():
            print(f"{way:<20} {statistics.median(found) / (GRID + 1):6.3f} s a point")
        print(
            f"fetched from the store: {checkpoints.downloads} checkpoints, in all rounds together"
        )


if __name__ == "__main__":
    main()
