"""The leaderboards in the store, the newest one and that of every run of `soup`; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from soupray.core.errors import CheckpointError, NotFound
from soupray.core.names import slug
from soupray.core.records import Basis, Record
from soupray.recipes import Wanted
from soupray.reporting.champion import Champion
from soupray.reporting.ranking import Entry
from soupray.search.state import find_basis
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, find_record, list_ours, read_record

LEADERBOARD, RUN, RUNS = "leaderboard.json", "run.json", "runs.json"

SHORT = 8
"""Number of characters of a run's key that a message lists."""


LAST = 253_402_300_799
"""Seconds since the epoch: the end of the year 9999, which is the last one of a calendar."""


class SoupRun(Record, frozen=True, kw_only=True):
    """A run of `soup`: what it was asked for, and the entry to take.

    Attributes:
        key: digest of all inputs of its choices (32 hex); names its leaderboard in the store.
        made: when the choices were made, in seconds since the epoch.
        recipes: the recipes with their options.
        ingredients: number of models in the pool.
        entries: number of entries on the leaderboard.
        champion: the entry to take.
    """

    key: str
    made: Annotated[float, Meta(ge=0, le=LAST)]
    recipes: Wanted
    ingredients: int
    entries: int
    champion: Champion


def stored_leaderboard(
    spec: SweepSpec, home: Path, key: str | None = None
) -> tuple[list[Entry], Basis, SoupRun | None]:
    """Return a leaderboard, its basis, and the run of `soup` that made it.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        key: of the run, or its first characters; None for the newest one.

    Returns:
        Entries, best first; the basis; the run, or None if an older version made it.

    Raises:
        NotFound: there is no such leaderboard.
        CheckpointError: a record is damaged.
    """
    store = find_place(spec, home).open_store()
    found = find_board(store, spec, None if key is None else whole_key(store, spec, key))
    basis = find_basis(store, spec)
    if basis is None or found is None:
        raise NotFound(f"no leaderboard of {spec.name} in {store.url}: run `soupray soup` first.")
    return found[0], basis, found[1]


def find_board(
    store: Store, spec: SweepSpec, key: str | None = None
) -> tuple[list[Entry], SoupRun | None] | None:
    """Return the entries of a leaderboard, and the run that made it if it is known.

    The newest leaderboard is that of the newest run: while `soup` writes, or after it was killed
    there, the files in the folder of the newest results may be those of two runs.

    Args:
        store: the store.
        spec: the sweep.
        key: of the run, whole; None for the newest one.

    Returns:
        None if there is none.

    Raises:
        CheckpointError: a record is damaged, or the leaderboard lacks an entry that the run names.
    """
    newest = layout.results(spec.name)
    folder = newest if key is None else f"{layout.leaderboards(spec.name)}/{key}"
    run: SoupRun | None = find_record(store, f"{folder}/{RUN}", SoupRun)
    folders = [folder]
    if key is None and run is not None:
        folders.insert(0, f"{layout.leaderboards(spec.name)}/{run.key}")
    for one in folders:
        path = f"{one}/{LEADERBOARD}"
        entries = find_record(store, path, Annotated[list[Entry], Meta(min_length=1)])
        if entries is not None:
            _refuse_damaged(entries, run, f"{path} in {store.url}")
            return entries, run
    return None


def _refuse_damaged(entries: list[Entry], run: SoupRun | None, where: str) -> None:
    names = {e.name for e in entries if e.recipe != "best_single"}
    names |= {"best_single"} if any(e.recipe == "best_single" for e in entries) else set()
    champion = () if run is None else (run.champion.name, run.champion.first)
    if missing := sorted({"best_single", *champion} - names):
        raise CheckpointError(
            f"{where} lacks the entry {missing[0]!r}. It is damaged, or of another version of "
            "soupray. Run `soupray soup` again: it evaluates nothing again."
        )


def recipe_name(entry: str) -> str:
    """Return the name of the recipe file of an entry."""
    return f"{slug(entry)}.recipe.json"


def soup_runs(store: Store, spec: SweepSpec) -> list[SoupRun]:
    """Return all runs of `soup` with leaderboards in the store, the newest last."""
    paths = list_ours(store, layout.leaderboards(spec.name))
    found = [read_record(store, path, SoupRun) for path in paths if path.endswith(f"/{RUN}")]
    return sorted(found, key=lambda run: (run.made, run.key))


def whole_key(store: Store, spec: SweepSpec, key: str) -> str:
    """Return the key of the run that begins with `key`. Raises NotFound if it is not one."""
    known = [run.key for run in soup_runs(store, spec)]
    found = [one for one in known if one.startswith(key)]
    if len(found) != 1:
        shown = ", ".join(one[:SHORT] for one in known) or "none"
        raise NotFound(
            f"{len(found)} runs of soup on {spec.name} begin with {key!r}. There are: {shown} "
            "(`soupray rank --list`)."
        )
    return found[0]
