"""Read and write weights and other arrays in the store, with verified local copies.

    weights/<sha256>.safetensors      weights of a model; the file name is the SHA-256 of the file
    blobs/<sha256>.safetensors        arrays that are not weights, named in the same way

The module `layout` lists all objects of the store. A file of arrays is written before the record
that names it, so a record never refers to missing bytes. Every file is checked against its digest
before its first use in a process. Local copies are named by their digest.
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
from soupray.core.names import inside
from soupray.core.records import BlobRef, CheckpointRef
from soupray.store import layout
from soupray.store.objects import Store, retry_once
from soupray.store.weights_file import MappedWeights, Weights, sha256_of, write_weights

RANGE_BYTES, READERS = 16 * 2**20, 8
"""Size in bytes of one range of a download, and how many ranges are downloaded in parallel."""

AHEAD = 2
"""How many checkpoints are downloaded in the background at the same time.

With two threads, a candidate that is evaluated quickly does not have to wait for the next download.
Each thread holds up to READERS ranges in memory.
"""

ABANDONED_S = 24 * 3600
"""Age in seconds after which a partial download may be deleted: its process has probably died."""

CACHE_SHARE = 0.5
"""Largest fraction of the disk that the local copies may take."""


Place = Callable[[str], str]
Places = tuple[Place, Place]
WEIGHTS_FIRST: Places = (layout.weights, layout.blob)
BLOBS_FIRST: Places = (layout.blob, layout.weights)
"""Order in which two folders are searched for an object.

Older versions stored every file in `weights/`, before the folder `blobs/` existed.
"""


class Checkpoints:
    """Reads and writes weights in `store` and keeps verified copies in the local folder `cache`."""

    def __init__(self, store: Store, cache: Path) -> None:
        self.store, self._cache = store, cache
        self._verified: set[str] = set()
        self.background = ThreadPoolExecutor(AHEAD)  # starts no thread before there is work
        self._coming: dict[str, Future[None]] = {}
        self._room, self._reserved = threading.Lock(), 0
        cache.mkdir(parents=True, exist_ok=True)

    def save(self, weights: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> CheckpointRef:
        """Store the weights of a model under the SHA-256 digest of the file.

        Storing the same weights twice changes nothing.

        Args:
            weights: tensors by name.
            about: facts about the weights; written as JSON under one metadata key of the file.
                safetensors writes several keys in random order, so equal weights would get
                different digests.

        Returns:
            A reference with the digest and the size in bytes.

        Raises:
            StoreUnavailable: the store or the local disk is full or cannot be reached.
        """
        return CheckpointRef(**self._save(weights, about, layout.weights))

    def save_blob(self, arrays: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> BlobRef:
        """Store arrays that are not weights under the SHA-256 digest of the file.

        Args:
            arrays: tensors by name.
            about: facts about the arrays; written as JSON under one metadata key of the file.

        Returns:
            A reference with the digest and the size in bytes.

        Raises:
            StoreUnavailable: the store or the local disk is full or cannot be reached.
        """
        return BlobRef(**self._save(arrays, about, layout.blob))

    def _save(
        self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str], place: Place
    ) -> dict[str, Any]:
        """Store a file of tensors and return the fields of a reference to it."""
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
        """Start to fetch these checkpoints in the background, because they will be needed soon.

        A download that an earlier call requested is cancelled if this call does not name it and it
        has not started. An error in the background is ignored here: `fetch` tries again and raises
        it.

        Args:
            digests: SHA-256 digests of the checkpoints.
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
        """Return a local file with the weights; download and verify it if it is not in the cache.

        Args:
            sha256: digest of the file, in hexadecimal.

        Raises:
            NotFound: the store has no such weights.
            ChecksumMismatch: the stored bytes differ from the bytes that were written.
        """
        return self._when_here(sha256, WEIGHTS_FIRST)

    def _when_here(self, sha256: str, places: Places) -> Path:
        """Wait for a background download of the file, if one has started, and return the file."""
        coming = self._coming.pop(sha256, None)
        if coming is not None and not coming.cancel():
            wait([coming])
        return self._fetch(sha256, places)

    def _fetch(self, sha256: str, places: Places) -> Path:
        local = self._local(sha256)
        while True:
            try:
                # A copy from an earlier process is hashed once, because it may be incomplete.
                if sha256 not in self._verified and sha256_of(local) != sha256:
                    local.unlink()
                os.utime(local)  # marks the copy as used: `_make_room` deletes the oldest first
                self._verified.add(sha256)
                return local
            except FileNotFoundError:  # not in the cache, corrupt, or deleted by another process
                self._download(sha256, local, places)

    def _download(self, sha256: str, local: Path, places: Places) -> None:
        """Download the file while holding a lock, so that each node downloads it only once.

        Other processes that need the same file at the same time wait for the lock.
        """
        lock = local.with_suffix(".lock")
        with _local_disk(self._cache), FileLock(lock):
            try:
                if not local.exists():
                    self._download_alone(sha256, local, places)
            finally:
                lock.unlink(missing_ok=True)  # a waiting process then finds the file, or downloads

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
        """Return the path and size in bytes of the object in the first place that has it.

        Raises:
            NotFound: neither place has the object.
        """
        first, second = (place(sha256) for place in places)
        try:
            return first, self.store.size(first)
        except NotFound:
            with suppress(NotFound):
                return second, self.store.size(second)
            raise

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Reserve disk space for one download until the download is over.

        The disk usage does not show yet what parallel downloads will write, so their sizes are
        added up.
        """
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
        """Write the object into a local file and check its digest. Raises ChecksumMismatch."""
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
        """Yield the bytes of an object in order, while READERS ranges are downloaded in parallel.

        Args:
            path: path of the object in the store.
            size: size of the object in bytes.
        """
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
        """Delete the least recently used copies until `size` more bytes fit.

        Copies are deleted while the cache would exceed CACHE_SHARE of the disk, or while the disk
        has less than `size` bytes free. A process that has mapped a deleted copy can still read it.
        A deleted copy is downloaded again when it is needed.
        """
        with _local_disk(self._cache):
            found = []
            for copy in self._cache.iterdir():
                with suppress(FileNotFoundError):  # another process deleted it
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
        """Return the memory-mapped weights or arrays of a file. Raises the errors of `fetch`."""
        return self._open(sha256, WEIGHTS_FIRST)

    def _open(self, sha256: str, places: Places) -> MappedWeights:
        try:
            return MappedWeights(self._when_here(sha256, places))
        except FileNotFoundError:  # another process has just deleted it to make room
            return MappedWeights(self._when_here(sha256, places))

    def load(self, sha256: str) -> Weights:
        """Return the weights in memory, as tensors by name. Raises the errors of `fetch`."""
        return _in_memory(self._open(sha256, WEIGHTS_FIRST))

    def fetch_blob(self, sha256: str) -> Path:
        """Return a local file with the arrays of a blob. Raises the errors of `fetch`."""
        return self._when_here(sha256, BLOBS_FIRST)

    def load_blob(self, sha256: str) -> Weights:
        """Return the arrays of a blob in memory, by name. Raises the errors of `fetch`."""
        return _in_memory(self._open(sha256, BLOBS_FIRST))

    def _new_part(self) -> Path:
        with (
            _local_disk(self._cache),
            tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file,
        ):
            return Path(file.name)

    def _local(self, sha256: str) -> Path:
        return inside(self._cache, f"{sha256}.safetensors")


def _in_memory(mapped: MappedWeights) -> Weights:
    return {name: mapped[name] for name in mapped.names}


@contextmanager
def _local_disk(folder: Path) -> Iterator[None]:
    """Turn an OSError of the local disk into StoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the cache {folder} on this machine: {error}. Free some space, or name another "
            "--home; then run again: what is stored is kept."
        ) from error
