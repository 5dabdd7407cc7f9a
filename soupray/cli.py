"""The command line: `soupray VERB`. Parses, calls one function, prints; exit status 0, 1 or 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soupray import __version__, exchanging, inspecting, operating
from soupray.core.errors import ConfigError, SouprayError
from soupray.options import Command
from soupray.options import address_option as _address
from soupray.options import home_option as _home
from soupray.options import json_option as _json
from soupray.options import load_named as _load
from soupray.options import partial_option as _partial
from soupray.options import spec_argument as _spec

if TYPE_CHECKING:
    from soupray.reporting.results import SoupResult
    from soupray.spec.sweep_spec import SweepSpec

# Imports that take time are made inside the commands: `soupray --help` is instant.


class _Group(click.Group):
    """Turns our errors into one message and a status: 2 for spec and usage, else 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SouprayError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except OSError as error:  # of this machine's disk: the store's are ours by now
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="soupray")
def cli(debug: bool) -> None:
    r"""Hyperparameter sweeps on Ray whose trials become model soups.

    \b
    soupray sweep sweeps/digits.yaml     train the trials; run again to go on
    soupray check sweeps/digits.yaml     which trials would hurt a soup, and why
    soupray soup sweeps/digits.yaml      average them, rank on held-out data
    soupray ui                           compare everything in MLflow

    SPEC may be left out: SOUPRAY_SPEC, else the newest sweep of this home, else
    sweeps/digits.yaml.
    """


@cli.command()
@_spec
@_home
@_address
@_json
@click.option("--dry-run", "dry", is_flag=True, help="Print the plan and its cost; do nothing.")
def sweep(spec: Path | None, home: Path, address: str | None, as_json: bool, dry: bool) -> None:
    r"""Train the unfinished part of SPEC's plan with Ray Tune.

    \b
    soupray sweep sweeps/digits.yaml --dry-run
    soupray sweep sweeps/digits.yaml
    ray job submit --working-dir . -- python -m soupray.sweep sweeps/digits.yaml
    """
    path, loaded = _load(spec, home)
    if dry:
        from soupray.estimate import dry_run
        from soupray.tables import show_plan

        show_plan(loaded, dry_run(loaded), as_json)
        return
    from soupray.console import say
    from soupray.sweep.run import check_report, describe, run_sweep
    from soupray.tables import print_json

    report = run_sweep(path, loaded, home, address)
    if as_json:
        print_json(report)
    say(describe(report))
    check_report(report)


def _recipe_flags(command: Command) -> Command:
    """A flag for each recipe in the table."""
    from soupray.recipes import TABLE

    for recipe in reversed([r for r in TABLE.values() if not r.baseline]):
        flag = f"--{recipe.name.replace('_', '-')}"
        command = click.option(
            flag, is_flag=True, help=f"{recipe.summary[0].upper()}{recipe.summary[1:]}."
        )(command)
    return command


@cli.command()
@click.argument("specs", nargs=-1, metavar="[SPEC]...", type=click.Path(path_type=Path))
@_home
@_address
@_json
@_recipe_flags
@click.option("--all", "everything", is_flag=True, help="All recipes.")
@_partial
@click.option("--yes", is_flag=True, help="However much a recipe has to read.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for leaderboard, figures, soup. Default: results/NAME.",
)
def soup(
    specs: tuple[Path, ...],
    home: Path,
    address: str | None,
    as_json: bool,
    everything: bool,
    partial: bool,
    yes: bool,
    output: Path | None,
    **flags: bool,
) -> None:
    r"""Average SPEC's trials, choose on held-out data, report on test and shifts.

    Without recipe flags, the recipes that SPEC lists. `soupray recipes` has papers, costs, options.

    Several SPECs on the same data are one pool for ensembles, whatever their models are.

    \b
    soupray soup sweeps/digits.yaml --greedy --wise-ft
    soupray soup --all
    soupray soup clip.yaml resnet.yaml --greedy-ensemble
    """
    from soupray.soup.run import chosen_recipes, joint, run_soup

    loaded = [_load(spec, home)[1] for spec in specs or (None,)]
    recipes = chosen_recipes(loaded, [name for name, on in flags.items() if on], everything)
    shown = joint(loaded)
    folder = output or Path("results") / shown.name
    folder.mkdir(parents=True, exist_ok=True)  # before anything is computed
    result = run_soup(loaded, home, address, recipes, partial=partial, yes=yes)
    _finish(result, shown, folder, as_json)


def _finish(result: SoupResult, spec: SweepSpec, output: Path, as_json: bool) -> None:
    """Files first, then the tracker, which may fail; the table last, where it is looked for."""
    from soupray.console import say
    from soupray.core.errors import TrackingError
    from soupray.reporting.results import publish_soup, write_results
    from soupray.tables import print_json, show_leaderboard

    files = write_results(result, spec, output)
    if result.services.tracking_url is not None:
        try:
            publish_soup(result, spec, files)
        except TrackingError as error:
            say(f"note: {error}. Nothing is lost: `soupray publish` completes the index.")
    if as_json:
        print_json(result.entries)
    else:
        show_leaderboard(result.entries, result.basis, spec)
    say(f"files: {output}/ ({', '.join(f.name for f in files)})")


@cli.command()
@_spec
@_home
@click.option("--output", type=click.Path(path_type=Path, file_okay=False))
def pull(spec: Path | None, home: Path, output: Path | None) -> None:
    """Fetch SPEC's results from the store: leaderboard, figures, recipes, the soup."""
    from soupray.reporting.results import pull as fetch

    _, loaded = _load(spec, home)
    folder = output or Path("results") / loaded.name
    for path in fetch(loaded, home, folder):
        click.echo(str(path))


@cli.command()
@_spec
@_home
def publish(spec: Path | None, home: Path) -> None:
    """Complete MLflow from the store. Running it twice changes nothing."""
    from soupray.reporting.results import publish as index

    _, loaded = _load(spec, home)
    if loaded.tracking == "off":
        raise ConfigError(f"{loaded.name} has `tracking: off`: there is nothing to publish to.")
    click.echo(f"{index(loaded, home)} runs of {loaded.name} are in the tracker.")


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_home
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: beside RECIPE."
)
def rebuild(recipe: Path, home: Path, output: Path | None) -> None:
    r"""Make the weights of RECIPE again, byte for byte.

    \b
    soupray rebuild results/digits/greedy.recipe.json
    """
    from soupray.reporting.recipe_file import read_recipe, spec_of
    from soupray.reporting.recipe_file import rebuild as make
    from soupray.services.place import start_services

    read = read_recipe(recipe)
    target = output or recipe.with_name(recipe.name.removesuffix(".recipe.json") + ".safetensors")
    sha256 = make(read, start_services(spec_of(read), home).place, target)
    same = "the same bytes as recorded" if read.sha256 else "no digest was recorded for it"
    click.echo(f"{target}  sha256 {sha256} ({same})")


@cli.command()
@_home
def up(home: Path) -> None:
    """Start this home's S3 store, or find the running one."""
    from soupray.services import embedded

    running = embedded.up(home)
    click.echo(f"store {running.endpoint} ({running.storage_url}), tracker {running.tracking_url}")


@cli.command()
@_home
def down(home: Path) -> None:
    """Stop everything that was started for this home. What is stored stays."""
    from soupray.services import embedded

    click.echo("stopped." if embedded.down(home) else "nothing was running.")


@cli.command()
@_home
@click.option("--port", type=int, help="Default: a free one.")
def ui(home: Path, port: int | None) -> None:
    """Start MLflow's UI for this home, or find the running one."""
    from soupray.services import embedded

    click.echo(embedded.ui(home, port))


@cli.command()
@_spec
@_home
@_json
def doctor(spec: Path | None, home: Path, as_json: bool) -> None:
    """Check store, credentials, MLflow, Ray and GPUs; exit status 1 when something is wrong."""
    from soupray.doctor import examine
    from soupray.tables import print_json

    _, loaded = _load(spec, home)
    checks = []
    for check in examine(loaded, home):
        checks.append(check)
        if not as_json:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.what:<12} {check.seen}")
    if as_json:
        print_json(checks)
    sys.exit(0 if all(c.ok for c in checks) else 1)


cli.add_command(exchanging.import_)
cli.add_command(exchanging.export)
cli.add_command(inspecting.recipes)
cli.add_command(inspecting.rank)
cli.add_command(inspecting.status)
cli.add_command(inspecting.check)
cli.add_command(inspecting.diagnose)
cli.add_command(operating.gc)
cli.add_command(operating.cluster)


# Click's mark for lines that stay as they are is this character, which a docstring spells out.
for _verb in (cli, *cli.commands.values(), *operating.cluster.commands.values()):
    _verb.help = (_verb.help or "").replace(r"\b", "\b")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `soupray` and of `python -m soupray.sweep`."""
    cli(args=arguments, prog_name="soupray")


if __name__ == "__main__":
    main()
