"""The verbs that run the two jobs: sweep, soup; and demo, which runs both."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soupray.cli.options import (
    Command,
    address_option,
    calibrated_option,
    columns_option,
    home_option,
    json_option,
    load_named,
    partial_option,
    sort_option,
    spec_argument,
    specs_argument,
)
from soupray.core.hyperparameters import TABLE as HYPERPARAMETERS
from soupray.core.hyperparameters import Hyperparameter

if TYPE_CHECKING:
    from soupray.operations.estimate import DryRun
    from soupray.operations.measuring import Measured
    from soupray.search.budget import Account
    from soupray.spec.sweep_spec import SweepSpec

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command()
@spec_argument
@home_option
@address_option
@json_option
@click.option("--dry-run", "dry", is_flag=True, help="Print the plan and its cost; do nothing.")
@click.option(
    "--measure",
    is_flag=True,
    help="With --dry-run: train one step on this machine, and say how long all would take here.",
)
def sweep(
    spec: Path | None, home: Path, address: str | None, as_json: bool, dry: bool, measure: bool
) -> None:
    r"""Train the unfinished part of SPEC's plan with Ray Tune.

    \b
    soupray sweep sweeps/digits.yaml --dry-run
    soupray sweep sweeps/digits.yaml --dry-run --measure
    soupray sweep sweeps/digits.yaml
    ray job submit --working-dir . -- python -m soupray.sweep sweeps/digits.yaml

    The hyperparameters of search.space, with default and range, are listed below.
    """
    if measure and not dry:
        raise click.UsageError("--measure goes with --dry-run: a sweep shows its time left itself.")
    path, loaded = load_named(spec, home)
    if dry:
        _dry_run(loaded, home, as_json, measure)
        return
    from soupray.cli.tables import describe_sweep, print_json
    from soupray.reporting.live import Bars, say
    from soupray.sweep.run import check_report, run_sweep

    report = run_sweep(loaded, home, address, Bars(), file=path)
    if as_json:
        print_json(report)
    say(describe_sweep(report))
    check_report(report)
    if not as_json:
        _show_best(loaded, home)
    check = f"soupray check {path}, which reads the weights"
    say(f"Next: {check}; soupray soup {path} --all; soupray ui {path}.")


BEST = 5
"""Trials that the end of a sweep lists."""


def _show_best(spec: SweepSpec, home: Path) -> None:
    """The best trials, and what is odd about the pool as far as records alone can say.

    Angles and barriers need the weights. `soup` looks at the angles before it starts; `check` at
    both. Here it would be a second start of Ray: 20 s after 55 s of four trials of 3 MB.
    """
    from soupray.cli.tables import show_trials
    from soupray.core.trials import pool_of
    from soupray.operations.listing import list_trials
    from soupray.reporting.live import say
    from soupray.search.state import find_state
    from soupray.services.place import find_place
    from soupray.soup.findings import from_records

    show_trials(list_trials(spec, home)[:BEST], spec.metric)
    state = find_state(find_place(spec, home).open_store(), spec)
    if state is not None and state.ingredients:
        for finding in from_records(pool_of(state.basis, state.ingredients)):
            say(f"{finding.severity}: {finding.what}. {finding.advice}.")


def _dry_run(spec: SweepSpec, home: Path, as_json: bool, measure: bool) -> None:
    """Print the plan, its cost and, if it is to be measured, its time."""
    from soupray.cli.tables import show_plan
    from soupray.operations.estimate import dry_run
    from soupray.reporting.live import say

    if spec.teacher is not None:
        from soupray.sweep.teacher import find_teacher

        teacher = find_teacher(spec, home)
        assert teacher is not None, "the spec names one"
        say(f"teacher: {teacher.entry}; each training sample costs {teacher.passes} of its passes.")
    cost, measured = dry_run(spec), None
    if measure:
        from soupray.operations.measuring import measure as take

        say("training one step ...")
        measured = take(spec, cost)
    show_plan(spec, cost, as_json, measured, _forecast(spec, home, cost, measured))


def _forecast(
    spec: SweepSpec, home: Path, cost: DryRun, measured: Measured | None
) -> Account | None:
    """What the sweep will cost of its budget, if it has one."""
    if spec.budget is None:
        return None
    from soupray.operations.forecast import forecast

    return forecast(spec, home, cost, measured)


def _recipe_flags(command: Command) -> Command:
    """A flag for each recipe in the table."""
    from soupray.recipes import RECIPES

    for recipe in reversed([r for r in RECIPES if r.kind != "baseline"]):
        flag = f"--{recipe.name.replace('_', '-')}"
        command = click.option(
            flag, is_flag=True, help=f"{recipe.summary[0].upper()}{recipe.summary[1:]}."
        )(command)
    return command


@click.command()
@specs_argument
@home_option
@address_option
@json_option
@_recipe_flags
@click.option("--all", "everything", is_flag=True, help="All recipes; a few need their flags, too.")
@partial_option
@click.option("--yes", is_flag=True, help="However much a recipe has to read.")
@calibrated_option
@columns_option
@sort_option
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
    calibrated: bool,
    all_columns: bool,
    sort: str | None,
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
    from soupray.cli.board import Look, show_calibration, show_leaderboard, with_verdict
    from soupray.cli.tables import print_json
    from soupray.operations.retention import after_soup
    from soupray.reporting.live import Bars, say
    from soupray.reporting.results import finish_soup
    from soupray.soup.run import Allowed, chosen_recipes, joint, run_soup

    loaded = [load_named(spec, home)[1] for spec in specs or (None,)]
    recipes = chosen_recipes(loaded, [name for name, on in flags.items() if on], everything)
    shown = joint(loaded)
    folder = output or Path("results") / shown.name
    folder.mkdir(parents=True, exist_ok=True)  # before anything is computed
    result = run_soup(loaded, home, address, recipes, Allowed(partial, yes), Bars())
    files = finish_soup(result, shown, home, folder)
    if as_json:
        print_json(with_verdict(result.entries, result.basis, result.champion, shown))
    else:
        look = Look(all_columns, sort)
        show_leaderboard(result.entries, result.basis, shown, result.champion, look)
        if calibrated:
            show_calibration(result.entries)
    say(f"files: {folder}/ ({', '.join(f.name for f in files)})")
    after_soup(loaded, home)


@click.command()
@home_option
@click.pass_context
def demo(context: click.Context, home: Path) -> None:
    """Sweep and soup the demo: a small CLIP, 200 images of handwriting, 16 trials.

    It takes some minutes on two cores, and needs no GPU, no account and no download. The results
    are in results/digits: open report.html.
    """
    from soupray.operations.demo import prepare_demo

    path, recipes = prepare_demo(home)
    context.invoke(sweep, spec=path, home=home)
    context.invoke(soup, specs=(path,), home=home, **dict.fromkeys(recipes, True))


def _in_columns(h: Hyperparameter) -> str:
    """A hyperparameter with default, range and meaning: 78 columns, as click indents it by two."""
    default = "needed" if h.default is None else f"{h.default:g}"
    before = f"{h.name:<16} {default:<7}{f'{h.low:g} to {h.high:.7g}':<16} "
    return textwrap.fill(f"{before}{h.meaning}", 78, subsequent_indent=" " * len(before))


sweep.epilog = "\b\n" + "\n".join(map(_in_columns, HYPERPARAMETERS))

VERBS = (demo, sweep, soup)
