"""Find the recipe of the model that a user names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from soupray.core.errors import ConfigError
from soupray.reporting.model_folder import RECIPE, is_model_folder
from soupray.reporting.recipe_file import RecipeFile, read_recipe
from soupray.reporting.results import stored_recipe
from soupray.services import embedded
from soupray.services.home import find_sweep
from soupray.services.place import find_place
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.objects import open_store, read_record

CHAMPION = "champion"


class Found(NamedTuple):
    """The recipe of a model, and its model folder. None: the ingredients are in the store."""

    recipe: RecipeFile
    folder: Path | None = None


def find(what: str, home: Path) -> Found:
    """Return the recipe of a model, and the model folder that `what` names, if it names one.

    Args:
        what: as in `find_recipe`. The folder of a registered model is fetched from MLflow.
        home: folder for the state of this machine.

    Raises:
        SouprayError: as `find_recipe`.
    """
    folder = None
    if what.startswith("models:/"):
        from soupray.reporting.mlflow import registered_folder

        cache = home / "cache" / "registered"
        folder = registered_folder(_tracking(home), *_name_of(what), cache)
    elif is_model_folder(Path(what)):
        folder = Path(what).resolve()
    return Found(find_recipe(what if folder is None else str(folder), home), folder)


def find_recipe(what: str, home: Path) -> RecipeFile:
    """Return the recipe of a model.

    Args:
        what: the path of a recipe file or of a model folder, `SWEEP:ENTRY`, `SWEEP@champion`, or
            MLflow's `models:/NAME@ALIAS`. SWEEP is the name of a sweep of this home, or the path of
            a spec.
        home: folder for the state of this machine.

    Raises:
        ConfigError: `what` has none of these forms, or there is no such sweep or file.
        NotFound: the sweep has no leaderboard yet, or no such entry.
        TrackingError: MLflow cannot be reached, or has no such model.
    """
    if what.startswith("models:/"):
        return _registered(what, home)
    if is_model_folder(Path(what)):
        return read_recipe(Path(what) / RECIPE)
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
            f"{what!r} names no model: it is neither a recipe file nor a model folder nor "
            f"SWEEP:ENTRY nor SWEEP@{CHAMPION}, as in digits:greedy and digits@{CHAMPION}."
        )
    return stored_recipe(find_sweep(sweep, home), home, entry)


def _tracking(home: Path) -> str:
    """Return the URL of MLflow: MLFLOW_TRACKING_URI, else that of this home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or embedded.tracker(home)[0]


def _name_of(what: str) -> tuple[str, str]:
    """Return the name of a registered model, and `@ALIAS` or `/VERSION`. Raises ConfigError."""
    found = re.fullmatch(r"models:/([^@/]+)(@[^@/]+|/\d+)", what)
    if found is None:
        raise ConfigError(f"{what!r}: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    return found[1], found[2]


def _registered(what: str, home: Path) -> RecipeFile:
    """Return the recipe of a model in MLflow's registry."""
    from soupray.reporting.mlflow import registered_recipe

    address = registered_recipe(_tracking(home), *_name_of(what))
    storage, mark, rest = (address or "").partition(f"/{layout.SWEEPS}/")
    if not mark:
        raise ConfigError(
            f"{what}: this version was registered by an older soupray, which did not record where "
            "its recipe is. Run `soupray soup` again, or name SWEEP@champion."
        )
    spec = home / "sweeps" / f"{rest.partition('/')[0]}.yaml"
    store = find_place(load(spec), home).open_store() if spec.exists() else open_store(storage)
    recipe: RecipeFile = read_record(store, f"{layout.SWEEPS}/{rest}", RecipeFile)
    return recipe
