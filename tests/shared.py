"""What several test modules need: the demo cut short, the embedded store, records made by hand."""

import hashlib
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import inside

from soupray.core.candidates import Candidate
from soupray.core.records import (
    Basis,
    BlobRef,
    CheckpointRef,
    Predictions,
    Scores,
    Setting,
    Split,
    pack_right,
)
from soupray.core.trials import Ingredient, Pool, Trial
from soupray.data.cache import Data, open_data
from soupray.data.shifts import SHIFTS, shifted_parts
from soupray.diagnostics.measure import Board, Inputs, Options
from soupray.evaluation.selection import HeldOutSelection
from soupray.maths.metrics import score
from soupray.search.plan import trials_of
from soupray.services import embedded
from soupray.soup.session import Session
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import Store, open_store
from soupray.store.s3 import Credentials
from soupray.tasks.open_clip import OpenClipTask
from soupray.testing.linear import Toy

DIGITS = Path(__file__).parent.parent / "sweeps" / "digits.yaml"
STORES = Path(__file__).parent / "stores"


def demo(*edits: tuple[str, str]) -> SweepSpec:
    """The demo's spec with two trials of two epochs, and with other edits of its text."""
    text = DIGITS.read_text()
    short = [("epochs: {integer: [5, 15]}", "epochs: 2"), ("trials: 16", "trials: 2")]
    for old, new in (*short, *edits):
        assert old in text
        text = text.replace(old, new)
    return parse(text, "demo.yaml")


class Old(NamedTuple):
    """The store of `tests/stores`, in a folder of its own."""

    folder: Path
    store: Store

    def spec(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def run(self, verb: str, name: str, *options: object, check: bool = True):
        return inside(verb, self.spec(name), "--home", self.folder / "home", *options, check=check)

    def objects(self) -> dict[str, bytes]:
        """What may never change, by path: all but results, which are views."""
        paths = [p for p in self.store.list("") if "/results/" not in p]
        return {p: self.store.get(p) for p in paths if not p.endswith("/lease.json")}


def unpacked(folder: Path) -> Old:
    """The store of `tests/stores` in `folder`: two finished sweeps and their soups, without Ray."""
    with tarfile.open(STORES / "store.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    for name in ("one", "two"):
        text = (STORES / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text.replace("/STORE", f"{folder}/store"))
    return Old(folder, open_store(f"file://{folder}/store"))


class Small(NamedTuple):
    """The demo's world over a store in memory."""

    spec: SweepSpec
    data: Data
    task: OpenClipTask
    checkpoints: Checkpoints
    basis: Basis

    @property
    def trial(self) -> Trial:
        return trials_of(self.spec, self.basis)[0]


def small(cache: Path, data: Data | None = None) -> Small:
    """A world of its own, but for the decoded data if they are given."""
    spec = demo()
    torch.set_num_threads(spec.threads)  # as `wiring.world` does: it changes low bits
    data = data or open_data(spec, cache / "data")
    task = OpenClipTask(spec.task)
    checkpoints = Checkpoints(open_store("memory://"), cache / "weights")
    init = checkpoints.save(task.init(), {"init": "zero_shot"})
    basis = Basis(key=sha("basis")[:32], splits=data.splits, init=init, anchor=init)
    return Small(spec, data, task, checkpoints, basis)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size` at `folder`; skips the test where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: weights that are still mapped would keep it busy.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def embedded_store(home: Path) -> Iterator[Credentials]:
    """A running S3 store of its own."""
    running = embedded.up(home)
    try:
        yield Credentials(running.endpoint, running.access_key, running.secret_key)
    finally:
        embedded.down(home)


class CutShort(Store):
    """Each of its objects comes as its first half, so many times."""

    def __init__(self, store: Store, times: float) -> None:
        super().__init__(store.backend, store.url)
        self._left = defaultdict[str, float](lambda: times)

    def get(self, path: str) -> bytes:
        data = super().get(path)
        self._left[path] -= 1
        return data if self._left[path] < 0 else data[: len(data) // 2]


def sha(name: str) -> str:
    """A digest: that of a file with this name in it."""
    return hashlib.sha256(name.encode()).hexdigest()


def key(name: str) -> str:
    """The key of a trial."""
    return sha(name)[:16]


def split(name: str, size: int, role: str = "shift") -> Split:
    return Split(name=name, role=role, digest=sha(f"data of {name}"), size=size, classes=2)


def some_basis() -> Basis:
    """A basis with 9 training and 100 held-out samples."""
    init = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
    splits = (split("train", 9, "train"), split("held_out", 100, "held_out"))
    return Basis(key=sha("basis")[:32], splits=splits, init=init, anchor=init)


def scores(right: list[int] | int, n: int = 10, of: str = sha("data of held_out")) -> Scores:
    """Right where `right` has a 1; or on the first `right` of `n` samples."""
    mask = np.array(right, bool) if isinstance(right, list) else np.arange(n) < right
    count = int(mask.sum())
    return Scores(
        split=of,
        n=len(mask),
        correct=count,
        nll=0.5,
        ece=0.25,
        right=pack_right(mask),
        by_class=((len(mask), count, count),),
    )


NO_OPTIONS = Options()


def session_of(world: Toy) -> Session:
    """A session over a world of linear models, without services and store."""
    return Session(None, None, world.pool, world.basis, (), world.evaluator, {})


def inputs_of(
    world: Any, board: Board | None = None, options: Options = NO_OPTIONS, spec: Any = None
) -> Inputs:
    """What measures see of a world of linear models."""
    return Inputs(
        spec=spec or demo(),
        pool=world.pool,
        basis=world.basis,
        board=board,
        answers=world.evaluator,
        options=options,
    )


class Given:
    """Answers of models that a test makes up: logits by (model, name of the split)."""

    def __init__(self, known: dict[tuple[Candidate, str], Predictions], asked: Any = None) -> None:
        self.known, self.asked = known, asked or {}

    def predictions(self, candidate: Candidate, split: Split) -> Predictions:
        return self.known[candidate, split.name]

    def scores(self, candidates: Sequence[Candidate], split: Split) -> list[Scores]:
        return [score(self.predictions(c, split)) for c in candidates]

    def measure(self, requests: Sequence[Any], split: Split) -> list[Any]:
        return [self.asked[request] for request in requests]


def board(champion: str, **models: Candidate) -> Board:
    """A leaderboard of these models, without its rows."""
    return Board("k", (), models, champion)


def trial(key: str = "t", **hparams: float) -> Trial:
    return Trial(
        key=key,
        index=0,
        sweep="s",
        hparams=hparams,
        seed=0,
        init=sha("anchor"),
        data=(),
        code="1",
        setting=Setting(),
    )


def ingredient(name: str, held_out: Scores, size_bytes: int = 1000) -> Ingredient:
    return Ingredient(
        trial=trial(name),
        checkpoint=CheckpointRef(sha256=sha(name), size_bytes=size_bytes),
        tensors={},
        init=sha("anchor"),
        best_epoch=1,
        history=(),
        held_out=held_out,
        logits=BlobRef(sha256=sha(f"logits of {name}"), size_bytes=1),
        made_with={},
        started=100.0,
        finished=200.0,
    )


def shifted_images(name: str, images: np.ndarray, seed: int) -> np.ndarray:
    """The whole shifted copy of `images`."""
    return np.concatenate(list(shifted_parts(SHIFTS[name], images, seed)))


class Refusing:
    """An evaluator that evaluates nothing."""

    def scores(self, candidates: object, split: Split) -> list[Scores]:
        raise AssertionError(f"scores were asked for on {split.name}")

    first_reaching = measure = save = scores


def blind(pool: Pool) -> HeldOutSelection:
    """A selection that can show its pool, but not score anything."""
    splits = [split("held_out", 10, "held_out"), split("train", 9, "train")]
    return HeldOutSelection(Refusing(), pool, splits)


def piece_of(node):
    """A schema for pieces: nothing is needed, and one of several forms is enough."""
    if isinstance(node, list):
        return [piece_of(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {key: piece_of(part) for key, part in node.items() if key != "required"}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept
