"""What the sweeps of a store use: whoever deletes something of one looks here first.

A trial, a basis or a file of weights may belong to several sweeps, because their names are digests
of what they depend on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import msgspec

from soupray.core.errors import CheckpointError, ConfigError
from soupray.core.records import Basis, CheckpointRef
from soupray.core.trials import Trial
from soupray.operations.garbage import SHA256
from soupray.search.state import basis_key, known_trials
from soupray.spec.sweep_spec import SweepSpec, parse_data
from soupray.store import layout
from soupray.store.lease import find_driver
from soupray.store.objects import Store, read_record

log = logging.getLogger(__name__)


class Over(msgspec.Struct):
    """What is needed of a manifest. Other fields of the JSON are skipped, not decoded."""

    trial: Trial
    checkpoint: CheckpointRef | None = None


class World(NamedTuple):
    """What is in the store: sizes by path, the bases by key, and the trials that are over.

    `folders` has the paths below each folder. `trials` has None for a manifest that is damaged.
    """

    store: Store
    sizes: dict[str, int]
    folders: dict[str, list[str]]
    bases: dict[str, Basis]
    trials: dict[str, Over | None]

    def below(self, folder: str) -> list[str]:
        """Return the paths below a folder."""
        return self.folders.get(folder, [])

    def states(self, key: str) -> list[str]:
        """Return the paths of the saved states of a trial."""
        return self.below(layout.resume_folder(key))

    def imports(self, basis: str) -> list[str]:
        """Return the keys of the checkpoints that were imported into the pool of a basis."""
        return [layout.stem(path) for path in self.below(layout.imports(basis))]

    def sweep(self, key: str) -> str | None:
        """Return the name of the sweep that trained a trial; None if its manifest is damaged."""
        over = self.trials[key]
        return None if over is None else over.trial.sweep

    def weights(self, keys: Iterable[str]) -> set[str]:
        """Return the SHA-256 of the weights of these trials."""
        found = (self.trials[key] for key in keys)
        return {one.checkpoint.sha256 for one in found if one and one.checkpoint}

    def digests(self, paths: Iterable[str]) -> set[str]:
        """Return every SHA-256 in these records, which may be damaged."""
        with ThreadPoolExecutor(16) as threads:
            found = threads.map(lambda p: SHA256.findall(self.store.get(p)), paths)
            return {digest.decode() for one in found for digest in one}


class Claim(NamedTuple):
    """What sweeps use: keys of bases, and of trials that are planned for them."""

    bases: set[str]
    trials: set[str]


def look(store: Store) -> World:
    """Return what is in the store. Raises CheckpointError if a basis is damaged, StoreError."""
    sizes = {path: size for path, size, _ in store.entries("") if layout.is_ours(path)}
    folders: dict[str, list[str]] = {}
    for path in sizes:
        for folder in accumulate(path.split("/")[:-1], "{}/{}".format):
            folders.setdefault(folder, []).append(path)
    bases = {layout.stem(path): path for path in folders.get("bases", [])}
    manifests = [p for p in folders.get(layout.TRIALS, []) if p.endswith("/manifest.json")]

    def read(path: str) -> Over | None:
        try:
            found: Over = read_record(store, path, Over)
        except CheckpointError as error:  # it goes if only this sweep plans it, else it stays
            log.warning(str(error))
            return None
        return found

    with ThreadPoolExecutor(16) as threads:
        keys = [path.split("/")[1] for path in manifests]
        return World(
            store,
            sizes,
            folders,
            {key: read_record(store, path, Basis) for key, path in bases.items()},
            dict(zip(keys, threads.map(read, manifests), strict=True)),
        )


def stored_specs(world: World, sweep: str, strict: bool) -> list[SweepSpec]:
    """Return the stored specs of a sweep.

    Args:
        world: the store.
        sweep: name of the sweep.
        strict: raise ConfigError for a spec that cannot be read, rather than leave it out.
    """
    found = []
    for path in world.below(layout.specs(sweep)):
        try:
            found.append(parse_data(read_record(world.store, path, dict), path))
        except (ConfigError, CheckpointError) as error:
            if strict:
                raise ConfigError(
                    f"nothing is deleted, because nobody knows what the sweep {sweep} uses: {error}"
                ) from error
            log.warning(f"{path} cannot be read, and plans no trial: {error}")
    return found


def claims_of(world: World, others: Collection[str]) -> Claim:
    """Return what other sweeps use; more than that where nobody can say.

    Args:
        world: the store.
        others: their names.

    Raises:
        ConfigError: the spec of one cannot be read, or one is just beginning: nobody knows what it
            uses.
    """
    claim = Claim(set(), set())
    for name in sorted(others):
        specs = stored_specs(world, name, strict=True)
        made = any("/choices/" in p for p in world.below(f"{layout.SWEEPS}/{name}"))
        if not specs and not made and find_driver(world.store, name) is not None:
            raise ConfigError(
                f"nothing is deleted, because the sweep {name} is just beginning in "
                f"{world.store.url}: nobody knows yet what it uses. Try again in a minute."
            )
        for spec in specs:
            found = bases_of(world, spec)
            bases = set(world.bases) if found is None else found
            claim.bases.update(bases)
            claim.trials.update(planned_by(world, spec, bases))
    return claim


def bases_of(world: World, spec: SweepSpec) -> set[str] | None:
    """Return the key of the basis of a spec; None if it names files that are not here."""
    try:
        return {basis_key(spec)} & world.bases.keys()
    except (ConfigError, OSError):
        return None


def planned_by(world: World, spec: SweepSpec, bases: Collection[str]) -> set[str]:
    """Return the keys of the trials that a spec plans on any of these bases."""
    return {t.key for key in bases for t in known_trials(world.store, spec, world.bases[key])}
