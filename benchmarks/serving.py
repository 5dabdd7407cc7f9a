"""A load test of `soupray serve`: requests a second, and how long one waits, on this machine.

    python benchmarks/serving.py

Loop: `Model.predict_proba` on the same files in this process, in full batches. Served: as many
clients as two batches have samples, each with one connection, one image a request, and the next
request when the answer is there. The clients share the cores with the server. Loop and load take
turns, so that what else runs on the machine slows both down.

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

MODELS, ROUNDS, BATCH = 4, 5, 16
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
    """Requests a second, and seconds of each request."""

    rate: float
    seconds: list[float]

    def at(self, percent: float) -> float:
        """Milliseconds that so many percent of the requests took at most."""
        return 1000 * float(np.percentile(self.seconds, percent))


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


def in_a_loop(model: soupray.Model, images: Sequence[bytes]) -> float:
    """Images a second in full batches."""
    started = time.perf_counter()
    model.predict_proba(list(images))
    return len(images) / (time.perf_counter() - started)


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
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(len(images) / (time.perf_counter() - started), seconds)


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
    loop = statistics.median(loop for loop, _ in rounds)
    rate = statistics.median(load.rate for _, load in rounds)
    ratios = sorted(load.rate / loop for loop, load in rounds)
    seconds = Load(0, [second for _, load in rounds for second in load.seconds])
    print(
        f"| {name} | {loop:.1f} | {rate:.1f} | {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {seconds.at(50):.0f} | {seconds.at(99):.0f} | "
        f"{alone.at(50):.0f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    print(
        "| images/s | loop | served | ratio | p50 ms | p99 ms | one client: p50 ms |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
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
        for what, path in recipes("digits", DIGITS, folder).items():
            compare(f"the demo's CLIP, {what}", path, home, small * 4)
            if what == "one model":
                compare("the same, 16 images a request", path, home, small * 8, 2, BATCH)
            compare(f"the demo's CLIP, {what}, 12 megapixels", path, home, large * 4)
        for what, path in recipes("vit", VIT, folder).items():
            compare(f"ViT-B/32, {what}", path, home, small[: 128 if "one" in what else 64])


if __name__ == "__main__":
    main()
