"""Results as a person reads them."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from soupray.cli.console import fitted, headline, number, out, size, tell, wrapped
from soupray.core.names import plain, plain_json
from soupray.reporting.live import duration, table
from soupray.reporting.notes import p_value, percent

if TYPE_CHECKING:  # `soupray status` has no time to import torch
    from soupray.core.findings import Report
    from soupray.diagnostics.diagnose import Planned
    from soupray.operations.estimate import DryRun, Inputs
    from soupray.operations.listing import SweepRow, TrialRow
    from soupray.operations.measuring import Measured
    from soupray.operations.status import Best, Status
    from soupray.reporting.anytime import Difference
    from soupray.reporting.history import SoupRun
    from soupray.reporting.sections import Section, Table
    from soupray.search.budget import Account
    from soupray.soup.compare import Comparison
    from soupray.spec.sweep_spec import SweepSpec
    from soupray.sweep.run import SweepReport

MOST_ROWS = 200
"""Trials that a plan shows."""


def print_json(record: Any) -> None:
    """A record, or a list of them, on stdout."""
    from soupray.core.records import encode_pretty

    sys.stdout.write(plain_json(encode_pretty(record).decode()))


def show_runs(runs: list[SoupRun]) -> None:
    """The runs of soup, the newest first."""
    right = ("models", "entries")
    columns = ("run", "made", *right, "champion", "recipes")
    rows = []
    for run in reversed(runs):
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.made))
        recipes = ", ".join(
            n for n in run.recipes if n not in ("anchor", "best_single", "update_bn")
        )
        counts = (str(run.ingredients), str(run.entries))
        short = textwrap.shorten(recipes, 30, placeholder=" ...")
        rows.append((run.key[:8], made, *counts, run.champion.name, short))
    out.print(fitted(columns, rows, right, ())[0])


def show_compared(both: Comparison) -> None:
    """The entries of two runs side by side."""
    one, two = (key[:8] for key in both.runs)
    right = (one, two, "difference", "p")
    shown = table("entry", *right, right=right)
    for entry in both.entries:
        scores = ("-" if m is None else percent(m.accuracy) for m in (entry.first, entry.second))
        if entry.same:
            what = ("same model", "")
        elif entry.difference is None or entry.standard_error is None:
            what = ("", "")
        else:
            error = percent(entry.standard_error)
            what = (f"{100 * entry.difference:+.1f} ± {error}", p_value(entry.p))
        shown.add_row(entry.name, *scores, *what)
    out.print(shown)
    graded = {m.graded for e in both.entries for m in (e.first, e.second) if m and m.graded}
    metric, test = (graded.pop(), "permutation") if graded else ("Accuracy", "exact McNemar")
    meaning = (
        f"{metric} on ID test in %. Difference: second minus first, ± one standard error of pairs "
        f"of answers to the same sample. p: {test} test."
    )
    out.print(wrapped(meaning), style="dim")


def show_recipes(as_json: bool) -> None:
    """The list of recipes: what each does, when to use it, its paper and its cost."""
    from soupray.core.plugins import described, installed
    from soupray.recipes import GROUP, RECIPES

    plugins = {n: f"{p.value}, {described(p)}" for n, p in installed(GROUP).items()}
    if as_json:
        rows = [
            {
                "name": r.name,
                "summary": r.summary,
                "when": r.when,
                "paper": r.paper,
                "cost": r.costs,
                "uses": r.uses,
                "passes": r.passes,
                "with_all": r.with_all,
                "options": r.allowed(),
            }
            for r in RECIPES
        ]
        print_json([*rows, *({"name": name, "plugin": at} for name, at in plugins.items())])
        return
    for r in RECIPES:
        flag = "" if r.kind == "baseline" else f"--{r.name.replace('_', '-')}"
        flag += "" if r.with_all else " (not in --all)"
        headline(r.name, r.summary)
        out.print(wrapped(f"    {r.when}", " " * 4))
        costs = f"chooses on {r.uses}; costs {r.costs}; inference {r.passes} forward pass(es)"
        for text in (f"{flag or 'always run':<20} {r.paper}", costs):
            out.print(wrapped(f"    {text}", " " * 6), style="dim")
    for name, at in plugins.items():
        headline(name, f"installed plug-in: {at}; name it in a spec")
    out.print()
    out.print(
        wrapped(
            "Costs are evaluations of one model on the held-out data; K is the number of "
            "ingredients. Options are set in the spec: recipes: {greedy: {accept: gt}}."
        )
    )


def show_plan(
    spec: SweepSpec,
    cost: DryRun,
    as_json: bool,
    measured: Measured | None = None,
    budget: Account | None = None,
) -> None:
    """The trials, and what they cost; how long they take, if it was measured; their budget."""
    from soupray.search.plan import plan

    trials = plan(spec)
    if as_json:
        plain = to_builtins(cost)
        apart = {name: plain.pop(name) for name in ("classes", "inputs", "notes", "weights")}
        more = {} if budget is None else {"budget": budget}
        print_json({"trials": trials, "cost": plain, **apart, "measured": measured, **more})
        return
    names = trials[0].hparams if trials else ()  # a pool of imported models plans none
    varied = [n for n in names if len({t.hparams[n] for t in trials}) > 1]
    columns = ("trial", *varied)
    rows = [(str(t.index), *(number(t.hparams[n]) for n in varied)) for t in trials[:MOST_ROWS]]
    shown, left = fitted(columns, rows, varied, varied[::-1])
    out.print(shown)
    if left:
        out.print(f"--json has {', '.join(left)} too.", style="dim")
    if len(trials) > MOST_ROWS:
        out.print(f"... {len(trials) - MOST_ROWS:,} more trials: --json has them all")
    counts = ("train", "held-out", "test")
    shown = table("class", "in the data", *counts, right=counts)
    for one in cost.classes:
        shown.add_row(one.name, one.source, *map(str, (one.train, one.held_out, one.test)))
    out.print(shown)
    if cost.inputs is not None:
        out.print(_inputs(cost.inputs))
    for file in cost.weights:
        tell(f"weights: {file.path} ({file.field}, {size(file.size_bytes)})")
        tell(f"  sha256 {file.sha256}")
    _show_cost(cost)
    if measured is not None:
        out.print(_measured(measured))
    if budget is not None:
        _show_budget(spec, budget)


def _show_budget(spec: SweepSpec, budget: Account) -> None:
    from soupray.search.budget import in_words

    out.print(wrapped(f"budget: {in_words(budget, spec)}.", "  "))
    if budget.forecast is None:
        out.print(wrapped("No trial ran yet: --measure has a forecast for this machine.", "  "))
    elif budget.will_be_over and not budget.over:
        said = "; ".join(budget.will_be_over)
        out.print(wrapped(f"It will not be enough for all trials ({said}).", "  "))
    if budget.over:
        out.print(wrapped(f"It is spent ({'; '.join(budget.over)}): no trial starts.", "  "))


def _show_cost(cost: DryRun) -> None:
    """What the sweep and its soups cost, in bytes and samples."""
    out.print(f"{cost.trials} trials, {cost.epochs} epochs; {size(cost.stored_bytes)} to be stored")
    out.print(f"soup: {size(cost.soup_stored_bytes)} more at most, mostly logits")
    out.print(f"training         {cost.training_samples:>12,} samples, forward and backward")
    out.print(f"held-out         {cost.held_out_samples:>12,} samples, forward, while training")
    out.print(f"soup, held-out   {cost.soup_held_out_samples:>12,} samples, forward, at most")
    if cost.soup_train_samples:
        out.print(f"soup, training   {cost.soup_train_samples:>12,} samples, forward, at most")
    out.print(f"soup, reporting  {cost.reported_samples:>12,} samples, forward")


def _measured(found: Measured) -> str:
    """What was measured, and the estimates that follow from it."""
    step = ""
    if found.step_seconds is not None:
        step = f"{found.step_seconds:.3g} s a step of {found.batch_size} samples, "
    threads = f", {found.threads} thread{'s' * (found.threads > 1)}"
    said = (
        f"measured: {step}{found.pass_seconds:.3g} s a pass of {found.pass_samples} samples "
        f"({found.device}{threads})",
        f"on this machine, {found.at_a_time} at a time: about {duration(found.sweep_seconds)} for "
        f"the trials, {duration(found.soup_seconds)} for the soups of the spec; more where they "
        "share cores, and for the start of Ray and decoding",
    )
    return "\n".join(wrapped(line, "  ") for line in said)


def _inputs(inputs: Inputs) -> str:
    """How images become inputs, in a line or two."""
    height, width = inputs.size
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (inputs.mean, inputs.std))
    said = [f"inputs: {height} x {width} pixels, mean {mean}, std {std}"]
    if inputs.decoded is not None:
        side = "both sides" if inputs.resize == "squash" else "short side"
        cut = f", centre {inputs.crop:g} of it" if inputs.crop < 1 else ""
        said.append(f"images: {side} to {inputs.decoded}{cut}, {inputs.interpolation}")
        if (inputs.decoded, inputs.decoded) != (height, width):
            said.append(f"images: resized once more, to {height} x {width} (data.size differs)")
    return "\n".join(wrapped(line, "  ") for line in said)


def show_sweeps(rows: list[SweepRow], home: Path) -> None:
    """The sweeps of a home."""
    if not rows:
        out.print(f"no sweep ran with the home {home}.")
        return
    right = ("trials", "soups")
    shown = table("sweep", *right, "take", right=right)
    for row in rows:
        if row.problem is not None:
            shown.add_row(row.name, "", "", textwrap.shorten(row.problem, 160, placeholder=" ..."))
            continue
        take = "" if row.champion is None else f"{row.name}@champion: {row.champion}"
        shown.add_row(row.name, f"{row.complete} of {row.trials}", str(row.soups), take)
    out.print(shown)


def show_trials(rows: list[TrialRow], metric: str = "accuracy") -> None:
    """The trials of a sweep: as many hyperparameters that vary as fit 80 columns.

    Args:
        rows: the trials.
        metric: of the spec; if it is no share of right samples or graded, the table has it too.
    """
    from soupray.core.records import SHARES

    values: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.hparams.items():
            values.setdefault(name, set()).add(value)
    varied = [name for name, found in values.items() if len(found) > 1]
    shares = ("share",) if any(row.share is not None for row in rows) else ()
    graded = {row.graded for row in rows if row.graded}
    own = () if metric in (*SHARES, *graded) else (metric.rpartition(":")[2],)
    columns = ("#", "trial", *own, "held-out", "epoch", *shares, *varied)
    words = {name for name in varied if any(isinstance(value, str) for value in values[name])}
    right = [c for c in columns if c not in words and c != "trial"]
    cells = [
        (
            "" if row.index is None else str(row.index),
            row.key,
            *(("" if row.score is None else f"{row.score:.3f}",) if own else ()),
            row.state if row.accuracy is None else _with_error(row.accuracy, row.standard_error),
            "" if row.best_epoch is None else str(row.best_epoch),
            *(("" if row.share is None else f"{row.share:.2f}",) if shares else ()),
            *(number(row.hparams.get(name)) for name in varied),
        )
        for row in rows
    ]
    shown, left = fitted(columns, cells, right, varied[::-1])
    out.print(shown)
    score = (*graded, metric if metric in SHARES else "accuracy")[0].rpartition(":")[2]
    meaning = f"held-out: {score} in %, ± one standard error. epoch: the one that was kept."
    meaning += " share: coefficient in the champion." if shares else ""
    meaning += f" --json has {', '.join(left)} too." if left else ""
    out.print(wrapped(meaning), style="dim")


def _with_error(share: float, error: float | None) -> str:
    return f"{percent(share)} ± {percent(error or 0.0)}"


def best_trial(best: Best) -> str:
    """The best trial so far, in words."""
    same = best.metric == "accuracy" or best.score == best.accuracy  # graded: its mean
    score = "" if same else f"{best.metric} {best.score:.3f}, "
    return (
        f"best so far: {best.key}, {score}{percent(best.accuracy)} % on {best.n} held-out samples"
    )


def describe_sweep(report: SweepReport) -> str:
    """One line for the person at the terminal."""
    stopped = f"{report.stopped} stopped, " if report.stopped else ""
    spent = f" Budget: {report.budget}." if report.budget else ""
    stopped += f"{report.spared} not needed, " if report.spared else ""
    return (
        f"sweep {report.sweep}: {report.trained} trained, {report.found} found in the store, "
        f"{report.diverged} diverged, {stopped}{len(report.failed)} failed; took "
        f"{duration(report.seconds)}.{spent}"
    )


def show_check(report: Report) -> None:
    """The ingredients, what was found, and the verdict last, where it is looked for."""
    rows = report.ingredients
    rates = ("lr",) if all("lr" in row.hparams for row in rows) else ()
    right = (*rates, "held-out", "distance", "° best", "° others", "with best")
    finds = ("found",) if any(row.finds for row in rows) else ()
    cells = [
        (
            row.trial[:8],
            *(number(row.hparams[name]) for name in rates),
            _with_error(row.held_out, row.standard_error),
            _or_dash(row.distance, "#.3g"),
            _or_dash(row.angle_best, ".0f"),
            _or_dash(row.angle_others, ".0f"),
            "-" if row.with_best is None else percent(row.with_best),
            *([", ".join(kind.replace("_", " ") for kind in row.finds)] if finds else ()),
        )
        for row in rows
    ]
    shown, _ = fitted(("trial", *right, *finds), cells, right, rates)
    out.print(shown)
    out.print(
        f"held-out: accuracy, recall or a graded metric in % (n = {report.n}), ± one standard "
        "error. distance: from theta_0, |theta_i - theta_0|. °: angle between the ways that two "
        "trials went from theta_0, to the best trial and to the others (median). with best: the "
        "same of the mean of its weights and the best trial's, if sampled.",
        style="dim",
    )
    out.print()
    for finding in report.findings:
        out.print(f"{finding.severity}: {finding.what}. {finding.advice}.")
    out.print()
    for sentence in report.verdict:
        out.print(sentence)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


MOST_SHOWN = 24
"""Rows of a table that a terminal shows of a measure; the report and --json have all."""


def show_sections(sections: list[Section], left_out: dict[str, str]) -> None:
    """What was measured: what the numbers of each measure say, then its tables."""
    for section in sections:
        headline(section.name, section.title)
        for sentence in section.sentences:
            out.print(wrapped(sentence))
        out.print()
        for one in section.tables:
            _show_table(one)
    for name, why in left_out.items():
        out.print(wrapped(f"{name} is left out: {why}.", "  "))


def _show_table(one: Table) -> None:
    shown, left = fitted(one.columns, one.rows[:MOST_SHOWN], one.numbers, one.least)
    out.print(shown)
    hidden = len(one.rows) - MOST_SHOWN
    meaning = f"{hidden} more rows are in the report. {one.meaning}" if hidden > 0 else one.meaning
    meaning += f" The report has {', '.join(left)} too." if left else ""
    out.print(wrapped(meaning), style="dim")
    out.print()


def show_planned(planned: list[Planned]) -> None:
    """What a diagnosis would compute."""
    numbers = ("passes", "samples")
    rows = [
        (p.name, "-", "-", p.left_out)
        if p.left_out is not None
        else (p.name, str(p.passes), f"{p.samples:,}", "stored" if p.stored else p.summary)
        for p in planned
    ]
    out.print(fitted(("measure", *numbers, "what"), rows, numbers, ())[0])
    meaning = (
        "passes: runs of one model over a split, or a part of it, that are not stored yet. "
        "samples: forward passes of one sample in all of these, at most."
    )
    out.print(wrapped(meaning), style="dim")


def show_status(found: Status) -> None:
    """How a sweep stands, in a few lines and a table of what runs."""
    counts = {
        "diverged": found.diverged,
        "stopped": found.stopped,
        "running": len(found.running),
        "failed": len(found.failed),
        "missing": found.missing,
        "not needed": found.spared,
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    done = f"{found.complete} of {found.trials} trials done"
    tell(f"{found.sweep} in {found.storage}")
    out.print(f"{done}{', ' if said else ''}{said}.")
    if found.best is not None:
        out.print(f"{best_trial(found.best)}.")
    if found.budget:
        out.print(wrapped(f"budget: {found.budget}."))
    for line in soup_so_far(found):
        out.print(wrapped(line))
    if found.driver is None or found.lease_expires is None:
        out.print("nobody drives it.")
    else:
        lease = f"its lease lasts {duration(found.lease_expires - time.time())} if not renewed"
        left = "" if found.seconds_left is None else f"; {duration(found.seconds_left)} left"
        out.print(wrapped(f"driver: {found.driver}, {lease}{left}."))
    for work in found.others:
        doing = f"{work.doing}: {100 * work.share:.0f} %, " if work.doing else ""
        since = duration(time.time() - work.since)
        out.print(wrapped(f"{work.name}: {doing}since {since}."))
    if found.running:
        shown = table("running", "epoch", "since", right=("epoch", "since"))
        for one in found.running:
            shown.add_row(one.key, f"{one.epoch}/{one.epochs}", duration(time.time() - one.since))
        out.print(shown)
    for key, reason in found.failed.items():
        out.print(wrapped(f"failed: {key}: {plain(reason)}"))


def show_curve(found: Status) -> None:
    """The soup against the number of trials; nothing before the first soup."""
    if not found.soup:
        return
    right = ("trials", "best single", "uniform", "greedy", "ensemble", "gain", "added")
    shown = table(*right, right=right)
    for point in found.soup:
        shown.add_row(
            str(point.trials),
            *(
                "-" if value is None else _value(value, found)
                for value in (point.best, point.uniform, point.greedy, point.ensemble)
            ),
            _points(point.gain) if point.gain else "-",
            _points(point.added) if point.added else "-",
        )
    out.print(shown)
    out.print(
        wrapped(
            f"{_unit(found)} on held-out data. uniform: mean of all weights; greedy: of those that "
            "lower the loss of their ensemble, the mean of outputs. gain: of greedy over the best "
            "single model, in points; added: by the trials since the last soup; with standard "
            "errors, paired by sample. -: not measured, as soups take at most 2 % of the time of "
            "training."
        )
    )


def soup_so_far(found: Status) -> list[str]:
    """Return what the soup of the first trials is worth, and whether these are enough."""
    from soupray.search.prefixes import enough_said

    said = []
    measured = [(point, point.greedy) for point in found.soup if point.greedy is not None]
    if measured:
        last, greedy = measured[-1]
        gain = f", {_points(last.gain)} points over the best single" if last.gain else ""
        said.append(
            f"greedy soup of the first {last.trials} trials: {_value(greedy, found, ' %')} "
            f"held-out{gain}."
        )
        if last.added:
            before = measured[-2][0].trials
            said.append(
                f"the last {last.trials - before} of them added {_points(last.added)} points "
                "(± standard error)."
            )
    if found.enough is not None:
        said.append(f"{enough_said(found.enough)} (search.stop).")
    return said


def _unit(found: Status) -> str:
    """The metric by which trials are compared, and its unit if it has one."""
    from soupray.maths.metrics import SHARES

    metric = found.best.metric if found.best else ""
    said = f"{metric} in %" if metric in SHARES else metric
    return said[:1].upper() + said[1:]


def _value(value: float, found: Status, unit: str = "") -> str:
    """A score of the metric by which trials are compared: a share in %."""
    return f"{percent(value)}{unit}" if _unit(found).endswith("%") else f"{value:.4f}"


def _points(difference: Difference) -> str:
    """A difference of shares, in points."""
    return f"{100 * difference.difference:+.1f} ± {100 * difference.standard_error:.1f}"
