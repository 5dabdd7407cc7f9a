"""Trials of almost nothing through the real sweep: the driver's memory, overhead, MLflow requests.

A trial has two epochs of one step each on ten images, and is loaded, stored, scored and recorded
as any other: what it takes beyond its epochs is what soupray costs.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.place import Place
from benchmarks.soak.proxy import Told
from benchmarks.soak.servers import Servers
from benchmarks.trial_overhead import WORKERS, overheads
from soupray.core.trials import Ingredient, Manifest
from soupray.store.objects import read_record

EPOCHS = 2
OVERHEAD_S = 0.3
GROWTH_MB = 30.0
"""Of the driver's memory, allowed from a third of the trials to all of them."""


class Noop(NamedTuple):
    """What was measured."""

    trials: int
    seconds: float
    taken: list[float]
    memory: list[tuple[int, float]]
    mlflow: Counter[str]
    problems: list[str]

    @property
    def overhead(self) -> float:
        """Seconds of a worker that a trial takes beyond its epochs: the median, workers warm."""
        return statistics.median(self.taken)

    @property
    def overhead_late(self) -> float:
        """Of the last tenth."""
        return statistics.median(self.taken[-len(self.taken) // 10 :])


def edits(trials: int) -> dict[str, str]:
    """The demo's spec without its work."""
    return {
        "train_per_class: 20": "train_per_class: 1",
        "batch_size: 20": "batch_size: 10",
        "held_out: 500": "held_out: 20",
        "[inverted, rotated, noise, low_contrast, thickened]": "[noise]",
        "trials: 16": f"trials: {trials}",
        "epochs: {integer: [5, 15]}": f"epochs: {EPOCHS}",
    }


class Local(Place):
    """A sweep on a Ray of its own, as a new user's is."""

    def command(self, verb: str) -> list[str]:
        """Without an address."""
        return [*super().command(verb)[:-2]]


def measure(servers: Servers, trials: int) -> Noop:
    """Run the sweep, and look at its driver every second."""
    place = Local(servers, "noop", tracked=True)
    place.write_spec(edits(trials))
    stored: list[Told] = []
    asked: Counter[str] = Counter()

    def count(told: Told) -> None:
        asked[f"{told.method} {re.sub(r'.*/mlflow/', '', told.path).partition('?')[0]}"] += 1

    def note(told: Told) -> None:
        if told.method == "PUT" and told.path.endswith("/manifest.json") and told.status == 200:
            stored.append(told)

    servers.proxy.note, servers.tracker.note = note, count
    started, memory = time.monotonic(), []
    driver = place.start("sweep", place.folder / "sweep.log")
    while driver.poll() is None:
        time.sleep(1)
        with suppress(OSError, StopIteration):
            memory.append((len(stored), resident(driver.pid)))
    seconds = time.monotonic() - started
    store = place.open_store()
    made = [read_record(store, p, Manifest) for p in store.list("trials")]
    found = [m for m in made if isinstance(m, Ingredient)]
    result = Noop(trials, seconds, overheads(found, WORKERS), memory, asked, [])
    result.problems.extend(_wrong(result, place, len(made), driver.returncode))
    return result


def resident(pid: int) -> float:
    """MB of a process in memory."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def growth(noop: Noop) -> tuple[float, float]:
    """The driver's memory when a third of the trials was stored, and at the end: medians of 5."""
    then = [mb for count, mb in noop.memory if count >= noop.trials / 3][:5]
    late = [mb for count, mb in noop.memory if count >= noop.trials * 0.98][:5]
    if not then or not late:
        return 0.0, 0.0
    return statistics.median(then), statistics.median(late)


def _wrong(noop: Noop, place: Place, made: int, status: int) -> list[str]:
    problems = []
    if status or made != noop.trials:
        said = (place.folder / "sweep.log").read_text()[-300:]
        problems.append(f"no-op sweep: status {status}, {made} manifests: {said}")
    if noop.overhead >= OVERHEAD_S:
        problems.append(f"{noop.overhead:.2f} s of overhead a trial")
    then, late = growth(noop)
    if late - then > GROWTH_MB:
        problems.append(f"the driver grew from {then:.0f} to {late:.0f} MB")
    batches = noop.mlflow["POST runs/log-batch"]
    if batches > noop.trials + 10:
        problems.append(f"{batches} writes of metrics to MLflow for {noop.trials} trials")
    return problems
