"""Time and memory of `soupray status`, as a whole process, for a sweep of many finished trials.

python benchmarks/status.py [TRIALS]

The manifests are those of a CLIP ViT-B/32 on ImageNet: 152 tensors, 10 000 held-out samples, 1000
classes, 16 epochs. The store is a folder, then the embedded S3 store.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from soupray.core.records import (
    Basis,
    BlobRef,
    CheckpointRef,
    Scores,
    Split,
    digest,
    encode,
    pack_right,
)
from soupray.core.trials import EpochRecord, Ingredient, Trial
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services import embedded
from soupray.services.place import start_services
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store import layout
from soupray.store.objects import Store

ROOT = Path(__file__).parent.parent
TENSORS, HELD_OUT, CLASSES, EPOCHS = 152, 10_000, 1000, 16
RUNS = 5


def spec_text(trials: int, storage: str) -> str:
    """The demo's spec with this number of trials, on another store."""
    text = (ROOT / "sweeps" / "digits.yaml").read_text()
    return (
        text.replace("trials: 16", f"trials: {trials}")
        .replace("storage: embedded", f"storage: {storage}")
        .replace("tracking: embedded", "tracking: off")
    )


def fill(store: Store, spec: SweepSpec) -> int:
    """Write the basis and a manifest for each trial; return the bytes of a manifest."""
    key, init = basis_key(spec), CheckpointRef(sha256=digest("init"), size_bytes=1)
    splits = tuple(
        Split(name=n, role=n, digest=digest(n), size=HELD_OUT, classes=CLASSES)
        for n in ("train", "held_out", "test")
    )
    basis = Basis(key=key, splits=splits, init=init, anchor=init)
    store.put(layout.basis(key), encode(basis))
    trials = trials_of(spec, basis)

    def write(trial: Trial) -> int:
        data = encode(manifest(trial, basis))
        store.put(layout.manifest(trial.key), data)
        return len(data)

    with ThreadPoolExecutor(16) as threads:
        return max(threads.map(write, trials))


def manifest(trial: Trial, basis: Basis) -> Ingredient:
    """A manifest of the size that a large model has."""
    right = np.random.default_rng(trial.index).random(HELD_OUT) < 0.7
    each = right.reshape(CLASSES, -1).sum(axis=1).tolist()
    per_class = HELD_OUT // CLASSES
    held_out = Scores(
        split=basis.split("held_out").digest,
        n=HELD_OUT,
        correct=int(right.sum()),
        nll=1.25,
        ece=0.05,
        right=pack_right(right),
        by_class=tuple((per_class, per_class, n) for n in each),
    )
    epoch = EpochRecord(
        epoch=1, train_loss=0.5, held_out_correct=1, held_out_n=HELD_OUT, seconds=100.0
    )
    return Ingredient(
        trial=trial,
        checkpoint=CheckpointRef(sha256=digest(trial.key), size_bytes=350_000_000),
        tensors={
            f"visual.transformer.resblocks.{i}.attn.in_proj_weight": digest([trial.key, i])
            for i in range(TENSORS)
        },
        init=basis.init.sha256,
        best_epoch=1,
        history=(epoch,) * EPOCHS,
        held_out=held_out,
        logits=BlobRef(sha256=digest([trial.key]), size_bytes=40_000_000),
        made_with={},
        started=0.0,
        finished=1.0,
    )


def measure(spec: Path, home: Path) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and peak megabytes of one `soupray status`."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "soupray", "status", str(spec), "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, said
    assert "trials done" in said, said
    busy = used.ru_utime + used.ru_stime
    return time.perf_counter() - started, busy, used.ru_maxrss / 1000


def main() -> None:
    """Median and range for both stores."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for kind in ("folder", "embedded"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            storage = "embedded" if kind == "embedded" else f"file://{folder}/store"
            (folder / "spec.yaml").write_text(spec_text(trials, storage))
            spec = parse((folder / "spec.yaml").read_text(), "spec.yaml")
            try:
                size = fill(start_services(spec, folder / "home").place.open_store(), spec)
                took = [measure(folder / "spec.yaml", folder / "home") for _ in range(RUNS)]
            finally:
                embedded.down(folder / "home")
        seconds, busy, megabytes = (sorted(column) for column in zip(*took, strict=True))
        print(
            f"{kind:<9} {trials} manifests of {size / 1000:.0f} kB: "
            f"{statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{statistics.median(busy):.2f} s of the processor, "
            f"at most {megabytes[-1]:.0f} MB"
        )


if __name__ == "__main__":
    main()
