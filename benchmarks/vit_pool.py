"""A pool of ViT-B/32 that are really trained, on JPEG files, for `greedy_vit.py`.

No weights can be downloaded where this was written, so open_clip's ViT-B-32 starts as initialised.
Its last two blocks and its head are trained on ten regions of scikit-learn's two photographs,
cropped, turned, recoloured and degraded at random; from there 28 short trainings with other
learning rates, decays, smoothing and seeds branch, as trials do. How many of them a greedy soup
keeps is up to the processor: trainings from one start drift apart by its rounding.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from soupray.core.candidates import mean_of
from soupray.core.records import CheckpointRef, Setting, Split, decode, encode
from soupray.core.trials import Ingredient, Pool, Trial
from soupray.data.cache import Data
from soupray.evaluation.local import LocalWorkers
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks.open_clip import OpenClipTask

TRAINED, HELD_OUT, TRAIN, BATCH, CLASSES = 28, 400, 800, 16, 10
TAME = 20
"""Trainings whose learning rate is about right; that of the others is too high."""

TRAINED_BLOCKS = 2
SETTING = Setting(batch_size=BATCH, threads=2)


def make_photos(folder: Path, count: int, seed: int) -> list[int]:
    """`count` JPEG files of 256 pixels, and their classes."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(a) for a in load_sample_images().images]
    g = np.random.default_rng(seed)
    labels = []
    for i in range(count):
        label = int(g.integers(CLASSES))
        photo = photos[label % 2]
        x, y = 70 * (label // 2) + int(g.integers(60)), 60 + int(g.integers(60))
        crop = photo.crop((x, y, x + 256, y + 256)).rotate(float(g.uniform(-12, 12)))
        crop = ImageEnhance.Brightness(crop).enhance(float(g.uniform(0.6, 1.4)))
        crop = ImageEnhance.Color(crop).enhance(float(g.uniform(0.3, 1.7)))
        side = int(g.integers(12, 64))  # some are hard to tell
        crop = crop.resize((side, side)).resize((256, 256))
        crop.save(folder / f"{i}.jpg", quality=92)
        labels.append(label)
    return labels


class Jpegs(torch.utils.data.Dataset):
    """What a script reads: files, decoded, cut to 224, as uint8."""

    def __init__(self, folder: Path, labels: list[int]) -> None:
        self._folder, self._labels = folder, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self._folder / f"{i}.jpg").convert("RGB")
        image = image.resize((224, 224), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self._labels[i]


def make_data(jpegs: Jpegs, train: Jpegs, folder: Path) -> Data:
    """The decoded cache: made once a node, when a sweep starts."""
    splits = []
    for name, role, part in (("held_out", "held_out", jpegs), ("train", "train", train)):
        images = np.stack([part[i][0].numpy() for i in range(len(part))])
        labels = np.array([part[i][1] for i in range(len(part))])
        np.save(folder / f"{name}.images.npy", images)
        np.save(folder / f"{name}.labels.npy", labels)
        splits.append(
            Split(
                name=name,
                role=role,
                digest=hashlib.sha256(images.tobytes()).hexdigest(),
                size=len(labels),
                classes=CLASSES,
            )
        )
    (folder / "splits.json").write_bytes(encode(splits))
    return Data(folder)


class Tail:
    """The layers that are trained, on what the layers before them make of the images."""

    def __init__(self, model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> None:
        self.model, self.tokens, self.labels = model, tokens, labels
        self.blocks = model.visual.transformer.resblocks[-TRAINED_BLOCKS:]
        model.requires_grad_(False)
        for part in (self.blocks, model.visual.ln_post, model.head):
            part.requires_grad_(True)
        model.visual.proj.requires_grad_(True)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        pooled, _ = self.model.visual._pool(tokens)
        features = torch.nn.functional.normalize(pooled @ self.model.visual.proj, dim=-1)
        return self.model.head(features)

    def train(self, start: dict, seed: int, lr: float, decay: float, smoothing: float, epochs: int):
        """The weights after a training from `start`."""
        self.model.load_state_dict(start)
        generator = torch.Generator().manual_seed(seed)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=decay, fused=True)
        steps = epochs * -(-len(self.labels) // 48)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
        for _ in range(epochs):
            for rows in torch.randperm(len(self.labels), generator=generator).split(48):
                with torch.autocast("cpu", torch.bfloat16):
                    logits = self.logits(self.tokens[rows])
                loss = torch.nn.functional.cross_entropy(
                    logits.float(), self.labels[rows], label_smoothing=smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return {n: t.detach().clone() for n, t in self.model.state_dict().items()}


@torch.inference_mode()
def tokens_of(model: torch.nn.Module, task: OpenClipTask, images: np.ndarray) -> torch.Tensor:
    """[N, 50, 768]: what goes into the trained blocks."""
    found = []
    hook = model.visual.transformer.resblocks[-TRAINED_BLOCKS].register_forward_pre_hook(
        lambda module, inputs: found.append(inputs[0].clone())
    )
    for part in np.array_split(images, -(-len(images) // BATCH)):
        model(task.inputs(torch.from_numpy(np.array(part))).bfloat16())
    hook.remove()
    return torch.cat(found).float()


def make_pool(task: OpenClipTask, data: Data, checkpoints: Checkpoints) -> Pool:
    """Short trainings that branch from a common one."""
    torch.manual_seed(0)
    model = task.model()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    images, labels = data.samples(data.split("train"))
    tokens = tokens_of(copy.deepcopy(model).eval().bfloat16(), task, images).clone()
    tail = Tail(model, tokens, torch.from_numpy(np.array(labels)))
    start = {n: t.detach().clone() for n, t in model.state_dict().items()}
    weights = tail.train(start, 0, 5e-4, 0.05, 0.0, 5)
    base = checkpoints.save(weights, {})
    g = np.random.default_rng(1)
    copies = []
    for i in range(TRAINED):
        lr = 10 ** (g.uniform(-4.6, -3.8) if i < TAME else g.uniform(-3.9, -3.6))
        decay, smoothing = 10 ** g.uniform(-3, -0.5), float(g.choice([0, 0.1]))
        copies.append(checkpoints.save(tail.train(weights, i, lr, decay, smoothing, 1), {}))
        print(f"  trained {i + 1} of {TRAINED}", flush=True)
    return _pool(base, copies, LocalWorkers(task, data, checkpoints, SETTING), data)


def _pool(base: CheckpointRef, copies: list[CheckpointRef], workers: LocalWorkers, data: Data):
    held_out, ingredients = data.split("held_out"), []
    for i, ref in enumerate(copies):
        workers.evaluate([mean_of([ref.sha256])], [held_out])
        evaluation = workers.cache.find(mean_of([ref.sha256]), held_out)
        trial = Trial(
            key=f"{i:02d}", index=i, sweep="vit", hparams={}, seed=i, init=base.sha256, data=(),
            code="", setting=SETTING,
        )  # fmt: skip
        ingredients.append(
            Ingredient(
                trial=trial,
                checkpoint=ref,
                tensors={},
                init=base.sha256,
                best_epoch=1,
                history=(),
                held_out=evaluation.scores,
                logits=evaluation.logits,
                made_with={},
                started=0.0,
                finished=0.0,
            )
        )
    ranked = sorted(ingredients, key=lambda i: (-i.held_out.correct, i.trial.key))
    return Pool(init=base, anchor=base, ingredients=tuple(ranked))


def prepare(task: OpenClipTask, folder: Path):
    """Images, data, weights and the pool; made only if they are not there."""
    made = (folder / "pool.json").exists()
    for sub in ("jpeg", "train", "data", "weights", "pt"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    jpegs = Jpegs(folder / "jpeg", make_photos(folder / "jpeg", HELD_OUT, 0))
    checkpoints = Checkpoints(open_store(f"file://{folder}/store"), folder / "weights")
    if made:
        pool = decode((folder / "pool.json").read_bytes(), Pool)
        data = Data(folder / "data")
        images, labels = data.samples(data.split("held_out"))
        same = (
            len(pool.ingredients) == TRAINED
            and len(labels) == len(jpegs)
            and all(
                labels[i] == label and np.array_equal(images[i], image)
                for i, (image, label) in enumerate(jpegs[k] for k in range(len(jpegs)))
            )
        )
        assert same, f"{folder} holds a pool of other images: choose another folder"
        return jpegs, data, checkpoints, pool
    train = Jpegs(folder / "train", make_photos(folder / "train", TRAIN, 1))
    data = make_data(jpegs, train, folder / "data")
    pool = make_pool(task, data, checkpoints)
    for sha in pool.checkpoints:
        torch.save(checkpoints.load(sha), folder / "pt" / f"{sha}.pt")
    (folder / "pool.json").write_bytes(encode(pool))
    return jpegs, data, checkpoints, pool
