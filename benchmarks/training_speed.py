"""Fine-tuning ViT-B/32 at 224 pixels from a folder of JPEGs: images a second.

    python benchmarks/training_speed.py

Three ways by turns, the same batches, one process. Plain: what the published scripts do, a
DataLoader that decodes files with PIL, float32, AdamW. Ours: `soupray.training.loop` with
`training: {precision: bf16}`, from the decoded cache. Bare: a bfloat16 loop with a fused AdamW over
inputs that lie in memory, ready: as fast as the model itself goes. The rest shows the parts of the
difference alone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from vit_pool import make_photos

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.ports import Task
from soupray.core.trials import Training
from soupray.data.cache import Data, open_data
from soupray.spec.space import Space
from soupray.spec.sweep_spec import parse
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.start import Start

IMAGES, BATCH, ROUNDS, THREADS = 128, 64, 3, 2

SPEC = """
name: speed
task:
  kind: open_clip
  model: ViT-B-32
  pretrained: none
  classes: [a, b, c, d, e, f, g, h, i, j]
  templates: ["{{}}"]
data: {{kind: folder, train: {folder}, test: 20, held_out: 20, size: 224, train_size: 224,
       overlap: drop}}
search: {{trials: 1, space: {{lr: 1e-5, epochs: 1, batch_size: {batch}}}}}
storage: file:///tmp/none
tracking: off
recipes: {{}}
"""


def plain(task: Task, folder: Path, weights: dict, precision: str = "fp32") -> float:
    """Images a second of the published procedure."""
    import torchvision

    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(224, Image.Resampling.BICUBIC),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder, transform)
    images = torch.utils.data.Subset(images, range(IMAGES))
    loader = torch.utils.data.DataLoader(images, BATCH, num_workers=2, shuffle=True)
    model = task.model()
    model.load_state_dict(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    began = time.perf_counter()
    for inputs, labels in loader:
        step(model, optimizer, inputs, labels, precision)
    return IMAGES / (time.perf_counter() - began)


def step(model, optimizer, inputs, labels, precision: str) -> None:
    """One of the optimizer's."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def in_memory(task: Task, data: Data, weights: dict, precision: str, fused: bool) -> float:
    """Images a second of a loop over inputs that are ready."""
    images, labels = data.samples(data.split("train"))
    inputs = task.inputs(torch.from_numpy(np.array(images[:IMAGES])))
    wanted = torch.from_numpy(np.array(labels[:IMAGES]))
    model = task.model()
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=fused)
    began = time.perf_counter()
    for at in range(0, IMAGES, BATCH):
        step(model, optimizer, inputs[at : at + BATCH], wanted[at : at + BATCH], precision)
    return IMAGES / (time.perf_counter() - began)


def ours(task: Task, data: Data, weights: dict, precision: str) -> float:
    """Images a second of an epoch of soupray's loop."""
    space = Space(lr=1e-5, epochs=1, batch_size=BATCH)
    start = Start(weights=weights, seed=0, device="cpu", training=Training(precision=precision))
    loop = Loop(task, data, Hyperparameters(**space.model_dump()), start)
    began = time.perf_counter()
    loop.epoch(1)
    return data.split("train").size / (time.perf_counter() - began)


def main() -> None:
    """By turns."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder, flat = Path(name, "train"), Path(name, "flat")
        flat.mkdir()
        labels = make_photos(flat, IMAGES + 40, 0)
        for i, label in enumerate(labels):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            (flat / f"{i}.jpg").rename(folder / str(label) / f"{i}.jpg")
        spec = parse(SPEC.format(folder=folder, batch=BATCH), "speed.yaml")
        data, task = open_data(spec, Path(name, "cache")), task_of(spec.task)
        torch.manual_seed(0)
        weights = task.model().state_dict()
        ways: dict[str, Callable[[], float]] = {
            "plain: decoding, float32": lambda: plain(task, folder, weights),
            "plain, bfloat16": lambda: plain(task, folder, weights, "bf16"),
            "in memory, float32": lambda: in_memory(task, data, weights, "fp32", False),
            "in memory, bfloat16": lambda: in_memory(task, data, weights, "bf16", False),
            "bare: in memory, bfloat16, fused": lambda: in_memory(
                task, data, weights, "bf16", True
            ),
            "ours: cache, bfloat16, fused": lambda: ours(task, data, weights, "bf16"),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                found[way].append(run())
        for way, rates in found.items():
            print(f"{way:<34} {statistics.median(rates):6.2f} images/s")
        mine = found["ours: cache, bfloat16, fused"]
        for other in ("plain: decoding, float32", "bare: in memory, bfloat16, fused"):
            ratios = [a / b for a, b in zip(mine, found[other], strict=True)]
            print(f"ours / {other.split(':')[0]}: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
