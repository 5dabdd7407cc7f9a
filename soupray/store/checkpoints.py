"""Weights and records in the store: content-addressed bytes, create-only manifests.

    weights/<sha256>.safetensors      weights, and logits: named by their content
    bases/<key>.json                  Basis: splits, init, anchor
    trials/<key>/manifest.json        Ingredient or Tombstone; its existence means complete
    sweeps/<name>/...                 specs, lease, choices, results

Weights are written before the record that names them, so that no record is ever without its
bytes. Every read is verified against the digest; local copies are kept by digest.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from soupray.core.errors import ChecksumMismatch, NotFound, SouprayError, StoreUnavailable
from soupray.core.records import BlobRef, CheckpointRef
from soupray.store import layout
from soupray.store.objects import Store, retry_once
from soupray.store.weights_file import MappedWeights, Weights, sha256_of, write_weights

RANGE_BYTES, READERS = 16 * 2**20, 8
"""A checkpoint is fetched in ranges of this size, so many at a time."""

AHEAD = 2
"""Candidates whose checkpoints are fetched before their turn, and threads that do it: a short
candidate is made up for by a long one. Each thread takes READERS ranges of memory."""

ABANDONED_S = 24 * 3600
"""A part of a download that is this old was left by a process that died."""

CACHE_SHARE = 0.5
"""Of the disk that the local copies may take."""


Place = Callable[[str], str]
Places = tuple[Place, Place]
WEIGHTS_FIRST: Places = (layout.weights, layout.blob)
BLOBS_FIRST: Places = (layout.blob, layout.weights)
"""Where an object is looked for: versions before `blobs/` kept everything under `weights/`."""


class Checkpoints:
    """Weights in `store`, with verified copies in the local folder `cache`."""

    def __init__(self, store: Store, cache: Path) -> None:
        self.store, self._cache = store, cache
        self._verified: set[str] = set()
        self.background = ThreadPoolExecutor(AHEAD)  # starts no thread before there is work
        self._coming: dict[str, Future[None]] = {}
        self._room, self._reserved = threading.Lock(), 0
        cache.mkdir(parents=True, exist_ok=True)

    def save(self, weights: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> CheckpointRef:
        """Store the weights of a model under the digest of their bytes; twice is harmless.

        Args:
            weights: tensors by name.
            about: goes into the file's one metadata key. safetensors writes several keys in random
                order, and equal weights would get different digests.

        Raises:
            StoreUnavailable: the store, or this machine's disk, is full or away.
        """
        return CheckpointRef(**self._save(weights, about, layout.weights))

    def save_blob(self, arrays: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> BlobRef:
        """Store arrays that are not weights, as `save` stores weights."""
        return BlobRef(**self._save(arrays, about, layout.blob))

    def _save(
        self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str], place: Place
    ) -> dict[str, Any]:
        """The fields of a reference to what was stored."""
        part = self._new_part()
        try:
            with _local_disk(self._cache):
                write_weights(part, tensors, about)
            sha256, size = sha256_of(part), part.stat().st_size
            self._make_room(size)
            self.store.put(place(sha256), part)
            part.rename(self._local(sha256))
        finally:
            part.unlink(missing_ok=True)
        return {"sha256": sha256, "size_bytes": size}

    def expect(self, digests: Iterable[str]) -> None:
        """Fetch these in the background, for they will be wanted soon.

        What was expected before and is not among them is given up, unless it is on its way. What
        fails is tried again, and told, when it is wanted.
        """
        wanted = [sha256 for sha256 in digests if sha256 not in self._verified]
        for sha256 in self._coming.keys() - set(wanted):
            if self._coming[sha256].cancel():
                del self._coming[sha256]
        for sha256 in wanted:
            if sha256 not in self._coming:
                self._coming[sha256] = self.background.submit(self._try_to_fetch, sha256)

    def _try_to_fetch(self, sha256: str) -> None:
        with suppress(SouprayError):
            self._fetch(sha256, WEIGHTS_FIRST)

    def fetch(self, sha256: str) -> Path:
        """A local file with the weights, downloaded and verified unless it is there already.

        Raises:
            NotFound: the store has no such weights.
            ChecksumMismatch: the stored bytes are not those that were written.
        """
        return self._when_here(sha256, WEIGHTS_FIRST)

    def _when_here(self, sha256: str, places: Places) -> Path:
        """The local file, once a download in the background is over."""
        coming = self._coming.pop(sha256, None)
        if coming is not None and not coming.cancel():
            wait([coming])
        return self._fetch(sha256, places)

    def _fetch(self, sha256: str, places: Places) -> Path:
        local = self._local(sha256)
        while True:
            try:
                # A copy that an earlier process left is hashed once before it is believed.
                if sha256 not in self._verified and sha256_of(local) != sha256:
                    local.unlink()
                os.utime(local)  # used last: `_make_room` takes the others first
                self._verified.add(sha256)
                return local
            except FileNotFoundError:  # not here yet, spoilt, or another process made room
                self._download(sha256, local, places)

    def _download(self, sha256: str, local: Path, places: Places) -> None:
        """Once a node: of the processes that want it at the same time, the others wait."""
        lock = local.with_suffix(".lock")
        with _local_disk(self._cache), FileLock(lock):
            try:
                if not local.exists():
                    self._download_alone(sha256, local, places)
            finally:
                lock.unlink(missing_ok=True)  # who waits for it finds the file, or tries itself

    def _download_alone(self, sha256: str, local: Path, places: Places) -> None:
        path, size = self._find(sha256, places)
        with self._room_for(size):
            part = self._new_part()
            try:
                retry_once(lambda: self._copy(path, size, sha256, part), ChecksumMismatch)
                part.rename(local)
                self._verified.add(sha256)
            finally:
                part.unlink(missing_ok=True)

    def _find(self, sha256: str, places: Places) -> tuple[str, int]:
        """(path, bytes) of the object, in the first of two places that has it. Raises NotFound."""
        first, second = (place(sha256) for place in places)
        try:
            return first, self.store.size(first)
        except NotFound:
            with suppress(NotFound):
                return second, self.store.size(second)
            raise

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Room for one more download: what others will take is not seen on the disk yet."""
        with self._room:
            self._reserved += size
        try:
            with self._room:
                self._make_room(self._reserved)
            yield
        finally:
            with self._room:
                self._reserved -= size

    def _copy(self, path: str, size: int, sha256: str, part: Path) -> None:
        """Write the object into a local file. Raises ChecksumMismatch."""
        seen = hashlib.sha256()
        with part.open("wb") as file:
            for chunk in self.ranges(path, size):
                seen.update(chunk)
                file.write(chunk)
        if seen.hexdigest() != sha256:
            raise ChecksumMismatch(
                f"{path} in {self.store.url} has SHA-256 {seen.hexdigest()} "
                f"({size} bytes): it is corrupt or truncated. Restore that object, or "
                "delete it and the manifest of its trial, and run the sweep again: only that "
                "trial is repeated."
            )

    def ranges(self, path: str, size: int) -> Iterator[bytes]:
        """The object in order, READERS ranges of it on their way at a time."""
        starts = iter(range(0, size, RANGE_BYTES))
        with ThreadPoolExecutor(READERS) as threads:

            def ask(start: int) -> Future[bytes]:
                length = min(RANGE_BYTES, size - start)
                return threads.submit(self.store.get_range, path, start, length)

            coming = deque(ask(start) for start in itertools.islice(starts, READERS))
            while coming:
                chunk = coming.popleft().result()
                coming.extend(ask(start) for start in itertools.islice(starts, 1))
                yield chunk

    def _make_room(self, size: int) -> None:
        """Remove the copies used longest ago while the cache is too large, or the disk too full.

        What another process has mapped stays readable for it; it is fetched again when needed.
        """
        with _local_disk(self._cache):
            found = []
            for copy in self._cache.iterdir():
                with suppress(FileNotFoundError):  # another process makes room too
                    stat = copy.stat()
                    if copy.suffix == ".safetensors" or time.time() - stat.st_mtime > ABANDONED_S:
                        found.append((stat.st_mtime, copy, stat.st_size))
            copies = [copy for _, copy, _ in sorted(found)]
            sizes = {copy: bytes_ for _, copy, bytes_ in found}
            disk = shutil.disk_usage(self._cache)
            free, kept = disk.free, sum(sizes.values())
            for copy in copies:
                if kept + size <= disk.total * CACHE_SHARE and free >= size:
                    break
                copy.unlink(missing_ok=True)
                self._verified.discard(copy.stem)
                free, kept = free + sizes[copy], kept - sizes[copy]

    def open(self, sha256: str) -> MappedWeights:
        """The weights, or the arrays of a blob, memory-mapped. Raises what `fetch` raises."""
        return self._open(sha256, WEIGHTS_FIRST)

    def _open(self, sha256: str, places: Places) -> MappedWeights:
        try:
            return MappedWeights(self._when_here(sha256, places))
        except FileNotFoundError:  # another process made room just now
            return MappedWeights(self._when_here(sha256, places))

    def load(self, sha256: str) -> Weights:
        """The weights, in memory. Raises what `fetch` raises."""
        return _in_memory(self._open(sha256, WEIGHTS_FIRST))

    def load_blob(self, sha256: str) -> Weights:
        """The arrays of a blob by name, in memory. Raises what `fetch` raises."""
        return _in_memory(self._open(sha256, BLOBS_FIRST))

    def _new_part(self) -> Path:
        with (
            _local_disk(self._cache),
            tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file,
        ):
            return Path(file.name)

    def _local(self, sha256: str) -> Path:
        return self._cache / f"{sha256}.safetensors"


def _in_memory(mapped: MappedWeights) -> Weights:
    return {name: mapped[name] for name in mapped.names}


@contextmanager
def _local_disk(folder: Path) -> Iterator[None]:
    """What this machine's disk says, as StoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the cache {folder} on this machine: {error}. Free some space, or name another "
            "--home; then run again: what is stored is kept."
        ) from error
