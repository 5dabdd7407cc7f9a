"""Where one sweep of the soak is: folder, home, spec and store; and its command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.servers import Servers
from soupray.store.objects import Store, open_store

ROOT = Path(__file__).parent.parent.parent
TRIALS = 6
SMALL = {
    "train_per_class: 20": "train_per_class: 140",  # leaves 197 to test
    "batch_size: 20": "batch_size: 50",
    "held_out: 500": "held_out: 200",
    "[inverted, rotated, noise, low_contrast, thickened]": "[noise]",
    "trials: 16": f"trials: {TRIALS}",
    "epochs: {integer: [5, 15]}": "epochs: {integer: [1, 2]}",
}
LIMITED = SMALL | {
    "seed: 0": "seed: 0\nbudget: {hours: 100}",
    "trials: 16": f"trials: {TRIALS}\n  stop: {{gain: 0.5, probability: 0.5, after: 2}}",
}
"""A stop rule that decides at some prefix, and a budget that is counted and never reached."""

KEPT = 4
KEEPING = SMALL | {"seed: 0": f"seed: 0\nkeep: {{best: {KEPT}}}"}
TIGHTER = SMALL | {"seed: 0": "seed: 0\nkeep: ingredients"}
"""Rules of which weights stay: that of the sweep and its soup, and that of `gc` after them."""

RECIPES = ("--greedy", "--wise-ft")
DISK = "300m"


def spec_text(name: str, tracking: str, edits: dict[str, str]) -> str:
    """The demo's spec with `edits`, on the store of the environment."""
    text = (ROOT / "sweeps" / "digits.yaml").read_text()
    named = {
        "name: digits\n": f"name: {name}\n",
        "storage: embedded": f"storage: s3://soupray/{name}",
        "tracking: embedded": f"tracking: {tracking}",
    }
    for old, new in (named | edits).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk that can be filled, at `folder`; False if none can be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Kind(NamedTuple):
    """A sort of sweep: edits of its spec by phase, and the recipes of its soup."""

    name: str
    edits: dict[str, dict[str, str]]
    recipes: tuple[str, ...]


PLAIN = Kind("plain", {"sweep": SMALL, "soup": SMALL}, (*RECIPES, "--uniform"))
WITH_LIMITS = Kind("limited", {"sweep": LIMITED, "soup": LIMITED}, PLAIN.recipes)
WITH_KEEP = Kind("keep", {"sweep": KEEPING, "soup": KEEPING, "gc": TIGHTER}, RECIPES)
"""Without `uniform`, whose entry needs all weights."""


def kind_of(seed: int) -> Kind:
    """Every third seed has a stop rule and a budget, every third one lets weights go."""
    return (WITH_LIMITS, PLAIN, WITH_KEEP)[seed % 3]


class Place:
    """Folder, home, spec and store of one seed."""

    def __init__(
        self, servers: Servers, name: str, tracked: bool, recipes: tuple[str, ...] = RECIPES
    ) -> None:
        self.servers, self.name, self.tracked = servers, name, tracked
        self.recipes = recipes
        self.folder = servers.folder / name
        self.home, self.output = self.folder / "home", self.folder / "results"
        self.spec = self.folder / "spec.yaml"

    def open_store(self) -> Store:
        """What it stored, without the proxy."""
        return open_store(f"s3://soupray/{self.name}", self.servers.direct)

    def write_spec(self, edits: dict[str, str] = SMALL) -> None:
        """The small sweep, or another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tracking = self.servers.tracker.url if self.tracked else "off"
        self.spec.write_text(spec_text(self.name, tracking, edits))

    def command(self, verb: str) -> list[str]:
        """The command line of a verb."""
        more: tuple[object, ...] = ("--address", self.servers.address)
        if verb == "soup":
            more += (*self.recipes, "--output", self.output)
        if verb in ("publish", "gc"):
            more = ()
        parts = (sys.executable, "-m", "soupray", verb, self.spec, "--home", self.home, *more)
        return list(map(str, parts))

    def start(self, verb: str, log: Path) -> subprocess.Popen[bytes]:
        """The command in a session of its own, all that it says in `log`."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self.command(verb),
                cwd=ROOT,
                env=self.servers.environment,
                start_new_session=True,
                stdout=out,
                stderr=out,
            )

    def leaderboard(self) -> list[dict]:
        """As the last soup wrote it."""
        return json.loads((self.output / "leaderboard.json").read_text())


def complete_rows(place: Place) -> int:
    """Runs in MLflow's database that were written to their end."""
    query = (
        "SELECT COUNT(*) FROM runs JOIN experiments USING (experiment_id) "
        "JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'soupray.digest' "
        "WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'"
    )
    with sqlite3.connect(place.servers.folder / "mlflow.db") as database:
        (count,) = database.execute(query, (place.name,)).fetchone()
    return int(count)
