"""Peak memory of evaluating soups of K ingredients, for K = 2 to 32: it should not grow with K.

    python benchmarks/soup_memory.py

Synthetic ingredients of 64 MB in a store of files. Each K runs in a fresh process. Memory-mapped
ingredients are in the page cache, which the kernel takes back when it is needed, so what counts is
anonymous memory (RssAnon); the whole resident set is shown beside it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import sys, time, torch, threading
from pathlib import Path
from soupray.store.checkpoints import Checkpoints
from soupray.maths.weights import Mixer
from soupray.core.candidates import mean_of
from soupray.store.objects import open_store

folder, k = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
checkpoints = Checkpoints(open_store(f"file://{folder}/store"), Path(folder) / f"cache{k}")
shas = Path(folder, "shas").read_text().split()[:k]
peak = {"RssAnon": 0, "VmRSS": 0}
def look():
    for line in open("/proc/self/status"):
        name = line.split(":")[0]
        if name in peak:
            peak[name] = max(peak[name], int(line.split()[1]) // 1024)
stop = threading.Event()
def watch():
    while not stop.wait(0.005):
        look()
look()
base = dict(peak)
threading.Thread(target=watch, daemon=True).start()
mixer = Mixer(checkpoints.open)
live = {n: torch.empty_like(t) for n, t in checkpoints.load(shas[0]).items()}
for n in range(1, k + 1):                      # a greedy soup that accepts everything
    for name, tensor in mixer.tensors(mean_of(shas[:n])):
        live[name].copy_(tensor)
stop.set(); look()
print(base["RssAnon"], peak["RssAnon"], peak["VmRSS"])
"""

MODEL_MB, TENSORS = 64, 16


def main() -> None:
    """Make the ingredients, then a row for each K."""
    import torch

    from soupray.store.checkpoints import Checkpoints
    from soupray.store.objects import open_store

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(open_store(f"file://{folder}/store"), Path(folder) / "cache")
        generator = torch.Generator().manual_seed(0)
        shas = []
        for _ in range(32):
            shape = (MODEL_MB * 1_000_000 // 4 // TENSORS,)
            weights = {f"t{i}": torch.randn(shape, generator=generator) for i in range(TENSORS)}
            shas.append(checkpoints.save(weights, {}).sha256)
        Path(folder, "shas").write_text(" ".join(shas))
        print(
            f"{'K':>3} {'private at start':>18} {'private peak':>14} {'in models':>10} {'RSS':>8}"
        )
        for k in (2, 4, 8, 16, 32):
            done = subprocess.run(
                [sys.executable, "-c", CHILD, folder, str(k)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            base, anonymous, rss = map(int, re.findall(r"\d+", done.stdout))
            models = (anonymous - base) / MODEL_MB
            print(f"{k:>3} {base:>15} MB {anonymous:>11} MB {models:>10.1f} {rss:>5} MB")


if __name__ == "__main__":
    main()
