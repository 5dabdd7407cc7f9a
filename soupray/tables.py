"""Results as a person reads them: tables of at most 100 columns."""

from __future__ import annotations

import sys
from typing import Any

from soupray.console import out, size, table
from soupray.estimate import DryRun
from soupray.plan import plan
from soupray.records import Basis
from soupray.reporting.ranking import Entry
from soupray.spec import SweepSpec


def print_json(record: Any) -> None:
    """A record, or a list of them, on stdout."""
    from soupray.results import encode_pretty

    sys.stdout.write(encode_pretty(record).decode())


def show_leaderboard(entries: list[Entry], basis: Basis) -> None:
    """Best first, and what the columns mean."""
    right = ("models", "held-out ± s.e.", "test", "95 % interval", "p", "shifts", "passes", "MB")
    shown = table("#", "entry", *right, right=right)
    for rank, e in enumerate(entries, 1):
        shown.add_row(
            str(rank),
            e.name,
            str(len(e.ingredients)),
            f"{_percent(e.held_out.accuracy)} ± {_percent(e.held_out.standard_error)}",
            _percent(e.test.accuracy),
            f"{_percent(e.test.low)} - {_percent(e.test.high)}",
            "" if e.recipe == "best_single" else _p_value(e.test_versus_best_single.p),
            _percent(e.shift_mean) if e.shifts else "-",
            str(e.forward_passes_per_sample),
            f"{e.size_bytes / 1e6:.{4 if e.size_bytes < 1e10 else 5}g}",
        )
    out.print(shown)
    held_out, test = basis.split("held_out").size, basis.split("test").size
    shifts = ", ".join(s.name for s in basis.reported if s.role == "shift") or "none"
    out.print(
        f"Ranked on held-out data (n = {held_out}), which also chose the models: its scores are "
        f"optimistic.\nTest (n = {test}) and shifts (mean over {shifts}) were\nevaluated once, "
        "after the choice. p: exact McNemar test against best_single on test.\n"
        "Accuracies are in %.",
        style="dim",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def show_plan(spec: SweepSpec, cost: DryRun, as_json: bool) -> None:
    """The trials, and what they cost."""
    trials = plan(spec)
    if as_json:
        print_json({"trials": trials, "cost": cost})
        return
    varied = [n for n in trials[0].hparams if len({t.hparams[n] for t in trials}) > 1]
    shown = table("trial", *varied, right=tuple(varied))
    for trial in trials:
        values = [trial.hparams[n] for n in varied]
        shown.add_row(
            str(trial.index), *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        )
    out.print(shown)
    out.print(f"{cost.trials} trials, {cost.epochs} epochs; {size(cost.stored_bytes)} to be stored")
    out.print(f"training         {cost.training_samples:>12,} samples, forward and backward")
    out.print(f"held-out         {cost.held_out_samples:>12,} samples, forward, while training")
    out.print(f"soup, held-out   {cost.soup_held_out_samples:>12,} samples, forward, at most")
    out.print(f"soup, reporting  {cost.reported_samples:>12,} samples, forward")
