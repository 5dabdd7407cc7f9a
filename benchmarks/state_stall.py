"""What it costs a training to leave a state that it could go on from: ViT-B/32, 350 MB of weights.

    python benchmarks/state_stall.py

The stall is the copy that is made between two epochs; the upload runs beside the training. It is
shown against an epoch of ImageNet's size at the speed that was measured in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from training_speed import BATCH, IMAGES, SPEC, THREADS, make_photos

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.trials import EpochRecord, Training
from soupray.data.cache import open_data
from soupray.spec.space import Space
from soupray.spec.sweep_spec import parse
from soupray.store.objects import open_store
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.resume import Resumer
from soupray.training.start import Start

ROUNDS, EPOCH = 4, 1_255_000
"""ImageNet's train set, less 26 held out of each class."""


def main() -> None:
    """Epochs with and without an upload beside them, by turns."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder, flat = Path(name, "train"), Path(name, "flat")
        flat.mkdir()
        for i, label in enumerate(make_photos(flat, IMAGES + 40, 0)):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            (flat / f"{i}.jpg").rename(folder / str(label) / f"{i}.jpg")
        spec = parse(SPEC.format(folder=folder, batch=BATCH), "speed.yaml")
        data, task = open_data(spec, Path(name, "cache")), task_of(spec.task)
        torch.manual_seed(0)
        space = Space(lr=1e-5, epochs=100, batch_size=BATCH)
        start = Start(
            weights=task.model().state_dict(), seed=0, device="cpu",
            training=Training(precision="bf16"),
        )  # fmt: skip
        loop = Loop(task, data, Hyperparameters(**space.model_dump()), start)
        resumer = Resumer(open_store(f"file://{name}/store"), "trial")
        history = [EpochRecord(epoch=1, train_loss=1, held_out_correct=1, held_out_n=1, seconds=1)]
        alone, beside, stalls = [], [], []
        for number in range(ROUNDS):
            began = time.perf_counter()
            loop.epoch(2 * number + 1)
            alone.append(time.perf_counter() - began)
            began = time.perf_counter()
            resumer.keep(loop.state(), history, 1)
            stalls.append(time.perf_counter() - began)
            began = time.perf_counter()
            loop.epoch(2 * number + 2)
            beside.append(time.perf_counter() - began)
            assert resumer._upload is not None
            resumer._upload.result()
        rate = data.split("train").size / statistics.median(alone)
        stall = statistics.median(stalls)
        slower = max(0.0, statistics.median(b - a for a, b in zip(alone, beside, strict=True)))
        print(f"copy between epochs  {stall:.2f} s")
        print(f"upload beside        {slower:.2f} s longer for the steps meanwhile")
        print(
            f"training             {rate:.1f} images/s; {EPOCH:,} images take {EPOCH / rate:,.0f} s"
        )
        print(f"share of such an epoch: {(stall + slower) / (EPOCH / rate):.4%}")
        print(f"both are less than 1 % of an epoch of {100 * (stall + slower) * rate:,.0f} images")


if __name__ == "__main__":
    main()
