"""Find the home folder and the spec of a command, without heavy imports."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from soupray.core.errors import ConfigError
from soupray.spec.files import atomic_write, path_of

if TYPE_CHECKING:
    from soupray.spec.sweep_spec import SweepSpec

DEMO = "sweeps/digits.yaml"


def default_home() -> Path:
    """Return SOUPRAY_HOME, or ~/.local/share/soupray; never the working directory."""
    return Path(os.environ.get("SOUPRAY_HOME") or "~/.local/share/soupray").expanduser().resolve()


def home_at(named: str | Path | None) -> Path:
    """Return the home that is named, or the default home.

    Args:
        named: a folder, with `~` for the user's; None for the default home.

    Raises:
        ConfigError: no folder can have this name.
    """
    return default_home() if named is None else path_of(str(named), "home").resolve()


def node_home() -> Path:
    """Return the home of a node that only runs workers: SOUPRAY_HOME, or a temporary folder.

    Raises:
        ConfigError: the temporary folder belongs to another user.
    """
    if os.environ.get("SOUPRAY_HOME"):
        return default_home()
    home = Path(tempfile.gettempdir(), f"soupray-{os.getuid()}")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise ConfigError(f"{home} belongs to another user. Set SOUPRAY_HOME on every node.")
    return home


def find_spec(given: Path | None, home: Path) -> tuple[Path, str]:
    """Return the path of the spec and the reason for this choice.

    The order is: the argument, SOUPRAY_SPEC, the newest sweep of this home, the demo.

    Args:
        given: path on the command line, or the name of a sweep of this home; None: neither.
        home: folder for the state of this machine.

    Raises:
        ConfigError: there is no spec.
    """
    if given is not None:
        kept = home / "sweeps" / f"{given}.yaml"
        if given.parent == Path() and not given.exists() and kept.exists():
            return kept, f"the sweep {given} of this home"
        return given, "given"
    named = os.environ.get("SOUPRAY_SPEC")
    if named:
        return Path(named), "from SOUPRAY_SPEC"
    swept = sorted((home / "sweeps").glob("*.yaml"), key=lambda p: p.stat().st_mtime)
    if swept:
        return swept[-1], "the newest sweep of this home"
    if demo := find_demo():
        return demo, "the demo"
    raise ConfigError(f"no spec given, and {DEMO} is not here. Name one: soupray sweep SPEC.")


def find_demo() -> Path | None:
    """Return the path of the demo's spec: in this folder, a checkout, or an installed package."""
    package = Path(__file__).parent.parent
    for folder in (Path.cwd(), package.parent, package):
        if (folder / DEMO).exists():
            return folder / DEMO
    return None


def remember_spec(spec: SweepSpec, home: Path, file: Path | None) -> None:
    """Keep a copy of the spec in the home, as its newest sweep.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        file: of the spec; None if it was made in code.
    """
    copy = home / "sweeps" / f"{spec.name}.yaml"
    if file is None:  # JSON is YAML, and leaves nothing to guess: "1e-3" in quotes is a text
        atomic_write(copy, spec.model_dump_json(indent=2, exclude_unset=True).encode())
    elif file.resolve() != copy.resolve():
        atomic_write(copy, file.read_bytes())
    else:
        os.utime(copy)


def load_spec(given: Path | None, home: Path) -> tuple[Path, SweepSpec, str]:
    """Return the path of the spec, the spec, and a line of text that says which spec it is."""
    from soupray.spec.sweep_spec import load

    path, why = find_spec(given, home)
    spec = load(path, memory=home / "libraries")
    return path, spec, f"spec: {path} ({why})"


def find_sweep(name: str, home: Path) -> SweepSpec:
    """Return the spec of a sweep. Raises ConfigError if there is none.

    Args:
        name: of a sweep of this home, or the path of a spec.
        home: folder for the state of this machine.
    """
    from soupray.spec.sweep_spec import load

    if Path(name).is_file():
        return load(Path(name))
    known = {path.stem: path for path in (home / "sweeps").glob("*.yaml")}
    if name not in known:
        raise ConfigError(
            f"no sweep {name!r} in the home {home}. It has: {', '.join(sorted(known)) or 'none'}. "
            "Name another --home, or write the path of a spec in place of the name."
        )
    return load(known[name])
