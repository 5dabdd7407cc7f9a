"""States of a running trial in the store. An interrupted trial continues from the last one.

    resume/<trial key>/<epoch>.safetensors    weights, optimizer, generators, best weights so far
    resume/<trial key>/state.json             names the valid state; it is written after that state

A state is written in the background, at most once a minute. A resumed trial has the same result as
one without an interruption.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from soupray.core.errors import CheckpointError, StoreError
from soupray.core.names import Sha256
from soupray.core.records import Record, encode
from soupray.core.trials import EpochRecord
from soupray.store import layout
from soupray.store.objects import Store, find_record
from soupray.store.weights_file import MappedWeights, Weights, sha256_of, write_weights
from soupray.training.start import Group

EVERY_S = 60.0
"""Seconds between two states. A shorter trial has no state: it is repeated."""


class Saved(Record, frozen=True, kw_only=True):
    """The record about the valid state of a trial.

    Attributes:
        path: of the state's file in the store.
        sha256: of the state's file, hex.
        history: one record for each complete epoch.
        best_epoch: the best epoch so far, from 1.
    """

    path: str
    sha256: Sha256
    history: tuple[EpochRecord, ...]
    best_epoch: int


def common(
    found: tuple[Saved, Weights] | None, group: Group, device: torch.device
) -> tuple[Saved, Weights] | None:
    """The state that this worker found, if all workers of the group found the same one.

    The workers add up their gradients, so that all must continue from one state. If one worker
    cannot read it, all start from the beginning.

    Args:
        found: the state that this worker found, or None.
        group: the workers.
        device: of the tensors that the workers exchange.

    Returns:
        `found` for all workers, or None for all workers.
    """
    marks = torch.zeros(group.size, dtype=torch.int64, device=device)
    if found is not None:
        marks[group.rank] = int(found[0].sha256[:15], 16)  # 60 bits fit into an int64
    group.add_up([marks])
    return found if bool((marks == marks[0]).all()) else None


class Resumer:
    """Writes and reads the states of one trial."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._thread = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None
        self._last = time.monotonic()

    def find(self) -> tuple[Saved, Weights] | None:
        """The last state. None: there is none that can be read, and the trial starts again."""
        try:
            saved: Saved | None = find_record(self._store, layout.resume_state(self._key), Saved)
            mine = f"{layout.resume_folder(self._key)}/"
            if saved is None or not (layout.is_ours(saved.path) and saved.path.startswith(mine)):
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
        """Whether it is time for the next state. No: the upload of the last one still runs."""
        idle = self._upload is None or self._upload.done()
        return idle and time.monotonic() - self._last >= EVERY_S

    def keep(
        self, tensors: Mapping[str, torch.Tensor], history: list[EpochRecord], best_epoch: int
    ) -> None:
        """Write a state in the background.

        Args:
            tensors: the state. They must be copies, because the training goes on.
            history: one record for each complete epoch.
            best_epoch: the best epoch so far, from 1.
        """
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
        """Remove the states of a trial that is over. Files that cannot be removed do no harm."""
        self._thread.shutdown(wait=True)
        try:
            for path in sorted(
                self._store.list(layout.resume_folder(self._key)), key=lambda p: p.endswith(".json")
            ):
                self._store.delete(path)
        except StoreError:
            return
