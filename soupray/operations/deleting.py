"""Delete a sweep (`soupray delete`): what belongs to it alone, in an order that can go on.

A trial, a basis or a result may belong to several sweeps, because their names are digests of what
they depend on. What another sweep plans, or names in a record, stays. Files go before the records
that name them, and the specs of the sweep go last: if the deletion is killed, the same command
finds the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from soupray.core.candidates import WeightCandidate, estimated, mean_of
from soupray.core.errors import CheckpointError, NotFound, StoreError
from soupray.core.records import Evaluation, Record
from soupray.evaluation.cache import result_key, result_path
from soupray.evaluation.live_model import statistics_path
from soupray.operations.claims import (
    Claim,
    World,
    bases_of,
    claims_of,
    look,
    planned_by,
    stored_specs,
)
from soupray.operations.garbage import named_files
from soupray.reporting.plots import line_candidates
from soupray.soup.run import Choices
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import Lease, find_driver
from soupray.store.objects import Store, find_record, read_record
from soupray.store.presence import find_present

log = logging.getLogger(__name__)

RESULTS = ("evaluations", "decisions", "answers", "statistics", "soups")
"""Folders of records that can be computed again."""

AT_A_TIME = 1000
"""Number of objects that are deleted between two looks at the lease."""


class Removal(Record, frozen=True, kw_only=True):
    """What the deletion of a sweep removes, and what it leaves.

    Attributes:
        sweep: name of the sweep.
        storage: the store.
        objects: size in bytes of each object that goes, by path, in the order of the deletion.
        kept_trials: trials of the sweep that stay, because other sweeps use them.
        alone: whether no other sweep is in the store. If there is one, a few small results stay
            that do not say whose they are.
    """

    sweep: str
    storage: str
    objects: dict[str, int]
    kept_trials: tuple[str, ...]
    alone: bool


class _Gone(NamedTuple):
    """Keys of the trials and bases that go."""

    trials: set[str]
    bases: set[str]


def find_removal(store: Store, spec: SweepSpec) -> Removal:
    """Return what the deletion of a sweep removes.

    Args:
        store: the store.
        spec: the sweep.

    Raises:
        NotFound: the store has nothing of this sweep.
        ConfigError: the spec of another sweep cannot be read: nobody knows what it uses.
        CheckpointError: a record is damaged, so that nobody knows what it names.
        StoreError: the store cannot be reached.
    """
    world = look(store)
    mine = world.below(f"{layout.SWEEPS}/{spec.name}")
    others = {p.split("/")[1] for p in world.below(layout.SWEEPS)} - {spec.name}
    stored = stored_specs(world, spec.name, strict=False)
    specs = [*{one.digest: one for one in (*stored, spec)}.values()]
    own, theirs = _own(world, specs), claims_of(world, others)
    owned = {k for k in world.trials if k in own.trials or world.sweep(k) == spec.name}
    if not mine and not owned:
        raise NotFound(f"there is nothing of the sweep {spec.name} in {store.url}.")
    records = [p for name in others for p in world.below(f"{layout.SWEEPS}/{name}")]
    elsewhere = world.digests(p for p in records if p.endswith(".json"))
    bases = own.bases - theirs.bases - _imported_by_others(world, spec.name)
    kept = {k for k in owned if k in theirs.trials or world.weights([k]) & elsewhere}
    kept |= {k for b in world.bases.keys() - bases for k in world.imports(b)} & owned
    gone = _Gone(owned - kept, bases)
    states = [p for k in (owned | own.trials) - theirs.trials for p in world.states(k)]
    alone = not others and gone == _Gone({*world.trials}, {*world.bases})
    if alone:
        results = [p for folder in RESULTS for p in world.below(folder)]
    else:
        results = _results(world, gone, (specs, mine), elsewhere)
    leaving = [*results, *_records(world, gone), *sorted(mine, key=_late)]
    ordered = [*_files(world, leaving), *states, *leaving]
    return Removal(
        sweep=spec.name,
        storage=store.url,
        objects={path: world.sizes[path] for path in ordered},
        kept_trials=tuple(sorted(kept)),
        alone=alone,
    )


def _files(world: World, leaving: list[str]) -> list[str]:
    """Return the files of arrays that only these records name."""
    named = world.digests(p for p in leaving if p.endswith(".json"))
    free = named - named_files(world.store, {*leaving})
    files = [place(sha) for place in (layout.weights, layout.blob) for sha in sorted(free)]
    return [file for file in files if file in world.sizes]


def _late(path: str) -> tuple[bool, bool, str]:
    """The order in which the records of the sweep itself go: the specs and the lease last."""
    return path.endswith("/lease.json"), "/specs/" in path, path


def _own(world: World, specs: list[SweepSpec]) -> Claim:
    """Return what this sweep uses, as far as its records say it still."""
    bases = {key for spec in specs for key in bases_of(world, spec) or ()}
    trials: set[str] = set()
    for spec in specs:
        try:
            trials |= planned_by(world, spec, bases)
        except CheckpointError as error:  # as after a deletion that was killed
            log.warning(str(error))
    return Claim(bases, trials)


def _imported_by_others(world: World, sweep: str) -> set[str]:
    """Return the bases with imports of another sweep, which may have no spec in the store."""
    return {
        basis
        for basis in world.bases
        for key in world.imports(basis)
        if key in world.trials and world.sweep(key) != sweep
    }


def _splits(world: World, bases: Iterable[str]) -> set[str]:
    return {split.digest for key in bases for split in world.bases[key].splits}


def _records(world: World, gone: _Gone) -> list[str]:
    """Return the records of trials and bases, in the order in which they go."""
    imports = [
        path
        for path in world.below("imports")
        if path.split("/")[1] in gone.bases or layout.stem(path) in gone.trials
    ]
    trials = map(layout.manifest, sorted(gone.trials))
    freed = [p for p in map(layout.freed, sorted(gone.trials)) if p in world.sizes]
    return [*imports, *trials, *freed, *map(layout.basis, sorted(gone.bases))]


def _results(
    world: World, gone: _Gone, own: tuple[list[SweepSpec], list[str]], elsewhere: set[str]
) -> list[str]:
    """Return the results that no other sweep of the store can use.

    They are about data of this sweep alone, about models of weights that go, or name files that
    only this sweep names.
    """
    specs, mine = own
    left = world.bases.keys() - gone.bases
    starts = {key: {b.init.sha256, b.anchor.sha256} for key, b in world.bases.items()}
    staying = elsewhere | world.weights(world.trials.keys() - gone.trials)
    staying |= {sha for key in left for sha in starts[key]}
    weights = world.weights(gone.trials) | {sha for key in gone.bases for sha in starts[key]}
    found = set(_of_models(world, specs, mine, weights - staying))
    own_splits = _splits(world, gone.bases) - _splits(world, left)
    for path in world.below("evaluations"):
        made: Evaluation | None = find_record(world.store, path, Evaluation)
        if made is not None and made.scores.split in own_splits:
            found.add(path)
    files = world.digests(p for p in mine if p.endswith(".json")) - staying
    found |= {path for path in world.below("answers") if world.digests([path]) & files}
    return sorted(found & world.sizes.keys())


def _of_models(
    world: World, specs: list[SweepSpec], mine: list[str], weights: set[str]
) -> Iterator[str]:
    """Yield where the results about models with any of these weights are, if they exist."""
    models: set[WeightCandidate] = {m for sha in weights for m in (mean_of([sha]), estimated(sha))}
    for path in (p for p in mine if "/choices/" in p):
        models |= {m for m in _tried(world.store, path) if weights & {*m.checkpoints}}
    for spec in specs:
        for key in bases_of(world, spec) or ():
            splits, train = world.bases[key].splits, world.bases[key].split("train")
            for model in models:
                yield statistics_path(model, train, spec.setting)
                yield result_path("soups", spec.setting, model.digest, train.digest)
                for split in splits:
                    parts = result_key(model, split.digest, train.digest)
                    yield result_path("evaluations", spec.setting, *parts)


def _tried(store: Store, path: str) -> Iterator[WeightCandidate]:
    """Yield the models that the recipes of a run chose, tried, or drew lines through."""
    try:
        choices: Choices = read_record(store, path, Choices)
    except CheckpointError as error:
        log.warning(f"what it names is not looked for: {error}")
        return
    for outcome in choices.outcomes:
        yield from outcome.candidate.members
        for step in outcome.trace:
            yield from step.candidate.members
    for line in line_candidates(choices.outcomes).values():
        yield from line


def refuse_driver(store: Store, sweep: str) -> None:
    """Raise StoreError if a driver runs the sweep now, or a soup, a check or a diagnosis of it."""
    driver = find_driver(store, sweep)
    running = [f"{driver.lease.who} runs the sweep {sweep}"] if driver else []
    running += [f"a {one.working.name} works on {sweep}" for one in find_present(store, sweep)]
    if running:
        raise StoreError(
            f"{'; '.join(running)} now: nothing is deleted. Stop it with `soupray stop`, then run "
            "the same command again."
        )


def delete(store: Store, spec: SweepSpec, home: Path) -> Removal:
    """Delete a sweep, while no other driver can run it.

    Args:
        store: the store.
        spec: the sweep.
        home: folder for the state of this machine; its copy of the spec goes too.

    Returns:
        What was deleted.

    Raises:
        SouprayError: as `find_removal`; or StoreError, if a driver runs the sweep.
    """
    refuse_driver(store, spec.name)
    path = layout.lease(spec.name)
    with Lease(store, path) as lease:
        found = find_removal(store, spec)
        paths = [one for one in found.objects if one != path]
        for part in _parts(paths):
            lease.refuse_loss(spec.name)
            with ThreadPoolExecutor(16) as threads:
                list(threads.map(store.delete, part))
        lease.refuse_loss(spec.name)
        store.delete(path)
    (home / "sweeps" / f"{spec.name}.yaml").unlink(missing_ok=True)
    return found


def _parts(paths: list[str]) -> Iterator[list[str]]:
    """Yield the paths folder by folder: a part is deleted before the next one begins."""
    for _, part in groupby(paths, key=lambda p: (p.split("/")[0], _late(p)[:2])):
        whole = list(part)
        for start in range(0, len(whole), AT_A_TIME):
            yield whole[start : start + AT_A_TIME]
