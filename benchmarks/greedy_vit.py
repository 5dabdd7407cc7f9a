"""Throughput of a greedy soup: ViT-B/32 at 224 pixels on JPEG files, 16 perturbed copies.

Run as `python benchmarks/greedy_speed.py vit`. No weights can be downloaded where this was written,
so the model is open_clip's ViT-B-32 as initialised, with a linear head fitted to the classes: ten
regions of scikit-learn's two photographs, cropped, turned and recoloured at random. What a forward
pass costs does not depend on the weights; how many samples must be run does, and is measured on
real pools by `pools`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image, ImageEnhance

from soupray.candidates import mean_of
from soupray.checkpoints import Checkpoints
from soupray.data.cache import Data
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.network import predict
from soupray.evaluation.schedule import hardest_first
from soupray.evaluation.selection import HeldOut
from soupray.evaluation.shelf import Shelf
from soupray.maths.weights import Mixer
from soupray.recipes.greedy import greedy
from soupray.records import (
    CheckpointRef,
    Ingredient,
    Pool,
    Setting,
    Split,
    Trial,
    digest,
    encode,
)
from soupray.storage import open_store
from soupray.subject import OpenClipSpec
from soupray.tasks.image import OpenClipTask

MODELS, HELD_OUT, BATCH, CLASSES = 16, 160, 16, 10
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
            Split(name=name, role=role, digest=digest(name), size=len(labels), classes=CLASSES)
        )
    (folder / "splits.json").write_bytes(encode(splits))
    return Data(folder)


def make_pool(task: OpenClipTask, data: Data, checkpoints: Checkpoints) -> Pool:
    """A fitted head, and copies of everything with noise of two to five per cent."""
    torch.manual_seed(0)
    model = task.model()
    images, labels = data.samples(data.split("train"))
    _, features = predict(model, task, images, SETTING)
    mean = features.mean(axis=0)
    centred = features - mean
    scatter = centred.T @ centred
    ridge = scatter + 1e-2 * np.trace(scatter) / len(mean) * np.eye(len(mean))
    head = np.linalg.solve(ridge, centred.T @ (np.eye(CLASSES)[labels] - 1 / CLASSES)).T
    head -= np.outer(head @ mean, mean) / (mean @ mean)  # there is no bias to take it up
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    weights["head.weight"] = torch.from_numpy(head * 10).float()
    base = checkpoints.save(weights, {})
    generator = torch.Generator().manual_seed(1)
    copies = []
    for i in range(MODELS):
        share = 0.02 + 0.03 * i / MODELS
        copy = {
            n: t + share * t.std() * torch.randn(t.shape, generator=generator)
            if t.is_floating_point() and t.numel() > 1
            else t
            for n, t in weights.items()
        }
        copies.append(checkpoints.save(copy, {}))
    return _pool(base, copies, LocalWorkers(task, data, checkpoints, SETTING), data)


def _pool(base: CheckpointRef, copies: list[CheckpointRef], workers: LocalWorkers, data: Data):
    held_out, ingredients = data.split("held_out"), []
    for i, ref in enumerate(copies):
        workers.evaluate([mean_of([ref.sha256])], [held_out])
        evaluation = workers.shelf.find(mean_of([ref.sha256]), held_out)
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


def plain(task: OpenClipTask, jpegs: Jpegs, files: dict[str, Path], pool: Pool):
    """(kept, seconds): the published procedure."""
    started = time.perf_counter()
    model = task.model().eval()
    names = pool.checkpoints
    kept, best = [names[0]], pool.ingredients[0].held_out.correct
    for name in names[1:]:
        states = [torch.load(files[n], weights_only=True) for n in [*kept, name]]
        model.load_state_dict({k: sum(s[k] for s in states) / len(states) for k in states[0]})
        correct = 0
        with torch.inference_mode():
            loader = torch.utils.data.DataLoader(jpegs, batch_size=BATCH, num_workers=2)
            for images, labels in loader:
                correct += int((model(task.inputs(images)).argmax(1) == labels).sum())
        if correct >= best:
            kept, best = [*kept, name], correct
    return kept, time.perf_counter() - started


def engine(task, data: Data, checkpoints: Checkpoints, pool: Pool, cascade: bool):
    """(kept, seconds): ours, in one process, remembering nothing from before."""
    started = time.perf_counter()
    setting = msgspec.structs.replace(SETTING)
    fresh = Checkpoints(open_store("memory://"), checkpoints._cache)
    workers = LocalWorkers(task, data, fresh, setting)
    shelf = Shelf(fresh, setting, data.split("train"))
    shelf.add(pool.ingredients)
    evaluator = StoredEvaluator(Site(workers, shelf, setting))
    splits = [data.split("held_out"), data.split("train")]
    (outcome,) = greedy(HeldOut(evaluator, pool, splits, cascade=cascade), ())
    return list(outcome.candidate.checkpoints), time.perf_counter() - started


def parts(task, data: Data, jpegs: Jpegs, checkpoints: Checkpoints, pool: Pool, files) -> None:
    """What each part costs, once."""
    images, _ = data.samples(data.split("held_out"))

    def seconds(work) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    loader = torch.utils.data.DataLoader(jpegs, batch_size=BATCH, num_workers=2)
    n, four = len(jpegs), pool.checkpoints[:4]
    print(f"  decode {n} JPEGs, 2 processes        {seconds(lambda: list(loader)):7.2f} s")
    print(f"  read them from the cache            {seconds(lambda: np.array(images)):7.2f} s")
    loading = seconds(lambda: [torch.load(files[s], weights_only=True) for s in four])
    print(f"  torch.load of 4 checkpoints         {loading:7.2f} s")
    mixer = Mixer(checkpoints.open)
    list(mixer.tensors(mean_of(four)))
    grown = seconds(lambda: list(mixer.tensors(mean_of([*four[:3], pool.checkpoints[5]]))))
    print(f"  exact mean of 4, three summed before{grown:7.2f} s")
    model = task.model().eval()
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        predict(model, task, images[:BATCH], SETTING)
        took = seconds(lambda: predict(model, task, images[: 4 * BATCH], SETTING))
        print(f"  forward, {str(dtype)[6:]:<9}            {4 * BATCH / took:10.1f} images/s")


def vit(rounds: int) -> None:
    """Both procedures by turns."""
    spec = OpenClipSpec(
        kind="open_clip", model="ViT-B-32", classes=tuple("abcdefghij"), templates=("{}",)
    )
    task = OpenClipTask(spec)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sub in ("jpeg", "train", "data", "weights", "pt"):
            (folder / sub).mkdir()
        jpegs = Jpegs(folder / "jpeg", make_photos(folder / "jpeg", HELD_OUT, 0))
        train = Jpegs(folder / "train", make_photos(folder / "train", HELD_OUT, 1))
        data = make_data(jpegs, train, folder / "data")
        checkpoints = Checkpoints(open_store(f"file://{folder}/store"), folder / "weights")
        pool = make_pool(task, data, checkpoints)
        order = hardest_first([i.held_out.right_mask() for i in pool.ingredients])
        files = {}
        for sha in pool.checkpoints:
            files[sha] = folder / "pt" / f"{sha}.pt"
            torch.save(checkpoints.load(sha), files[sha])
        counts = [i.held_out.correct for i in pool.ingredients]
        print(f"{MODELS} models, {len(order)} images, held-out counts {counts}")
        parts(task, data, jpegs, checkpoints, pool, files)
        ratios = {"float32, early rejection": [], "cascade": []}
        for number in range(rounds):
            expected, slow = plain(task, jpegs, files, pool)
            print(f"round {number + 1}: plain {slow:.1f} s, {len(expected)} kept", flush=True)
            for label, cascade in (("float32, early rejection", False), ("cascade", True)):
                kept, fast = engine(task, data, checkpoints, pool, cascade)
                ratios[label].append(slow / fast)
                same = kept == expected
                print(
                    f"  {label}: {fast:.1f} s, {slow / fast:.1f} x, same list: {same}", flush=True
                )
        for label, found in ratios.items():
            print(f"{label}: median {statistics.median(found):.1f} x")
