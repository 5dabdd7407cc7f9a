"""Where an interrupted trial goes on: its state after an epoch, in the store, until it is over.

    resume/<trial key>/<epoch>.safetensors    weights, optimizer, generators, best weights so far
    resume/<trial key>/state.json             which of them counts, written after it

A state is written beside the training, once a minute at most. Nothing in it changes what comes out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from soupray.core.errors import CheckpointError, StoreError
from soupray.core.records import EpochRecord, Record, encode
from soupray.store import layout
from soupray.store.objects import Store, find_record
from soupray.store.weights_file import MappedWeights, Weights, sha256_of, write_weights
from soupray.training.start import Group

EVERY_S = 60.0
"""Between two states. A trial that is shorter than this is repeated instead."""


class Saved(Record, frozen=True, kw_only=True):
    """The state that counts: after how many epochs, what they measured, and the file's digest."""

    path: str
    sha256: str
    history: tuple[EpochRecord, ...]
    best_epoch: int


def common(
    found: tuple[Saved, Weights] | None, group: Group, device: torch.device
) -> tuple[Saved, Weights] | None:
    """What this worker found, if all workers of the group found the same; else None to each.

    Gradients of two models must not be added up: where one cannot read the state, all start again.
    """
    marks = torch.zeros(group.size, dtype=torch.int64, device=device)
    if found is not None:
        marks[group.rank] = int(found[0].sha256[:15], 16)  # 60 bits
    group.add_up([marks])
    return found if bool((marks == marks[0]).all()) else None


class Resumer:
    """Keeps the states of one trial."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._thread = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None
        self._last = time.monotonic()

    def find(self) -> tuple[Saved, Weights] | None:
        """The last state, unless there is none that can be read: then the trial starts again."""
        try:
            saved: Saved | None = find_record(self._store, layout.resume_state(self._key), Saved)
            if saved is None:
                return None
            data = self._store.get(saved.path)
        except (CheckpointError, StoreError):
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "state.safetensors")
            file.write_bytes(data)
            if sha256_of(file) != saved.sha256:
                return None
            mapped = MappedWeights(file)
            return saved, {name: mapped[name].clone() for name in mapped.names}

    def due(self) -> bool:
        """Whether a state is to be written now: not while one is on its way."""
        idle = self._upload is None or self._upload.done()
        return idle and time.monotonic() - self._last >= EVERY_S

    def keep(
        self, tensors: Mapping[str, torch.Tensor], history: list[EpochRecord], best_epoch: int
    ) -> None:
        """Write a state beside the training. `tensors` are copies: the training goes on."""
        self._last = time.monotonic()
        self._upload = self._thread.submit(self._write, tensors, tuple(history), best_epoch)

    def _write(
        self, tensors: Mapping[str, torch.Tensor], history: tuple[EpochRecord, ...], best: int
    ) -> None:
        path = layout.resume_weights(self._key, len(history))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "state.safetensors")
            write_weights(file, tensors, {})
            self._store.put(path, file)
            saved = Saved(path=path, sha256=sha256_of(file), history=history, best_epoch=best)
        self._store.put(layout.resume_state(self._key), encode(saved))
        for old in self._store.list(layout.resume_folder(self._key)):
            if old.endswith(".safetensors") and old != path:
                self._store.delete(old)

    def clear(self) -> None:
        """The trial is over: remove its states. What cannot be removed now does no harm."""
        self._thread.shutdown(wait=True)
        try:
            for path in sorted(
                self._store.list(layout.resume_folder(self._key)), key=lambda p: p.endswith(".json")
            ):
                self._store.delete(path)
        except StoreError:
            return
