"""Which spec, which home, which store: what an entry point settles before it does anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from soupray import stack
from soupray.checkpoints import atomic_write
from soupray.errors import ConfigError
from soupray.spec import SweepSpec, load
from soupray.wiring import Place

DEMO = "sweeps/digits.yaml"


class Settled(NamedTuple):
    """Where this sweep's things are: the place of the store, and the tracker."""

    place: Place
    tracking_url: str | None
    artifacts: str | None


def default_home() -> Path:
    """SOUPRAY_HOME, else ~/.local/share/soupray. Never the working directory."""
    return Path(os.environ.get("SOUPRAY_HOME") or "~/.local/share/soupray").expanduser().resolve()


def find_spec(given: Path | None, home: Path) -> tuple[Path, str]:
    """The spec's file, and why this one.

    The argument, else SOUPRAY_SPEC, else the newest sweep of this home, else the demo.
    """
    if given is not None:
        return given, "given"
    named = os.environ.get("SOUPRAY_SPEC")
    if named:
        return Path(named), "from SOUPRAY_SPEC"
    swept = sorted((home / "sweeps").glob("*.yaml"), key=lambda p: p.stat().st_mtime)
    if swept:
        return swept[-1], "the newest sweep of this home"
    for folder in (Path.cwd(), Path(__file__).parent.parent, Path(__file__).parent):
        if (folder / DEMO).exists():
            return folder / DEMO, "the demo"
    raise ConfigError(f"no spec given, and {DEMO} is not here. Name one: soupray sweep SPEC.")


def remember_spec(spec_path: Path, spec: SweepSpec, home: Path) -> None:
    """Keep a copy of the spec, as the newest sweep of this home."""
    copy = home / "sweeps" / f"{spec.name}.yaml"
    text = spec_path.read_bytes()
    if spec_path.resolve() != copy.resolve():
        atomic_write(copy, text)
    else:
        os.utime(copy)


def settle(spec: SweepSpec, home: Path) -> Settled:
    """Start what is embedded, and say where everything is.

    Raises:
        ConfigError: the embedded store is not installed.
        StoreUnavailable: it does not start.
    """
    place = Place(storage=spec.storage, credentials=None, cache=str(home / "cache"))
    tracking, artifacts = spec.tracking, None
    if "embedded" in (spec.storage, spec.tracking):
        running = stack.up(home)
        if spec.storage == "embedded":
            place = Place(
                storage=running.storage_url,
                credentials=str(home / "stack" / "stack.json"),
                cache=str(home / "cache"),
            )
        if spec.tracking == "embedded":
            tracking, artifacts = running.tracking_url, f"{running.artifacts_url}/{spec.name}"
    return Settled(place, None if tracking == "off" else tracking, artifacts)


def load_spec(given: Path | None, home: Path) -> tuple[Path, SweepSpec, str]:
    """The spec with its path, and a line that says which it is."""
    path, why = find_spec(given, home)
    spec = load(path)
    return path, spec, f"spec: {path} ({why})"
