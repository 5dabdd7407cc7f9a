"""Linear probes: features once, then trials in seconds, against probing through the backbone.

    python benchmarks/probe_speed.py

The demo's model and images, four trials of ten epochs. Through the backbone: every epoch of every
trial runs the frozen body. The features that ours computes first are part of its time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from soupray.core.hyperparameters import Hyperparameters
from soupray.data.cache import open_data
from soupray.spec.space import Space
from soupray.spec.sweep_spec import load
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.probe import frozen
from soupray.training.start import Start

TRIALS, EPOCHS, ROUNDS = 4, 10, 5


def main() -> None:
    """By turns."""
    torch.set_num_threads(1)
    spec = load(Path(__file__).parent.parent / "sweeps" / "digits.yaml")
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"train_per_class": 100})})
    space = Space(lr=1e-3, epochs=EPOCHS, batch_size=50)
    hparams = Hyperparameters(**space.model_dump())
    with tempfile.TemporaryDirectory() as name:
        data, task = open_data(spec, Path(name)), task_of(spec.task)
        checkpoints = Checkpoints(open_store("memory://"), Path(name, "weights"))
        init = checkpoints.save(task.init(), {})
        weights = checkpoints.load(init.sha256)

        def train(loop: Loop) -> None:
            for number in range(1, EPOCHS + 1):
                loop.epoch(number)

        def through() -> None:
            for seed in range(TRIALS):
                loop = Loop(task, data, hparams, Start(weights=weights, seed=seed, device="cpu"))
                loop.model.visual.requires_grad_(False)
                train(loop)

        def once() -> None:
            frozen.cache_clear()
            for seed in range(TRIALS):
                head, features = frozen(task, data, checkpoints, init.sha256, spec.setting)
                start = Start(weights=head.init(), seed=seed, device="cpu")
                train(Loop(head, features, hparams, start))

        took: dict[str, list[float]] = {"through the body": [], "features once": []}
        for _ in range(ROUNDS):
            for way, work in zip(took, (through, once), strict=True):
                began = time.perf_counter()
                work()
                took[way].append(time.perf_counter() - began)
        for way, seconds in took.items():
            print(f"{way:<17} {statistics.median(seconds):6.2f} s for {TRIALS} trials")
        ratios = [a / b for a, b in zip(*took.values(), strict=True)]
        print(f"median ratio {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
