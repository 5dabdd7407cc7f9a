"""Find the recipe of the model that a user names."""

from __future__ import annotations

from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.reporting.recipe_file import RecipeFile, read_recipe
from soupray.reporting.results import stored_recipe
from soupray.spec.sweep_spec import SweepSpec, load

CHAMPION = "champion"


def find_recipe(what: str, home: Path) -> RecipeFile:
    """Return the recipe of a model.

    Args:
        what: the path of a recipe file, `SWEEP:ENTRY`, or `SWEEP@champion`. SWEEP is the name of a
            sweep of this home, or the path of a spec.
        home: folder for the state of this machine.

    Raises:
        ConfigError: `what` has none of these forms, or there is no such sweep or file.
        NotFound: the sweep has no leaderboard yet, or no such entry.
    """
    if what.endswith(".recipe.json") or Path(what).is_file():
        return read_recipe(Path(what))
    sweep, mark, alias = what.rpartition("@")
    if mark:
        if alias != CHAMPION:
            raise ConfigError(f"{what!r}: the only alias is {CHAMPION}: {sweep}@{CHAMPION}.")
        return stored_recipe(find_sweep(sweep, home), home, None)
    sweep, mark, entry = what.rpartition(":")
    if not mark:
        raise ConfigError(
            f"{what!r} names no model: it is neither a recipe file nor SWEEP:ENTRY nor "
            f"SWEEP@{CHAMPION}, as in digits:greedy and digits@{CHAMPION}."
        )
    return stored_recipe(find_sweep(sweep, home), home, entry)


def find_sweep(name: str, home: Path) -> SweepSpec:
    """Return the spec of a sweep. Raises ConfigError if there is none.

    Args:
        name: of a sweep of this home, or the path of a spec.
        home: folder for the state of this machine.
    """
    if Path(name).is_file():
        return load(Path(name))
    known = {path.stem: path for path in (home / "sweeps").glob("*.yaml")}
    if name not in known:
        raise ConfigError(
            f"no sweep {name!r} in the home {home}. It has: {', '.join(sorted(known)) or 'none'}. "
            "Name another --home, or write the path of a spec in place of the name."
        )
    return load(known[name])
