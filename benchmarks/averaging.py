"""Averaging K checkpoints straight from the store, against reading and verifying the same bytes.

    python benchmarks/averaging.py

The embedded SeaweedFS, an empty local cache each time, a fresh process for each measurement. The
two ways take turns. Memory is what a process has for itself (RssAnon) above its start: mapped
files are the kernel's to take back.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import sys, time, threading, torch
from pathlib import Path
from soupray.core.candidates import mean_of
from soupray.store.checkpoints import Checkpoints
from soupray.maths.weights import Mixer
from soupray.store.objects import open_store
from soupray.store.s3 import Credentials

way, url, shas, cache, *keys = sys.argv[1:]
torch.set_num_threads(1)
checkpoints = Checkpoints(open_store(url, Credentials(*keys)), Path(cache))
shas = shas.split(",")
def private():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
start = peak = private()
stop = threading.Event()
def watch():
    global peak
    while not stop.wait(0.01):
        peak = max(peak, private())
threading.Thread(target=watch, daemon=True).start()
began = time.perf_counter()
if way == "read":
    for sha in shas:
        checkpoints.fetch(sha)
else:
    live = {}
    for name, tensor in Mixer(checkpoints.open).tensors(mean_of(shas)):
        live[name] = tensor
took = time.perf_counter() - began
stop.set()
print(took, peak - start)
"""

MODEL_MB, TENSORS, ROUNDS = 32, 16, 5


def main() -> None:
    """Store the checkpoints, then a row for each K."""
    import torch

    from soupray.services import embedded
    from soupray.store.checkpoints import Checkpoints
    from soupray.store.objects import open_store
    from soupray.store.s3 import Credentials

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        running = embedded.up(home)
        try:
            keys = (running.endpoint, running.access_key, running.secret_key)
            store = open_store(running.storage_url, Credentials(*keys))
            checkpoints = Checkpoints(store, home / "written")
            generator = torch.Generator().manual_seed(0)
            shape = (MODEL_MB * 2**20 // 4 // TENSORS,)
            shas = [
                checkpoints.save(
                    {f"t{i}": torch.randn(shape, generator=generator) for i in range(TENSORS)}, {}
                ).sha256
                for _ in range(64)
            ]
            print(
                f"{'K':>3} {'read MB/s':>10} {'average MB/s':>13} {'ratio':>6} {'private MB':>11}"
            )
            for k in (4, 16, 64):
                row(home, running.storage_url, keys, shas[:k])
        finally:
            embedded.down(home)


def row(home: Path, url: str, keys: tuple[str, ...], shas: list[str]) -> None:
    """Medians over the rounds."""
    found: dict[str, list[tuple[float, float]]] = {"read": [], "average": []}
    for _ in range(ROUNDS):
        for way, results in found.items():
            with tempfile.TemporaryDirectory(dir=home) as cache:
                done = subprocess.run(
                    [sys.executable, "-c", CHILD, way, url, ",".join(shas), cache, *keys],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                took, private = map(float, done.stdout.split())
                results.append((took, private))
    ratios = [r / a for (r, _), (a, _) in zip(found["read"], found["average"], strict=True)]
    total = MODEL_MB * len(shas)
    speeds = {way: total / statistics.median(t for t, _ in rows) for way, rows in found.items()}
    private = statistics.median(m for _, m in found["average"])
    print(
        f"{len(shas):3} {speeds['read']:10.0f} {speeds['average']:13.0f} "
        f"{statistics.median(ratios):6.2f} {private:11.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
