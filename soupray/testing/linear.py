"""A world of linear models, small enough to work out by hand and real in everything else.

The model is logits = W x with x of four pixels: linear in its weights, so that averaging weights
and averaging logits are the same. Store, checkpoints, evaluator and recipes are the real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from msgspec import UNSET, UnsetType, structs

from soupray.core.candidates import WeightCandidate, mean_of
from soupray.core.ports import Task
from soupray.core.records import Basis, Metric, Objective, Role, Setting, Split, digest, encode
from soupray.core.trials import Ingredient, Pool, Trial, pool_of
from soupray.data.cache import Data
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store

SIDE, CLASSES, EMBEDDINGS = 2, 3, 8
SIZES = {"train": 60, "held_out": 90, "test": 70, "far": 70}
ROLES: dict[str, Role] = {"train": "train", "held_out": "held_out", "test": "test", "far": "shift"}
DIM = "proxy.dim"


class Linear(torch.nn.Module):
    """features are the pixels; logits = W x."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Identity()])
        self.head = torch.nn.Linear(SIDE * SIDE, outputs, bias=False)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the pixels, [N, 4]."""
        return inputs.flatten(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, [N, C]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class LinearTask:
    """As much of a `core.ports.Task` as an evaluation uses."""

    def __init__(self, objective: Objective | UnsetType = UNSET) -> None:
        self._objective = objective

    def model(self) -> torch.nn.Module:
        """Return a new model."""
        return Linear(len(truth(self._objective)))

    def init(self) -> dict[str, torch.Tensor]:
        """Return theta_0: a smaller truth."""
        return {"head.weight": truth(self._objective) * 0.3}

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Return uint8 [N, 1, 2, 2] as floats around 0."""
        return samples.to(torch.float32) / 255 - 0.5


def truth(objective: Objective | UnsetType = UNSET) -> torch.Tensor:
    """Return [C, 4]: what the labels follow. Of retrieval both embeddings are pixels, turned.

    Args:
        objective: what the outputs are; unset: one class.
    """
    generator = torch.Generator().manual_seed(1)
    if objective is not UNSET and objective.kind == "retrieval":
        turned = torch.linalg.qr(torch.randn(SIDE * SIDE, EMBEDDINGS // 2, generator=generator))[0]
        return torch.cat([turned, turned])
    return torch.randn(CLASSES, SIDE * SIDE, generator=generator)


def make_data(
    folder: Path,
    objective: Objective | UnsetType = UNSET,
    metric: tuple[str, str] | UnsetType = UNSET,
) -> Data:
    """Return random pixels, labelled by the truth with noise; `far` is darker.

    So is the proxy shift `dim`, but less: a copy of the held-out data.

    Args:
        folder: where they are written.
        objective: what the targets are. Unset: the class of the largest output. multi_label: the
            classes whose outputs are above 0. Segmentation: the same, as pixels. Regression: the
            outputs themselves. Retrieval: the document of a sample is the sample itself.
        metric: name and digest of the code of a metric of the user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(2)
    splits = []
    for name, size in SIZES.items():
        pixels = torch.randint(0, 256, (size, 1, SIDE, SIDE), generator=generator)
        noise = torch.randn(size, CLASSES, generator=generator)
        x = pixels.flatten(1).float() / 255 - 0.5
        outputs = x @ truth().T + 0.3 * noise
        labels = outputs.argmax(1)
        if objective is not UNSET and objective.kind == "retrieval":
            labels = torch.arange(size)[:, None].expand(size, 2)
        elif objective is not UNSET:
            labels = outputs if objective.kind == "regression" else (outputs > 0).to(torch.uint8)
        if name == "far":
            pixels = pixels // 3
        np.save(folder / f"{name}.images.npy", pixels.to(torch.uint8).numpy())
        np.save(folder / f"{name}.labels.npy", labels.numpy())
        splits.append(
            Split(
                name=name,
                role=ROLES[name],
                digest=digest(name),
                size=size,
                classes=1 if objective and objective.kind == "retrieval" else CLASSES,
                objective=objective,
                metric=metric,
            )
        )
    splits.append(_dim(folder, next(s for s in splits if s.role == "held_out")))
    (folder / "splits.json").write_bytes(encode(splits))
    return Data(folder)


def _dim(folder: Path, held_out: Split) -> Split:
    """Write a proxy shift: the held-out data with half of the light."""
    np.save(folder / f"{DIM}.images.npy", np.load(folder / "held_out.images.npy") // 2)
    np.save(folder / f"{DIM}.labels.npy", np.load(folder / "held_out.labels.npy"))
    return structs.replace(held_out, name=DIM, role="proxy", digest=digest(DIM))


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

    def selection(self, *, cascade: bool = False, metric: Metric = "accuracy") -> HeldOutSelection:
        """Return what a recipe gets: the pool and its held-out scores.

        Args:
            cascade: decide in bfloat16 first.
            metric: what recipes choose by.
        """
        splits = self.basis.selection
        return HeldOutSelection(self.evaluator, self.pool, splits, cascade=cascade, metric=metric)

    def weights(self, candidate: WeightCandidate) -> dict[str, torch.Tensor]:
        """Return the weights of a soup, as saved and read back.

        Args:
            candidate: the soup.
        """
        return self.checkpoints.load(self.evaluator.save(candidate).sha256)


def toy(
    folder: Path,
    models: list[torch.Tensor] | int = 6,
    batch_size: int = 8,
    precision: Literal["fp32", "bf16"] = "fp32",
    objective: Objective | UnsetType = UNSET,
    metric: tuple[str, str] | UnsetType = UNSET,
) -> Toy:
    """Return a world with a pool.

    Args:
        folder: for its data.
        models: weights [C, 4] of each; or the number of noisy copies of the truth.
        batch_size: samples of a forward pass.
        precision: of the forward pass.
        objective: what the targets are; unset: one class.
        metric: name and digest of the code of a metric of the user.
    """
    if isinstance(models, int):
        generator = torch.Generator().manual_seed(3)
        true = truth(objective)
        models = [true + 0.6 * torch.randn(true.shape, generator=generator) for _ in range(models)]
    setting = Setting(batch_size=batch_size, precision=precision)
    task, data = LinearTask(objective), make_data(folder / "data", objective, metric)
    checkpoints = Checkpoints(open_store("memory://"), folder / "weights")
    init = checkpoints.save(task.init(), {"init": "toy"})
    basis = Basis(key="toy", splits=data.splits, init=init, anchor=init)
    workers = LocalWorkers(cast(Task, task), data, checkpoints, setting)
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
    assert evaluation is not None
    return Ingredient(
        trial=Trial(
            key=key,
            index=0,
            sweep="linear",
            hparams={"lr": len(key) / 100},
            seed=0,
            init=basis.init.sha256,
            data=(),
            code="1",
            setting=setting,
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
