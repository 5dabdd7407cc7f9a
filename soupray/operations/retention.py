"""Let go the weights of trials that no entry needs (`keep` in a spec).

Manifests, logits and results stay: only the files of weights are deleted. For each one a record is
written first, so that no manifest names weights that are gone without saying so. Killed between two
deletions, the same command goes on.

A trial keeps its weights if a stored leaderboard has an entry that is made of it, in this sweep or
another one, or a joint one; if another sweep plans it; if no soup has seen it yet; or if it is one
of the N best (`keep: {best: N}`). Imports keep theirs: a sweep cannot make them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import CheckpointError, SouprayError, StoreError
from soupray.core.records import CheckpointRef, Record, encode
from soupray.core.trials import Freed, Ingredient
from soupray.maths.metrics import value
from soupray.operations.claims import World, claims_of, look
from soupray.operations.deleting import refuse_driver
from soupray.operations.garbage import Garbage
from soupray.reporting.history import LEADERBOARD
from soupray.reporting.recipe_file import RecipeFile
from soupray.search.state import find_state
from soupray.services.place import find_place
from soupray.soup.run import Choices
from soupray.spec.limits import KeepBest, keep_in_words
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.lease import Lease
from soupray.store.objects import Store, find_record
from soupray.store.presence import find_present

log = logging.getLogger(__name__)

AT_A_TIME = 100
"""Number of files that are deleted between two looks at what runs."""


class Going(Record, frozen=True, kw_only=True):
    """A trial whose weights are not needed: its key, and the file."""

    trial: str
    checkpoint: CheckpointRef

    @property
    def path(self) -> str:
        """Path of the file in the store."""
        return layout.weights(self.checkpoint.sha256)


class Staying(Record, frozen=True, kw_only=True):
    """Trials that keep their weights for one reason: how many, and their bytes."""

    why: str
    trials: int
    size_bytes: int


class Retention(Record, frozen=True, kw_only=True):
    """What a sweep lets go, and what stays.

    Attributes:
        sweep: name of the sweep.
        keep: of its spec, in words.
        going: trials whose weights go.
        staying: the others, by reason.
        back: keys of trials that stay although a record says that they were let go: whoever wrote
            it was killed before the deletion, and an entry needs them now.
    """

    sweep: str
    keep: str
    going: tuple[Going, ...] = ()
    staying: tuple[Staying, ...] = ()
    back: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that go."""
        return sum({one.path: one.checkpoint.size_bytes for one in self.going}.values())


class _Needs(NamedTuple):
    """SHA-256 of the weights that entries are made of, and of those that a soup has seen."""

    entries: set[str]
    seen: set[str]


def find_retention(store: Store, spec: SweepSpec) -> Retention:
    """Return what a sweep lets go. Nothing is changed.

    Args:
        store: the store.
        spec: the sweep.

    Raises:
        ConfigError: the spec of another sweep cannot be read: nobody knows what it uses.
        CheckpointError: a record is damaged, so that nobody knows what it names.
        StoreError: the store cannot be reached.
    """
    keep = keep_in_words(spec.keep)
    state = None if spec.keep == "all" else find_state(store, spec)
    if state is None:
        return Retention(sweep=spec.name, keep=keep)
    world = look(store)
    there = [i for i in state.complete if layout.weights(i.checkpoint.sha256) in world.sizes]
    reasons = _reasons(world, spec, there, {*state.freed})
    going = [
        Going(trial=i.trial.key, checkpoint=i.checkpoint)
        for i in there
        if i.trial.key not in reasons
    ]
    staying: dict[str, dict[str, int]] = {}
    for i in there:
        if i.trial.key in reasons:
            sizes = staying.setdefault(reasons[i.trial.key], {})
            sizes[i.trial.key] = i.checkpoint.size_bytes
    return Retention(
        sweep=spec.name,
        keep=keep,
        going=tuple(going),
        staying=tuple(
            Staying(why=why, trials=len(sizes), size_bytes=sum(sizes.values()))
            for why, sizes in staying.items()
        ),
        back=tuple(key for key in reasons if key in state.freed),
    )


def _reasons(
    world: World, spec: SweepSpec, there: list[Ingredient], freed: set[str]
) -> dict[str, str]:
    """Return why trials keep their weights, by key. The others go.

    Args:
        world: the store.
        spec: the sweep.
        there: its trials that have weights.
        freed: keys of trials of which a record says that they were let go.
    """
    damaged = sorted(key for key, one in world.trials.items() if one is None)
    if damaged:
        raise CheckpointError(
            f"no weights are let go, because {layout.manifest(damaged[0])} in {world.store.url} "
            "cannot be read: nobody knows what it names. Restore or delete it, then run the same "
            "command again."
        )
    others = {p.split("/")[1] for p in world.below(layout.SWEEPS)} - {spec.name}
    needs, theirs = _needs(world, spec.name), claims_of(world, others).trials
    best = sorted(there, key=lambda i: (-value(i.held_out, spec.metric), i.trial.key))
    count = spec.keep.best if isinstance(spec.keep, KeepBest) else 0
    chosen = {i.trial.key for i in best[:count]}
    own = {i.trial.key for i in there}
    shared = world.weights(world.trials.keys() - own)
    found: dict[str, str] = {}
    for i in there:
        key, sha = i.trial.key, i.checkpoint.sha256
        if sha in needs.entries:
            found[key] = "an entry of a leaderboard is made of them"
        elif key in theirs or sha in shared:
            found[key] = "another sweep has the same trials"
        elif key in freed:
            continue  # killed before it was deleted
        elif sha not in needs.seen:
            found[key] = "no soup has seen them yet"
        elif key in chosen:
            found[key] = f"they are among the {count} best"
    kept = {i.checkpoint.sha256 for i in there if i.trial.key in found}
    twins = [i for i in there if i.trial.key not in found and i.checkpoint.sha256 in kept]
    return found | {i.trial.key: "another trial has the same weights" for i in twins}


def _needs(world: World, sweep: str) -> _Needs:
    """Return the weights that the store needs, and those that a soup of this sweep has seen.

    What recipes chose is read as well as recipe files: a soup may have been killed between them.
    """
    entries = {sha for b in world.bases.values() for sha in (b.init.sha256, b.anchor.sha256)}
    seen: set[str] = set()

    def read(path: str) -> tuple[str, Choices | RecipeFile | CheckpointRef | None]:
        kind = {"choices": Choices, "soups": CheckpointRef}.get(path.split("/")[-2], RecipeFile)
        return path, find_record(world.store, path, kind)

    paths = [
        p for p in world.below(layout.SWEEPS) if "/choices/" in p or p.endswith(".recipe.json")
    ]
    with ThreadPoolExecutor(16) as threads:
        for path, record in threads.map(read, [*paths, *world.below("soups")]):
            if isinstance(record, Choices):
                entries |= {sha for o in record.outcomes for sha in o.candidate.checkpoints}
                board = layout.leaderboard_file(sweep, layout.stem(path), LEADERBOARD)
                if path.split("/")[1] == sweep and board in world.sizes:
                    seen |= {*record.pool}  # each was evaluated on test and shifts, too
            elif isinstance(record, RecipeFile):
                entries |= {*record.candidate.checkpoints}
            elif record is not None:
                entries.add(record.sha256)
    return _Needs(entries, seen)


def let_go(store: Store, spec: SweepSpec) -> Retention:
    """Let go what `find_retention` returns, while no driver can run the sweep.

    Args:
        store: the store.
        spec: the sweep.

    Returns:
        What was let go.

    Raises:
        SouprayError: as `find_retention`; or StoreError, if a driver runs the sweep, or a soup, a
            check or a diagnosis of it.
    """
    planned = find_retention(store, spec)
    if not (planned.going or planned.back):
        return planned
    refuse_driver(store, spec.name)
    with Lease(store, layout.lease(spec.name)) as lease:
        found = find_retention(store, spec)
        for key in found.back:
            store.delete(layout.freed(key))
        for start in range(0, len(found.going), AT_A_TIME):
            lease.refuse_loss(spec.name)
            _refuse_present(store, spec.name)
            with ThreadPoolExecutor(16) as threads:
                part = found.going[start : start + AT_A_TIME]
                list(threads.map(lambda one: _free(store, found, one), part))
    return found


def _free(store: Store, found: Retention, one: Going) -> None:
    record = Freed(
        trial=one.trial,
        checkpoint=one.checkpoint,
        sweep=found.sweep,
        keep=found.keep,
        at=time.time(),
    )
    store.put(layout.freed(one.trial), encode(record))
    store.delete(one.path)


def _refuse_present(store: Store, sweep: str) -> None:
    """Raise StoreError if a soup, a check or a diagnosis began meanwhile."""
    running = find_present(store, sweep)
    if running:
        raise StoreError(
            f"a {running[0].working.name} works on {sweep} now: no more weights are let go. Run "
            "`soupray gc` when it has ended."
        )


def let_go_if_possible(store: Store, spec: SweepSpec) -> Retention:
    """Let go what no entry needs; where that cannot be now, nothing, and the log says why.

    Args:
        store: the store.
        spec: the sweep.
    """
    try:
        return let_go(store, spec)
    except SouprayError as error:
        keep = keep_in_words(spec.keep)
        log.warning(f"keep: {keep}: nothing more is let go now. {error}")
        return Retention(sweep=spec.name, keep=keep)


def after_soup(specs: Sequence[SweepSpec], home: Path) -> None:
    """Let go what no entry needs, at the end of a soup of one sweep; the log says what went.

    Args:
        specs: those of the soup.
        home: folder for the state of this machine.
    """
    if len(specs) > 1 or specs[0].keep == "all":
        return
    found = let_go_if_possible(find_place(specs[0], home).open_store(), specs[0])
    if found.going or found.staying:
        log.info(in_words(found))


def in_words(found: Retention) -> str:
    """Return what was let go and what stays, in words."""
    stay = [
        f"{s.trials} stay ({s.size_bytes / 1e6:,.1f} MB), because {s.why}" for s in found.staying
    ]
    return (
        "; ".join(
            [
                f"keep: {found.keep}: the weights of {len(found.going)} trials were let go "
                f"({found.size_bytes / 1e6:,.1f} MB)",
                *stay,
            ]
        )
        + "."
    )


def as_garbage(found: Retention) -> list[Garbage]:
    """Return the files that go, as `soupray gc` lists them."""
    return [
        Garbage(
            path=one.path,
            size_bytes=one.checkpoint.size_bytes,
            why=f"no entry is made of trial {one.trial} (keep: {found.keep})",
            sweep=found.sweep,
        )
        for one in found.going
    ]
