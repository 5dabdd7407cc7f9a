"""Files that a spec names: a path, or a path inside an installed Python package."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from urllib.parse import urlsplit

from soupray.core.errors import ConfigError
from soupray.core.names import inside
from soupray.spec.files import path_of
from soupray.spec.preprocessing import ASSETS

PACKAGED, LOCAL, PACKAGE = "soupray:", "local-dir:", "package:"
"""Before the name of a model of soupray, of a folder in open_clip's layout, of a Python package."""


def local_path(named: str) -> Path:
    """The path of a file or folder that a spec names. It need not exist.

    `~` and `package:NAME/PATH` are resolved. The package is located without an import, so that no
    code of it runs.

    Raises:
        ConfigError: the package is not installed, or the path leads out of it.
    """
    if not named.startswith(PACKAGE):
        return path_of(named, "task or init")
    name, _, rest = named.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{named!r}: the Python package {name!r} is not installed here. Install it with pip, "
            "or name a folder."
        )
    if not rest or ".." in Path(rest).parts or Path(rest).is_absolute():
        raise ConfigError(
            f"{named!r}: write {PACKAGE}NAME/PATH, with a path inside the package {name!r}."
        )
    return Path(next(iter(found.submodule_search_locations))) / rest


def clip_folder(model: str) -> Path | None:
    """The folder in open_clip's layout that `model` names. None: it names an architecture.

    Raises:
        ConfigError: the folder has no open_clip_config.json.
        CheckpointError: the name leads out of the models of this package.
    """
    if model.startswith(PACKAGED):
        folder = inside(ASSETS, model.removeprefix(PACKAGED))
    elif model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
    else:
        return None
    if not (folder / "open_clip_config.json").exists():
        raise ConfigError(
            f"task.model = {model!r}: {folder} has no open_clip_config.json. Name a folder in "
            "open_clip's local-dir layout, an architecture, or soupray:digits."
        )
    return folder


def not_reached(error: BaseException, instead: str) -> str | None:
    """A message for the user if `error` means that the hub of Hugging Face was not reached.

    The libraries wrap the error of huggingface_hub in their own. It is found by its name in the
    chain of causes.

    Args:
        error: the error of a library.
        instead: what the user can name in the spec in place of a model on the hub.

    Returns:
        The cause and the remedies, or None for any other error.
    """
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    if not any(type(link).__name__ == "LocalEntryNotFoundError" for link in chain):
        return None
    # The address of a mirror may contain a user and a password: they are not shown.
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host = hub.netloc.rpartition("@")[2]
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    offline = asked.upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them
    kept = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    why = "is not used with HF_HUB_OFFLINE" if offline else f"was not reached ({chain[-1]})"
    return (
        f"it is not in {kept} (HF_HOME), and {host} {why}. Name {instead}, or copy HF_HOME from a "
        "machine that has the model, or set HF_ENDPOINT to a mirror that this machine reaches."
    )
