"""The leaderboards in the store, the newest one and that of every run of `soup`; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from soupray.core.errors import NotFound
from soupray.core.names import slug
from soupray.core.records import Basis, Record
from soupray.recipes import Wanted
from soupray.reporting.ranking import Champion, Entry
from soupray.search.state import find_basis
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.objects import Store, find_record, list_ours, read_record

LEADERBOARD, RUN, RUNS = "leaderboard.json", "run.json", "runs.json"

SHORT = 8
"""Number of characters of a run's key that a message lists."""


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
    made: float
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
    """
    store = find_place(spec, home).open_store()
    folder = layout.results(spec.name)
    if key is not None:
        folder = f"{layout.leaderboards(spec.name)}/{whole_key(store, spec, key)}"
    basis = find_basis(store, spec)
    path = f"{folder}/{LEADERBOARD}"
    entries = find_record(store, path, Annotated[list[Entry], Meta(min_length=1)])
    if basis is None or entries is None:
        raise NotFound(f"no leaderboard of {spec.name} in {store.url}: run `soupray soup` first.")
    return entries, basis, find_record(store, f"{folder}/{RUN}", SoupRun)


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
