"""What must hold of a store whatever happened, and what the proxy saw of the trainings."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.faults import OF_REQUESTS, Injected
from benchmarks.soak.place import Place
from benchmarks.soak.proxy import Told
from soupray.core.errors import NotFound
from soupray.core.trials import Freed
from soupray.search.budget import account, read_book
from soupray.search.prefixes import Enough, Prefix
from soupray.search.state import find_state, prefixes_of
from soupray.soup.run import Choices
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.objects import Store, read_record

CLOCK_S = 1.0
"""A store's times are whole seconds."""


class Lost(NamedTuple):
    """A training that came to nothing: what is blamed, and the seconds that were spent on it."""

    kind: str
    seconds: float


class Kept:
    """What the store of a seed holds, read without the proxy; `problems` is what must not be."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open = open_store
        self._whole: set[str] = set()
        self._freed: set[str] = set()
        self.manifests: dict[str, bytes] = {}
        self.problems: list[str] = []

    def look(self) -> None:
        """Everything is whole, no record is without its bytes, no manifest is another one now."""
        store = self._open()  # each time: it may have been started anew
        sizes = {path: size for path, size, _ in store.entries("")}
        said = [read_record(store, path, Freed) for path in sizes if path.endswith("/freed.json")]
        self._freed = {one.checkpoint.sha256 for one in said}
        manifests = {}
        for path in sizes:
            if path in self._whole:  # named by its content, and seen
                continue
            try:
                data = store.get(path)
            except NotFound:  # a trial's state, removed meanwhile
                continue
            if path.startswith((f"{layout.WEIGHTS}/", f"{layout.BLOBS}/")):
                self._check(
                    layout.stem(path) == hashlib.sha256(data).hexdigest(),
                    f"{path} is not what its name says",
                )
                self._whole.add(path)
            elif path.endswith(".json"):
                self._check_record(store, path, json.loads(data), sizes)
            if path.endswith("/manifest.json"):
                manifests[path] = data
            if "/choices/" in path:
                self._check_choices(path, read_record(store, path, Choices), sizes)
        for path, data in self.manifests.items():
            self._check(manifests.get(path) == data, f"{path} is not what it was")
        self.manifests = manifests

    def _check_record(self, store: Store, path: str, record: object, sizes: dict[str, int]) -> None:
        for ref in references(record):
            known = -1
            for place in (layout.weights(ref["sha256"]), layout.blob(ref["sha256"])):
                known = max(known, sizes.get(place, -1))
                with suppress(NotFound):
                    if known < 0:  # written after the list was made
                        known = store.size(place)
            said = f"{path} names {ref['sha256']}: {known} bytes"
            let_go = known < 0 and ref["sha256"] in self._freed
            self._check(known == ref["size_bytes"] or let_go, said)

    def _check_choices(self, path: str, made: Choices, sizes: dict[str, int]) -> None:
        """Check that what entries are made of is there, whatever was let go."""
        for outcome in made.outcomes:
            for sha in outcome.candidate.checkpoints:
                known = layout.weights(sha) in sizes
                self._check(known, f"{path}: {outcome.name} needs {sha}, which is gone")

    def _check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def stored_at(self) -> dict[str, float]:
        """When each trial's manifest was written, by key."""
        entries = self._open().entries("trials")
        return {p.split("/")[1]: at for p, _, at in entries if p.endswith("/manifest.json")}


def references(part: object) -> Iterator[dict]:
    """All references to weights in a record."""
    if isinstance(part, dict):
        if part.keys() == {"sha256", "size_bytes"}:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from references(value)


def trainings(told: Iterable[Told]) -> dict[str, list[float]]:
    """When each trial's training began, by key: it asks once for the state of an earlier one."""
    begun = defaultdict(list)
    for one in told:
        found = re.search(r"/resume/([0-9a-f]+)/state\.json$", one.path)
        if found and one.method == "GET" and one.status in (200, 404):
            begun[found[1]].append(one.when)
    return begun


def trained_again(begun: dict[str, list[float]], stored: dict[str, float]) -> list[str]:
    """Trials whose training began when their manifest was there already."""
    return [
        f"trial {key} was trained again after it was stored"
        for key, times in begun.items()
        if key in stored and any(time > stored[key] + CLOCK_S for time in times)
    ]


def lost(begun: dict[str, list[float]], came: list[Injected]) -> list[Lost]:
    """Trainings that were repeated, each blamed on the last fault between it and the next one.

    Faults beside the requests come first: a request that failed once ends no training. Where there
    is none between them it is one from before: a disk that was full when the training began.
    """
    found = []
    for times in begun.values():
        for start, again in pairwise(times):
            between = [c for c in came if start <= c.when <= again]
            beside = [c for c in between if c.kind not in OF_REQUESTS]
            before = [c for c in came if c.when < start and c.kind not in OF_REQUESTS]
            blamed = (beside or between or before or [Injected("unknown", "", 0, again)])[-1]
            found.append(Lost(blamed.kind, max(blamed.when, start) - start))
    return found


class Known(NamedTuple):
    """What a store knows of the first trials of a plan, by their number, and the stop decision."""

    prefixes: dict[int, Prefix]
    enough: Enough | None


def known_of(place: Place) -> Known:
    """Read it, without the proxy."""
    spec, store = load(place.spec), place.open_store()
    state = find_state(store, spec)
    assert state is not None
    found = prefixes_of(store, spec, state.basis)
    return Known({prefix.size: prefix for prefix in found}, state.enough)


def other_prefixes(found: Known, expected: Known) -> Iterator[str]:
    """Where they differ. A soup that did not fit into 2 % of the training may be in one alone."""
    if found.enough != expected.enough:
        yield f"the stop rule said {found.enough}, undisturbed {expected.enough}"
    for size in found.prefixes.keys() & expected.prefixes.keys():
        mine, theirs = found.prefixes[size], expected.prefixes[size]
        for name in ("ingredients", "best", "single", "members", "ensemble"):
            if getattr(mine, name) != getattr(theirs, name):
                yield f"{name} of the first {size} trials is another one"
        for name in ("uniform", "greedy"):
            both = getattr(mine, name), getattr(theirs, name)
            if None not in both and both[0] != both[1]:
                yield f"the {name} soup of the first {size} trials is another one"


def counted_too_much(place: Place, seconds: float) -> Iterator[str]:
    """More time than there was, of a budget that counts each trial once."""
    spec, store = load(place.spec), place.open_store()
    state = find_state(store, spec)
    assert state is not None
    spent = account(read_book(store, spec, state), spec).spent
    if not 0 < 3600 * spent.hours <= seconds:
        yield f"the budget counts {3600 * spent.hours:.0f} s of {seconds:.0f} s"


def wrongly_kept(place: Place, best: int) -> Iterator[str]:
    """Yield where the weights that stayed are not those that `keep` keeps, by the leaderboard.

    Args:
        place: of a sweep that was souped.
        best: number of best trials that stay, beside the ingredients of entries.
    """
    spec, store = load(place.spec), place.open_store()
    state = find_state(store, spec)
    assert state is not None
    made = {one.trial.key: one for one in state.complete}
    ranked = sorted(made, key=lambda key: (-made[key].held_out.correct, key))
    used = {key for entry in place.leaderboard() for key in entry["ingredients"]}
    expected = made.keys() & {*used, *ranked[:best]}
    files = set(store.list(layout.WEIGHTS))
    there = {key for key, one in made.items() if layout.weights(one.checkpoint.sha256) in files}
    if there != expected:
        yield f"weights of {sorted(there)} are there, not of {sorted(expected)}"
    if there == made.keys():
        yield "no weights were let go"
    if state.freed.keys() != made.keys() - there:
        yield f"{sorted(state.freed)} are said to be gone, not {sorted(made.keys() - there)}"


def leaks(secrets: dict[str, str], folders: list[Path], stores: list[Store]) -> list[str]:
    """Where a secret's bytes are."""
    wanted = {name: value.encode() for name, value in secrets.items() if value}
    found = []

    def search(place: str, data: bytes) -> None:
        found.extend(f"{name} in {place}" for name, value in wanted.items() if value in data)

    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                search(str(file), file.read_bytes())
    for store in stores:
        for path in store.list(""):
            if not path.endswith(".safetensors"):
                search(f"{store.url}/{path}", store.get(path))
    return found
