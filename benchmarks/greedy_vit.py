"""Throughput of a greedy soup: ViT-B/32 at 224 pixels on JPEG files, 16 fine-tuned copies.

Run as `python benchmarks/greedy_speed.py vit`. What is timed are full models on full images,
through every layer; where they come from is in `vit_pool.py`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from counting import Counting
from vit_pool import BATCH, SETTING, Jpegs, prepare

from soupray.core.candidates import mean_of
from soupray.core.trials import Pool
from soupray.data.cache import Data
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.live_model import predict
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.weights import Mixer
from soupray.recipes.greedy import GREEDY
from soupray.spec.task import OpenClipSpec
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks.open_clip import OpenClipTask

MODELS = 16
KEPT = (2, 3, 6)
"""How many of them the soup is meant to keep; the output says how many it does. Each is a whole
pass."""

FAR_BYTES = 200e6
"""A second, over one network card that all connections share."""


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


class Timed(HeldOutSelection):
    """A selection that knows when the list of ingredients was complete."""

    __slots__ = ("listed",)

    def scores(self, candidates):
        self.listed = time.perf_counter()
        return super().scores(candidates)


def after_the_sweep(checkpoints: Checkpoints, pool: Pool) -> Checkpoints:
    """What a sweep leaves on its node: weights in the cache, logits in the store, no evaluation."""
    fresh = Checkpoints(open_store("memory://"), checkpoints._cache)
    for i in pool.ingredients:
        path = layout.blob(i.logits.sha256)
        fresh.store.put(path, checkpoints.store.get(path))
    return fresh


def engine(task, data: Data, fresh: Checkpoints, pool: Pool, cascade: bool):
    """(kept, counts, seconds to the list, seconds in all): ours, remembering nothing.

    In all: with the float32 logits of the soup, which the leaderboard needs, not the plain list.
    """
    started = time.perf_counter()
    workers = Counting(LocalWorkers(task, data, fresh, SETTING))
    cache = EvaluationCache(fresh, SETTING, data.split("train"))
    cache.add(pool.ingredients)
    evaluator = StoredEvaluator(Site(workers, cache, SETTING))
    splits = [data.split("held_out"), data.split("train")]
    selection = Timed(evaluator, pool, splits, cascade=cascade)
    (outcome,) = GREEDY.run(selection)
    ended = time.perf_counter()
    return list(outcome.candidate.checkpoints), workers, selection.listed - started, ended - started


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


def vit_b_32() -> OpenClipTask:
    """The network."""
    return OpenClipTask(
        OpenClipSpec(
            kind="open_clip", model="ViT-B-32", classes=tuple("abcdefghij"), templates=("{}",)
        )
    )


def far(folder: Path, rounds: int) -> None:
    """A node that has no weights yet, and a store that gives it FAR_BYTES a second."""
    task = vit_b_32()
    _, data, _, pool = prepare(task, folder)
    pool = keeping(pool, [], 0)
    link = threading.Lock()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    lists = set()
    for number in range(rounds):
        for ahead in sorted(seconds, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory(dir=folder) as node:
                weights = Path(node) / "store" / "weights"
                weights.mkdir(parents=True)
                for sha in [*pool.checkpoints, *(i.logits.sha256 for i in pool.ingredients)]:
                    name = f"{sha}.safetensors"
                    os.link(folder / "store" / "weights" / name, weights / name)
                store = open_store(f"file://{node}/store")
                get_range = store.get_range

                def slow(path, start, length, get_range=get_range):
                    with link:
                        time.sleep(length / FAR_BYTES)
                    return get_range(path, start, length)

                store.get_range = slow
                fresh = Checkpoints(store, Path(node) / "weights")
                if not ahead:
                    fresh.expect = lambda digests: None
                kept, _, listed, _ = engine(task, data, fresh, pool, cascade=True)
                seconds[ahead].append(listed)
                lists.add(tuple(kept))
                print(f"ahead: {ahead!s:<5} {listed:6.1f} s, {len(kept)} kept", flush=True)
    assert len(lists) == 1, lists
    one, two = (statistics.median(found) for found in seconds.values())
    print(f"medians: {one:.1f} s, fetched ahead {two:.1f} s: {one / two:.2f} x")


def keeping(pool: Pool, all_kept: list[str], wanted: int) -> Pool:
    """MODELS of `pool`, without what its greedy soup `all_kept` took after the first `wanted`."""
    left_out = set(all_kept[wanted:])
    others = [i for i in pool.ingredients if i.checkpoint.sha256 not in left_out]
    return msgspec.structs.replace(pool, ingredients=tuple(others[:MODELS]))


def vit(folder: Path, rounds: int) -> None:
    """Both procedures by turns, on pools of which more and more models are kept."""
    task = vit_b_32()
    jpegs, data, checkpoints, pool = prepare(task, folder)
    files = {sha: folder / "pt" / f"{sha}.pt" for sha in pool.checkpoints}
    parts(task, data, jpegs, checkpoints, pool, files)
    all_kept, *_ = engine(task, data, after_the_sweep(checkpoints, pool), pool, cascade=True)
    for wanted in KEPT:
        compare(keeping(pool, all_kept, wanted), rounds, task, (data, jpegs), checkpoints, files)


def compare(pool: Pool, rounds: int, task: OpenClipTask, images, checkpoints, files) -> None:
    """Both procedures by turns."""
    data, jpegs = images
    counts = [i.held_out.correct for i in pool.ingredients]
    print(f"{len(counts)} models, {len(jpegs)} images, held-out counts {counts}")
    everything = (len(counts) - 1) * len(jpegs)
    ratios: dict[str, list[float]] = {}
    for number in range(rounds):
        expected, slow = plain(task, jpegs, files, pool)
        print(f"round {number + 1}: plain {slow:.1f} s, {len(expected)} kept", flush=True)
        for label, cascade in (("float32, early rejection", False), ("cascade", True)):
            fresh = after_the_sweep(checkpoints, pool)
            kept, ran, listed, fast = engine(task, data, fresh, pool, cascade)
            ratios.setdefault(label, []).append(slow / listed)
            print(
                f"  {label}: {listed:.1f} s, {slow / listed:.1f} x, same list: {kept == expected}; "
                f"{ran.low / everything:.0%} in bfloat16, {ran.high / everything:.0%} in float32; "
                f"with the soup's logits {fast:.1f} s",
                flush=True,
            )
    for label, found in ratios.items():
        print(f"{label}: median {statistics.median(found):.1f} x")
