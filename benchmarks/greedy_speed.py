"""The greedy soup against the plain procedure.

    python benchmarks/greedy_speed.py pools HOME SPEC...    # decisions and samples, on real pools
    python benchmarks/greedy_speed.py vit [FOLDER]          # throughput, ViT-B/32 at 224 on JPEGs
    python benchmarks/greedy_speed.py far FOLDER            # the best 16 of vit's FOLDER, far away

Plain: for one candidate after another, load every checkpoint of it with torch.load, average,
decode the images through a DataLoader, forward in float32 over the whole held-out set.

`pools` repeats the greedy soup of sweeps that are in the store of HOME, without what is remembered:
the ingredient list must be that of the plain procedure; it prints the share of samples that were
run, in bfloat16 and again in float32, and in the same unit (held-out samples of the plain
procedure) the training samples for BatchNorm statistics, which each candidate needs before its
first sample: of the plain procedure, of ours in float32, of ours in the cascade. `vit` times both
procedures end to end in one process, by turns, and what each part contributes; FOLDER keeps its
pool for another time. `far` times ours on a node without weights, the next checkpoints fetched
ahead and not, by turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from counting import Counting, statistics_counted

from soupray.core.candidates import mean_of
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.evaluation.selection import HeldOutSelection
from soupray.recipes.greedy import GREEDY
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store

THREADS, ROUNDS = 2, 3


def forgetful(checkpoints: Checkpoints, folder: Path) -> Checkpoints:
    """The weights of a store, without what was found out about them."""
    copy = open_store("memory://")
    for path in checkpoints.store.list("weights"):
        copy.put(path, checkpoints.store.get(path))
    return Checkpoints(copy, folder)


def engine(world, setting, pool, splits, cascade: bool):
    """(outcome, workers that counted, seconds) of a greedy soup that remembers nothing."""
    task, data, checkpoints = world
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        checkpoints = forgetful(checkpoints, Path(folder))
        workers = Counting(LocalWorkers(task, data, checkpoints, setting))
        cache = EvaluationCache(checkpoints, setting, splits[1])
        cache.add(pool.ingredients)
        evaluator = StoredEvaluator(Site(workers, cache, setting))
        selection = HeldOutSelection(evaluator, pool, splits, cascade=cascade)
        (outcome,) = GREEDY.run(selection)
        return outcome, workers, time.perf_counter() - started


def pools(home: Path, specs: list[Path]) -> None:
    """Decisions and samples on the pools of real sweeps."""
    from soupray.services.place import start_services
    from soupray.soup.session import find_pool
    from soupray.spec.sweep_spec import load
    from soupray.training.worker import worker_context

    print(
        "pool            K  kept  same list   fp32, early   cascade: bf16 + fp32 again   "
        "BatchNorm: plain, early, cascade"
    )
    for path in specs:
        spec = load(path)
        place = start_services(spec, home).place
        pool, basis = find_pool(place.open_store(), spec, partial=False)
        splits = [basis.split("held_out"), basis.split("train")]
        here = worker_context(spec, place)
        parts = (here.task, here.data, here.checkpoints)
        all_samples = (len(pool.ingredients) - 1) * splits[0].size
        kept, estimated = plain_decisions(parts, spec.setting, pool, splits[0])
        early, counted, _ = engine(parts, spec.setting, pool, splits, cascade=False)
        cascade, both, _ = engine(parts, spec.setting, pool, splits, cascade=True)
        same = early.candidate == cascade.candidate == mean_of(kept)
        print(
            f"{spec.name:<14} {len(pool.ingredients):>2}  {len(kept):>4}  {same!s:<9}   "
            f"{counted.high / all_samples:>10.0%}   {both.low / all_samples:>12.0%} + "
            f"{both.high / all_samples:<14.0%}"
            + ", ".join(
                f"{count / all_samples:.0%}"
                for count in (estimated, counted.statistics, both.statistics)
            )
        )
        assert same, (kept, early.candidate, cascade.candidate)


def plain_decisions(world, setting, pool, split) -> tuple[list[str], int]:
    """Greedy, in float32 over everything, written as plainly as it goes.

    (What it kept, training samples for BatchNorm statistics.)
    """
    task, data, checkpoints = world
    _, labels = data.samples(split)
    with tempfile.TemporaryDirectory() as folder, statistics_counted() as estimates:
        workers = LocalWorkers(task, data, forgetful(checkpoints, Path(folder)), setting)
        names = pool.checkpoints
        kept, best = [names[0]], pool.ingredients[0].held_out.correct
        for name in names[1:]:
            logits = workers.predictions(mean_of([*kept, name]), split).logits
            correct = int((logits.argmax(axis=1) == labels).sum())
            if correct >= best:
                kept, best = [*kept, name], correct
    return kept, sum(estimates)


def main() -> None:
    """Parse and run."""
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["pools"]:
        pools(Path(sys.argv[2]).resolve(), [Path(p) for p in sys.argv[3:]])
    elif sys.argv[1:2] == ["vit"]:
        from greedy_vit import vit

        with tempfile.TemporaryDirectory() as passing:
            vit(Path(sys.argv[2] if sys.argv[2:] else passing).resolve(), ROUNDS)
    elif sys.argv[1:2] == ["far"] and sys.argv[2:]:
        from greedy_vit import far

        far(Path(sys.argv[2]).resolve(), ROUNDS)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
