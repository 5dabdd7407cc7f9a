"""A world of linear models, small enough to work out by hand and real in everything else.

The model is logits = W x with x of four pixels: linear in its weights, so that averaging weights
and averaging logits are the same. Store, checkpoints, evaluator and recipes are the real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import torch
from shared import trial

from soupray.core.candidates import mean_of
from soupray.core.records import Basis, Ingredient, Pool, Setting, Split, digest, encode, pool_of
from soupray.data.cache import Data
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.soup.session import Session
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store

SIDE, CLASSES = 2, 3
SIZES = {"train": 60, "held_out": 90, "test": 70, "far": 70}
ROLES = {"train": "train", "held_out": "held_out", "test": "test", "far": "shift"}


class Linear(torch.nn.Module):
    """features are the pixels; logits = W x."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Identity()])
        self.head = torch.nn.Linear(SIDE * SIDE, CLASSES, bias=False)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs))


class LinearTask:
    def model(self) -> torch.nn.Module:
        return Linear()

    def init(self) -> dict[str, torch.Tensor]:
        return {"head.weight": truth() * 0.3}

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.to(torch.float32) / 255 - 0.5


def truth() -> torch.Tensor:
    """[C, 4]: what the labels follow."""
    return torch.randn(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(1))


def make_data(folder: Path) -> Data:
    """Random pixels, labelled by the truth with noise; `far` is darker."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(2)
    splits = []
    for name, size in SIZES.items():
        pixels = torch.randint(0, 256, (size, 1, SIDE, SIDE), generator=generator)
        noise = torch.randn(size, CLASSES, generator=generator)
        x = pixels.flatten(1).float() / 255 - 0.5
        labels = (x @ truth().T + 0.3 * noise).argmax(1)
        if name == "far":
            pixels = pixels // 3
        np.save(folder / f"{name}.images.npy", pixels.to(torch.uint8).numpy())
        np.save(folder / f"{name}.labels.npy", labels.numpy())
        splits.append(
            Split(name=name, role=ROLES[name], digest=digest(name), size=size, classes=CLASSES)
        )
    (folder / "splits.json").write_bytes(encode(splits))
    return Data(folder)


class Toy(NamedTuple):
    """Everything around one pool."""

    task: LinearTask
    data: Data
    checkpoints: Checkpoints
    basis: Basis
    pool: Pool
    workers: LocalWorkers
    evaluator: StoredEvaluator
    setting: Setting

    def session(self) -> Session:
        """A session over this world, without services and store."""
        return Session(None, None, self.pool, self.basis, (), self.evaluator, {})

    def selection(self, *, cascade: bool = False) -> HeldOutSelection:
        splits = [self.basis.split("held_out"), self.basis.split("train")]
        return HeldOutSelection(self.evaluator, self.pool, splits, cascade=cascade)

    def weights(self, candidate) -> dict[str, torch.Tensor]:
        """As saved and read back."""
        return self.checkpoints.load(self.evaluator.save(candidate).sha256)


def toy(
    folder: Path,
    models: list[torch.Tensor] | int = 6,
    batch_size: int = 8,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Toy:
    """A pool of `models` [C, 4] each, or of so many noisy copies of the truth."""
    if isinstance(models, int):
        generator = torch.Generator().manual_seed(3)
        shape = (CLASSES, SIDE * SIDE)
        models = [truth() + 0.6 * torch.randn(shape, generator=generator) for _ in range(models)]
    setting = Setting(batch_size=batch_size, precision=precision)
    task, data = LinearTask(), make_data(folder / "data")
    checkpoints = Checkpoints(open_store("memory://"), folder / "weights")
    init = checkpoints.save(task.init(), {"init": "toy"})
    basis = Basis(key="toy", splits=data.splits, init=init, anchor=init)
    workers = LocalWorkers(task, data, checkpoints, setting)
    evaluator = StoredEvaluator(Site(workers, workers.cache, setting))
    ingredients = [
        _ingredient(f"t{i}", weights, basis, (workers, checkpoints, setting))
        for i, weights in enumerate(models)
    ]
    pool = pool_of(basis, ingredients)
    return Toy(task, data, checkpoints, basis, pool, workers, evaluator, setting)


def _ingredient(
    key: str, weights: torch.Tensor, basis: Basis, world: tuple[LocalWorkers, Checkpoints, Setting]
) -> Ingredient:
    workers, checkpoints, setting = world
    ref = checkpoints.save({"head.weight": weights}, {"init": "toy"})
    held_out = basis.split("held_out")
    workers.evaluate([mean_of([ref.sha256])], [held_out])
    evaluation = workers.cache.find(mean_of([ref.sha256]), held_out)
    return Ingredient(
        trial=msgspec.structs.replace(
            trial(key), hparams={"lr": hash(key) % 100 / 100}, setting=setting
        ),
        checkpoint=ref,
        tensors={},
        init=basis.init.sha256,
        best_epoch=1,
        history=(),
        held_out=evaluation.scores,
        logits=evaluation.logits,
        made_with={},
        started=0.0,
        finished=1.0,
    )
