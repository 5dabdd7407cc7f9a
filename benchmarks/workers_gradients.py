"""Steps per second of a trial of two gloo workers: sums after the pass, and DDP's buckets.

    python benchmarks/workers_gradients.py [--large] [--turns 7]

Two processes with one thread each train the demo's CLIP tower, or (--large) linear layers with 20
million parameters, whose gradients (81 MB a step) take long to send beside their passes. Both ways
run by turns in the same processes, one epoch a turn; the first turn of each way is not counted.
What is printed is the median over turns, and of the turns' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.trials import Training
from soupray.data.cache import open_data
from soupray.distributed.train import TorchGroup
from soupray.spec.space import Space
from soupray.spec.sweep_spec import parse
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.start import Start

WORKERS = 2
DIGITS = Path(__file__).parent.parent / "sweeps" / "digits.yaml"


class After(TorchGroup):
    """All gradients in one message after the pass: as soupray 0.1 did."""

    def shared(self, model: torch.nn.Module) -> torch.nn.Module:
        """No DDP."""
        return model


def member(rank: int, folder: str, large: bool, turns: int) -> None:
    """One worker; the first one prints."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    torch.set_num_threads(1)
    spec = parse(DIGITS.read_text(), "digits.yaml")
    data, task, batch = open_data(spec, Path(folder, str(rank))), task_of(spec.task), 20
    torch.manual_seed(0)
    if large:
        task, batch = Large(), 16
    weights = task.model().state_dict()
    hparams = Hyperparameters(**Space(lr=1e-5, epochs=100, batch_size=batch).model_dump())
    loops = {}
    for way, group in (("after", After()), ("ddp", TorchGroup())):
        start = Start(weights=weights, seed=0, device="cpu", training=Training(), group=group)
        loops[way] = Loop(task, data, hparams, start)
    found: dict[str, list[float]] = {way: [] for way in loops}
    steps = -(-data.split("train").size // batch)
    for turn in range(turns + 1):
        for way, loop in loops.items():
            torch.distributed.barrier()
            began = time.perf_counter()
            loop.epoch(turn + 1)
            torch.distributed.barrier()
            if turn:
                found[way].append(steps / (time.perf_counter() - began))
    if rank == 0:
        model = "a wide model" if large else "the demo's CLIP"
        size = sum(p.numel() for p in loops["ddp"].in_training.parameters())
        print(
            f"{model}, {size / 1e6:.1f} M parameters, {steps} steps a turn, load {os.getloadavg()}"
        )
        for way, rates in found.items():
            print(f"{way:<6} {statistics.median(rates):6.3f} steps/s of {sorted(rates)}")
        ratios = [a / b for a, b in zip(found["ddp"], found["after"], strict=True)]
        print(f"ddp / after: median {statistics.median(ratios):.2f}")
    torch.distributed.destroy_process_group()


class Large:
    """Layers whose gradients take long to send beside their passes."""

    def model(self) -> torch.nn.Module:
        """20 million parameters."""
        blocks = [
            layer for _ in range(4) for layer in (torch.nn.Linear(2240, 2240), torch.nn.GELU())
        ]
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 2240), *blocks, torch.nn.Linear(2240, 10)
        )

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Eight by eight."""
        grey = samples.float().mean(dim=1, keepdim=True)
        return torch.nn.functional.adaptive_avg_pool2d(grey, 8) / 255


def main() -> None:
    """Run both ways by turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--large", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(member, (folder, chosen.large, chosen.turns), WORKERS)


if __name__ == "__main__":
    main()
