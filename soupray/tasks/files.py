"""Files that a spec names: a path, or one inside an installed Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from soupray.errors import ConfigError

PACKAGE = "package:"


def local_path(named: str) -> Path:
    """The path that `named` is, `~` and `package:NAME/PATH` resolved; it may not exist.

    The package is found, not imported: no code of it runs.

    Raises:
        ConfigError: the package is not installed, or the path leads out of it.
    """
    if not named.startswith(PACKAGE):
        return Path(named).expanduser()
    name, _, inside = named.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{named!r}: the Python package {name!r} is not installed here. Install it with pip, "
            "or name a folder."
        )
    if not inside or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ConfigError(
            f"{named!r}: write {PACKAGE}NAME/PATH, with a path inside the package {name!r}."
        )
    return Path(next(iter(found.submodule_search_locations))) / inside
