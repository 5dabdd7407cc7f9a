"""The verbs that look and change nothing: from recipes and rank to check and diagnose."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
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
    named_argument,
    partial_option,
    sort_option,
    spec_argument,
    spec_of,
)

if TYPE_CHECKING:
    from soupray.diagnostics.diagnose import Diagnostics
    from soupray.spec.sweep_spec import SweepSpec

# Imports that take time are made inside the commands: `soupray --help` is instant.


def pairs_option(default: int) -> Callable[[Command], Command]:
    """--pairs."""
    return click.option(
        "--pairs",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Pairs of ingredients to look at, at most; a seeded sample.",
    )


@click.command()
@spec_argument
@home_option
@address_option
@json_option
@partial_option
@pairs_option(8)
def check(
    spec: Path | None, home: Path, address: str | None, as_json: bool, partial: bool, pairs: int
) -> None:
    r"""Say which of SPEC's trials would hurt a soup, and why. Held-out data only.

    Same theta_0, tensors and heads; NaN; duplicates; how far each trial went from theta_0, and in
    which direction; the mean of sampled pairs. Exit status 1 if the pool cannot be averaged.

    \b
    soupray check sweeps/digits.yaml
    soupray check --pairs 20 --json
    """
    from soupray.cli.tables import print_json, show_check
    from soupray.reporting.live import Bars
    from soupray.soup.check import run_check

    _, loaded = load_named(spec, home)
    report = run_check(loaded, home, address, partial=partial, pairs=pairs, show=Bars())
    if as_json:
        print_json(report)
    else:
        show_check(report)
    sys.exit(0 if report.averageable else 1)


@click.command()
@spec_argument
@home_option
@address_option
@json_option
@partial_option
@pairs_option(20)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for diagnostics.json, report.html and the figures. Default: results/NAME.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of standard models' accuracies, for effective robustness. Default: the own trials.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="JSON or CSV that says which answers are right, or how bad mistakes are; several times.",
)
@click.option(
    "--with",
    "others",
    metavar="SPEC",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Another sweep on the same data, whose models are compared with SPEC's; several times.",
)
@click.option("--only", metavar="NAME", multiple=True, help="A measure; several times for several.")
@click.option("--dry-run", is_flag=True, help="Say what each measure would compute, and stop.")
def diagnose(
    spec: Path | None,
    home: Path,
    address: str | None,
    as_json: bool,
    partial: bool,
    pairs: int,
    output: Path | None,
    baseline: Path | None,
    annotations: tuple[Path, ...],
    others: tuple[Path, ...],
    only: tuple[str, ...],
    dry_run: bool,
) -> None:
    r"""Measure how SPEC's models differ, which mistakes remain, and what averaging makes of it.

    The measures of the papers behind soups, on the trials and on the newest leaderboard, whose
    choices are frozen: nothing here chooses. --dry-run lists them with their cost. Writes tables,
    diagnostics.json, figures, and sections of report.html.

    \b
    soupray diagnose sweeps/digits.yaml --dry-run
    soupray diagnose sweeps/digits.yaml
    soupray diagnose digits.yaml --with digits_network.yaml --only families
    soupray diagnose --only pairs --pairs 40 --output results/more
    """
    from soupray.cli.tables import print_json, show_planned
    from soupray.diagnostics.diagnose import Asked, plan_diagnose, read_options, run_diagnose
    from soupray.reporting.live import Bars

    _, loaded = load_named(spec, home)
    options = read_options(pairs, baseline, annotations)
    asked = Asked(only, partial, options, [load_named(other, home)[1] for other in others])
    if dry_run:
        planned = plan_diagnose(loaded, home, asked)
        print_json(planned) if as_json else show_planned(planned)
        return
    folder = output or Path("results") / loaded.name
    folder.mkdir(parents=True, exist_ok=True)  # before the work
    made = run_diagnose(loaded, home, address, asked, Bars())
    _hand_out(made, loaded, home, folder, as_json)


def _hand_out(
    made: Diagnostics, loaded: SweepSpec, home: Path, folder: Path, as_json: bool
) -> None:
    """Write a diagnosis into a folder and print it."""
    from soupray.cli.tables import print_json, show_sections
    from soupray.diagnostics.diagnose import sections_of, write_diagnosis, write_report
    from soupray.reporting.live import say

    files = [*write_diagnosis(made, folder), *write_report(loaded, home, made, folder)]
    print_json(made) if as_json else show_sections(sections_of(made), made.left_out)
    figures = sum(f.suffix == ".svg" for f in files)
    named = [f.name for f in files if f.suffix not in (".svg", ".png")]
    say(f"files: {folder}/ ({', '.join(named)}; {figures} figures as PNG and SVG)")


@click.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes: what each does, its paper, what it costs, what it chooses on."""
    from soupray.cli.tables import show_recipes

    show_recipes(as_json)


@click.command()
@named_argument
@home_option
@json_option
@click.option("--list", "listed", is_flag=True, help="List all runs of soup that are stored.")
@calibrated_option
@columns_option
@sort_option
def rank(
    named: tuple[str, ...],
    home: Path,
    as_json: bool,
    listed: bool,
    calibrated: bool,
    all_columns: bool,
    sort: str | None,
) -> None:
    r"""Print the leaderboard of SPEC's last soup, or of another RUN, from the store alone.

    A RUN is named by the first characters of its key, which --list shows. Two RUNs are shown side
    by side, with paired differences.

    \b
    soupray rank sweeps/digits.yaml --json
    soupray rank --list
    soupray rank 3f9c02ab
    soupray rank 3f9c02ab 77d0e1c4
    """
    from soupray.cli.board import Look, show_calibration, show_leaderboard, with_verdict
    from soupray.cli.tables import print_json, show_compared, show_runs
    from soupray.reporting.history import soup_runs, stored_leaderboard
    from soupray.services.place import find_place

    spec, runs = split_runs(named)
    _, loaded = load_named(spec, home)
    if listed:
        found = soup_runs(find_place(loaded, home).open_store(), loaded)
        print_json(found) if as_json else show_runs(found)
    elif len(runs) == 2:
        from soupray.soup.compare import compare

        both = compare(loaded, home, (runs[0], runs[1]))
        print_json(both) if as_json else show_compared(both)
    else:
        entries, basis, run = stored_leaderboard(loaded, home, *runs)
        champion = run.champion if run else None
        if as_json:
            print_json(with_verdict(entries, basis, champion, loaded))
        else:
            show_leaderboard(entries, basis, loaded, champion, Look(all_columns, sort))
            if calibrated:
                show_calibration(entries)


@click.command()
@click.argument("named", nargs=-1, metavar="[SPEC] [RUN]")
@home_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write. Default: results/NAME/report.html.",
)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
def report(named: tuple[str, ...], home: Path, output: Path | None, opened: bool) -> None:
    r"""Write the report of SPEC's last soup, or of another RUN, from the store alone.

    One HTML file that needs no network: what to take and why, the leaderboard, ID test against
    shifts, what the recipes did, calibration, classes, hyperparameters, where all of it comes
    from. `soupray soup` writes it too.

    \b
    soupray report sweeps/digits.yaml --open
    soupray report 3f9c02ab --output old.html
    """
    from soupray.reporting.live import say
    from soupray.reporting.report import render, stored_board
    from soupray.spec.files import atomic_write

    spec, runs = split_runs(named, most=1)
    _, loaded = load_named(spec, home)
    page = render(stored_board(loaded, home, *runs))
    target = output or Path("results") / loaded.name / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, page.encode())
    say(f"{target} ({len(page) / 1e6:.1f} MB)")
    if opened:
        click.launch(str(target))


def split_runs(named: tuple[str, ...], most: int = 2) -> tuple[Path | None, list[str]]:
    """Return the spec and the keys of runs in the arguments of `rank` and `report`.

    An argument of six or more hexadecimal digits is a run, unless it is a file.

    Args:
        named: the arguments.
        most: number of runs that are allowed.

    Raises:
        click.UsageError: two specs, or too many runs.
    """
    runs = [n for n in named if re.fullmatch("[0-9a-f]{6,32}", n) and not Path(n).exists()]
    specs = [n for n in named if n not in runs]
    if len(specs) > 1 or len(runs) > most:
        raise click.UsageError(
            f"give one SPEC and at most {'one RUN' if most == 1 else 'two RUNs'}, not "
            f"{' '.join(named)}. A RUN is six or more hexadecimal digits (`soupray rank --list`)."
        )
    return (Path(specs[0]) if specs else None), runs


@click.command()
@home_option
@json_option
def sweeps(home: Path, as_json: bool) -> None:
    """List the sweeps of this home: trials, leaderboards, the entry to take."""
    from soupray.cli.tables import print_json, show_sweeps
    from soupray.operations.listing import list_sweeps

    found = list_sweeps(home)
    print_json(found) if as_json else show_sweeps(found, home)


@click.command()
@spec_argument
@home_option
@json_option
@click.option("--sort", help="A hyperparameter. Default: the best on held-out data first.")
def trials(spec: Path | None, home: Path, as_json: bool, sort: str | None) -> None:
    r"""List SPEC's trials: scores, what varies, and their coefficients in the champion.

    \b
    soupray trials sweeps/digits.yaml
    soupray trials sweeps/digits.yaml --sort lr
    """
    from soupray.cli.tables import print_json, show_trials
    from soupray.operations.listing import list_trials

    _, loaded = load_named(spec, home)
    found = list_trials(loaded, home, sort)
    print_json(found) if as_json else show_trials(found, loaded.metric)


@click.command()
@spec_of(required=True)
@click.argument("what", metavar="TRIAL|ENTRY")
@home_option
@json_option
def show(spec: Path, what: str, home: Path, as_json: bool) -> None:
    r"""Show all that is stored of one trial of SPEC, or of one entry of its newest leaderboard.

    A trial is named by its key, its first four or more characters, or its number, as `soupray
    trials` prints them. An entry is named as `soupray rank` prints it.

    \b
    soupray show sweeps/digits.yaml 3
    soupray show sweeps/digits.yaml 1f3a
    soupray show sweeps/digits.yaml 'wise_ft(greedy, best)' --json
    """
    from soupray.cli.details import show_entry, show_trial
    from soupray.cli.tables import print_json
    from soupray.operations.details import TrialDetail, find_detail

    _, loaded = load_named(spec, home)
    found = find_detail(loaded, home, what)
    if as_json:
        print_json(found)
    elif isinstance(found, TrialDetail):
        show_trial(found)
    else:
        show_entry(found)


@click.command()
@spec_of(required=True)
@click.argument("trial")
@home_option
@json_option
def why(spec: Path, trial: str, home: Path, as_json: bool) -> None:
    r"""Say what one TRIAL of SPEC is worth to soups and ensembles, and whether to keep it.

    Leave-one-out and Shapley value in the ensemble of all finished trials, its place among them,
    its coefficient in each entry, copies, what `check` found. From stored held-out logits alone. A
    trial is named as in `soupray show`.

    \b
    soupray why sweeps/digits.yaml 3
    soupray why sweeps/digits.yaml 1f3a --json
    """
    from soupray.cli.details import show_worth
    from soupray.cli.tables import print_json
    from soupray.operations.worth import find_worth

    _, loaded = load_named(spec, home)
    found = find_worth(loaded, home, trial)
    print_json(found) if as_json else show_worth(found)


@click.command()
@spec_argument
@home_option
@json_option
def status(spec: Path | None, home: Path, as_json: bool) -> None:
    r"""Say how SPEC's sweep stands, from the store alone, without Ray.

    Trials done, running (by the driver's heartbeat, at most 15 s old), diverged, failed, missing;
    the best so far; time left; who drives, and how long the lease lasts.

    \b
    soupray status sweeps/digits.yaml
    soupray status sweeps/digits.yaml --json
    """
    from soupray.cli.tables import print_json, show_status
    from soupray.operations.status import find_status

    _, loaded = load_named(spec, home)
    found = find_status(loaded, home)
    if as_json:
        print_json(found)
    else:
        show_status(found)


@click.command()
@spec_argument
@home_option
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    default=5.0,
    show_default=True,
    help="Seconds between two looks.",
)
def watch(spec: Path | None, home: Path, every: float) -> None:
    r"""Show how SPEC's sweep stands, again and again, until nobody drives it.

    What `soupray status` says, and the soup of the trials so far: after each few trials of the plan
    that are over, what a mean of their weights is worth on held-out data. Ctrl-C ends the view, not
    the sweep.

    \b
    soupray watch sweeps/digits.yaml
    """
    import time

    from soupray.cli.tables import show_curve, show_status
    from soupray.operations.status import find_status

    _, loaded = load_named(spec, home)
    while True:
        found = find_status(loaded, home)
        click.clear()
        show_status(found)
        show_curve(found)
        if found.driver is None:
            return
        time.sleep(every)


@click.command()
@spec_of(required=True)
@click.argument("trial", required=False)
@home_option
@json_option
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Lines of each file; 0: only the names of the files.",
)
def logs(spec: Path, trial: str | None, home: Path, as_json: bool, tail: int) -> None:
    r"""Show what SPEC's driver and trials said, or one TRIAL, named as in `soupray show`.

    Why trials diverged or failed, from the store; what their workers printed, if they ran on this
    machine. What a driver prints goes to its standard error; that of a Ray job: `ray job logs`.

    \b
    soupray logs sweeps/digits.yaml
    soupray logs sweeps/digits.yaml 3 --tail 100
    """
    from soupray.cli.details import show_logs
    from soupray.cli.tables import print_json
    from soupray.operations.logs import find_logs

    _, loaded = load_named(spec, home)
    found = find_logs(loaded, home, trial, tail)
    print_json(found) if as_json else show_logs(found)


VERBS = (
    recipes,
    rank,
    report,
    sweeps,
    trials,
    show,
    why,
    status,
    watch,
    logs,
    check,
    diagnose,
)
