"""A load test of `soupray serve`: requests a second, and how long one waits, on this machine.

    python benchmarks/serving.py

Loop: `Model.predict_proba` on the same files in this process, in full batches. Served: as many
clients as two batches have samples, each with one connection, one image a request, and the next
request when the answer is there. The clients share the cores with the server. Loop and load take
turns. What else runs on the machine slows both down, but not alike: the server has more threads. So
the time of the processors counts too: of this process in the loop; of this process and of all of
Ray's under load.

One row has a batch of images in each request, from two clients. Large files say who decodes how
often: decoding takes most of their time, so that an ensemble is as fast as one model only if its
models share what is decoded.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from vit_pool import make_photos

# Ray gives its workers less of a busy machine (15) than this process has, in which the loop runs.
os.environ.setdefault("RAY_worker_niceness", "0")

import soupray
from soupray.core.candidates import Candidate, OutputEnsemble, mean_of
from soupray.core.records import encode
from soupray.inference.serve import Arguments, served
from soupray.reporting.recipe_file import RecipeFile
from soupray.spec.sweep_spec import parse
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of

MODELS, ROUNDS, BATCH = 4, 3, 16
FORM = "multipart/form-data; boundary=2d6f5c0a"

VIT = """
task: {kind: open_clip, model: ViT-B-32, pretrained: none, classes: [a, b, c, d, e, f, g, h, i, j],
       templates: ["{}"]}
data: {kind: folder, train: FOLDER, test: 20, held_out: 20, size: 224}
evaluation_batch: 16
"""
DIGITS = """
task: {kind: open_clip, model: "soupray:digits", classes: [a, b, c, d, e, f, g, h, i, j],
       templates: ["{}"]}
data: {kind: digits}
evaluation_batch: 16
"""
REST = """
name: NAME
search: {trials: 1, space: {lr: 1e-5, epochs: 1, batch_size: 16}}
storage: file://FOLDER/store
tracking: "off"
recipes: {}
"""


class Load(NamedTuple):
    """Images a second, milliseconds of the processors for an image, seconds of each request."""

    rate: float
    busy: float
    seconds: list[float]

    def at(self, percent: float) -> float:
        """Milliseconds that so many percent of the requests took at most."""
        return 1000 * float(np.percentile(self.seconds, percent))


def busy() -> float:
    """Milliseconds of the processors that this process and those below it have used."""
    used, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = path.read_text().rsplit(")", 1)
        except OSError:  # it has ended
            continue
        fields = rest.split()
        number = int(pid.split()[0])
        parents[number] = int(fields[1])
        used[number] = (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sum(used[pid] for pid in found)


def recipes(name: str, text: str, folder: Path) -> dict[str, Path]:
    """Recipe files of one model and of an ensemble of MODELS, with weights that are drawn."""
    (folder / "store").mkdir(exist_ok=True)
    whole = (text + REST).replace("FOLDER", str(folder)).replace("NAME", name)
    spec = parse(whole, f"{name}.yaml")
    task = task_of(spec.task)
    store = open_store(f"file://{folder}/store")
    checkpoints = Checkpoints(store, folder / "home" / "cache" / "weights")
    soups = []
    for seed in range(MODELS):
        torch.manual_seed(seed)
        weights = task.model().state_dict()
        weights = {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t
                   for n, t in weights.items()}  # fmt: skip
        soups.append(mean_of([checkpoints.save(weights, {}).sha256]))
    parts = tuple((soup, 1, 1.0) for soup in soups)
    joined = OutputEnsemble(parts=parts, denominator=MODELS, space="logits")
    made: dict[str, Candidate] = {"one model": soups[0], f"ensemble of {MODELS}": joined}
    found = {}
    for what, candidate in made.items():
        recipe = RecipeFile(
            name=what, recipe="uniform", options={}, candidate=candidate, ingredients={},
            statistics={}, sha256=None, spec=spec.model_dump(mode="json"),
            shape=(3, 224, 224) if "ViT" in text else (1, 32, 32),
        )  # fmt: skip
        found[what] = folder / f"{name} {what}.recipe.json"
        found[what].write_bytes(encode(recipe))
    return found


def in_a_loop(model: soupray.Model, images: Sequence[bytes]) -> Load:
    """All images, in full batches."""
    started, before = time.perf_counter(), time.process_time()
    model.predict_proba(list(images))
    took, worked = time.perf_counter() - started, time.process_time() - before
    return Load(len(images) / took, 1000 * worked / len(images), [])


def under_load(port: int, images: Sequence[bytes], clients: int, each: int = 1) -> Load:
    """Ask for every image once, by so many clients, with `each` images in a request."""
    waiting = [images[first : first + each] for first in range(0, len(images), each)]
    seconds, lock = list[float](), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                if not waiting:
                    return
                some = waiting.pop()
            body, kind = (some[0], "image/jpeg") if each == 1 else (form(some), FORM)
            started = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            with lock:
                seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started, before = time.perf_counter(), busy()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, worked = time.perf_counter() - started, busy() - before
    return Load(len(images) / took, worked / len(images), seconds)


def form(images: Sequence[bytes]) -> bytes:
    """Images as a form."""
    head = b'--2d6f5c0a\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    return b"".join(head + image + b"\r\n" for image in images) + b"--2d6f5c0a--\r\n"


def compare(
    name: str, path: Path, home: Path, images: Sequence[bytes], clients: int = 32, each: int = 1
) -> None:
    """Print a row: medians of the rounds; a lone client asks eight times."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    model = soupray.load(path, home=home)
    with served(Arguments(what=str(path), home=str(home)), port):
        in_a_loop(model, images[:BATCH])
        under_load(port, images[:BATCH], BATCH)
        rounds = [
            (in_a_loop(model, images), under_load(port, images, clients, each))
            for _ in range(ROUNDS)
        ]
        alone = under_load(port, images[: 8 * each], 1, each)
    middle = statistics.median
    ratios = sorted(load.rate / loop.rate for loop, load in rounds)
    both = Load(0, 0, [second for _, load in rounds for second in load.seconds])
    print(
        f"| {name} | {middle(loop.rate for loop, _ in rounds):.1f} | "
        f"{middle(load.rate for _, load in rounds):.1f} | {middle(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {middle(loop.busy for loop, _ in rounds):.1f} | "
        f"{middle(load.busy for _, load in rounds):.1f} | "
        f"{middle(loop.busy / load.busy for loop, load in rounds):.2f} | {both.at(50):.0f} | "
        f"{both.at(99):.0f} | {alone.at(50):.0f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    print(
        "| | loop, images/s | served | ratio | loop, CPU ms | served | ratio | p50 ms | p99 ms | "
        "one client: p50 ms |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        (folder / "jpeg").mkdir()
        make_photos(folder / "jpeg", 128, 0)
        small = [path.read_bytes() for path in sorted((folder / "jpeg").iterdir())]
        large = []
        for data in small[:16]:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(data)).resize((4000, 3000)).save(buffer, "JPEG", quality=92)
            large.append(buffer.getvalue())
        for what, path in recipes("vit", VIT, folder).items():
            compare(f"ViT-B/32, {what}", path, home, small[: 64 if "one" in what else 32])
        for what, path in recipes("digits", DIGITS, folder).items():
            compare(f"the demo's CLIP, {what}", path, home, small * 4)
            if what == "one model":
                compare("the same, 16 images a request", path, home, small * 8, 2, BATCH)
            compare(f"the demo's CLIP, {what}, 12 megapixels", path, home, large * 4)


if __name__ == "__main__":
    main()
