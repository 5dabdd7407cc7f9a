"""What many verbs of the command line take: SPEC, --home, --address, --json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from soupray.spec.files import path_of

if TYPE_CHECKING:
    from soupray.spec.sweep_spec import SweepSpec

Command = Callable[..., None]


def _specs(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """YAML files and folders: what a shell offers for SPEC."""
    folder, _, name = begun.rpartition("/")
    with suppress(OSError):
        found = sorted(Path(folder or ("/" if begun.startswith("/") else ".")).iterdir())
        before = f"{folder}/" if "/" in begun else ""
        return [
            CompletionItem(f"{before}{path.name}{'/' if path.is_dir() else ''}")
            for path in found
            if path.name.startswith(name)
            and (path.suffix in (".yaml", ".yml") or path.is_dir())
            and (name or not path.name.startswith("."))
        ]
    return []


def _models(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """The champions of this home's sweeps, and files: what a shell offers for WHAT."""
    home = Path(ctx.params.get("home") or _default_home())
    known = (f"{path.stem}@champion" for path in sorted((home / "sweeps").glob("*.yaml")))
    files = CompletionItem(begun, type="file")
    return [*(CompletionItem(one) for one in known if one.startswith(begun)), files]


def spec_of(required: bool) -> Callable[[Command], Command]:
    """SPEC, which a shell completes."""
    return click.argument(
        "spec", required=required, type=click.Path(path_type=Path), shell_complete=_specs
    )


spec_argument = spec_of(required=False)
specs_argument = click.argument(
    "specs", nargs=-1, metavar="[SPEC]...", type=click.Path(path_type=Path), shell_complete=_specs
)
named_argument = click.argument("named", nargs=-1, metavar="[SPEC] [RUN]...", shell_complete=_specs)
what_argument = click.argument("what", shell_complete=_models)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
address_option = click.option(
    "--address", help="Ray cluster; default: RAY_ADDRESS, else Ray is started on this machine."
)
calibrated_option = click.option(
    "--calibrated", is_flag=True, help="Show NLL and ECE before and after temperature scaling."
)
columns_option = click.option(
    "--all-columns", is_flag=True, help="Show all columns, however wide the terminal is."
)
SORTS = ("held-out", "test", "shifts", "nll", "ece", "passes", "size", "name")
sort_option = click.option("--sort", type=click.Choice(SORTS), help="Default: by rank.")
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
    """The spec, named on stderr if its path was not given."""
    from soupray.services.home import load_spec

    path, loaded, said = load_spec(spec, home)
    if path != spec:
        from soupray.core.names import indented

        click.echo(indented(said), err=True)
    return path, loaded
