"""What many verbs of the command line take: SPEC, --home, --address, --json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soupray.spec.files import path_of

if TYPE_CHECKING:
    from soupray.spec.sweep_spec import SweepSpec

Command = Callable[..., None]
spec_argument = click.argument("spec", required=False, type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
address_option = click.option(
    "--address", help="Ray cluster; default: RAY_ADDRESS, else Ray is started on this machine."
)
calibrated_option = click.option(
    "--calibrated", is_flag=True, help="Show NLL and ECE before and after temperature scaling."
)
partial_option = click.option(
    "--partial", is_flag=True, help="Go on without the trials that are missing."
)


def _default_home() -> Path:
    from soupray.services.home import default_home

    return default_home()


def home_option(command: Command) -> Command:
    """--home, which every command takes."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=_default_home,
        callback=lambda ctx, param, value: path_of(str(value), "--home").resolve(),
        help="State of this machine: embedded servers, caches. "
        "Default: SOUPRAY_HOME, else ~/.local/share/soupray.",
    )(command)


def load_named(spec: Path | None, home: Path) -> tuple[Path, SweepSpec]:
    """The spec, named on stderr if it was not given."""
    from soupray.services.home import load_spec

    path, loaded, said = load_spec(spec, home)
    if spec is None:
        from soupray.core.names import indented

        click.echo(indented(said), err=True)
    return path, loaded
