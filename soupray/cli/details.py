"""One trial, one entry, or a sweep's logs, as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from soupray.cli.console import fitted, headline, number, out, size, tell, wrapped
from soupray.core.names import plain
from soupray.reporting.live import duration, table
from soupray.reporting.notes import p_value, percent

if TYPE_CHECKING:
    from soupray.core.records import Metric
    from soupray.core.trials import EpochRecord, Freed
    from soupray.operations.details import EntryDetail, Part, TrialDetail
    from soupray.operations.logs import Logs
    from soupray.operations.worth import Estimate, TrialWorth
    from soupray.reporting.ranking import Entry, Gain, Measured

LABEL = 12
"""Columns before a fact."""


def fact(label: str, text: str) -> None:
    """A line that begins with what it is about, and is continued below its text."""
    for line in wrapped(f"{label:<{LABEL}}{plain(text)}", " " * LABEL).split("\n"):
        tell(line)


def show_trial(found: TrialDetail) -> None:
    """A trial: scores, weights, hyperparameters, epochs, flags, coefficients, commands."""
    headline(f"trial {found.key}", f"number {found.index} of {found.sweep}: {found.state}")
    if found.reason is not None:
        fact("reason", found.reason)
    if found.held_out is not None:
        fact("held-out", _measured(found.held_out, found.metric))
    if found.reported:
        fact("reported", _shares(found.reported))
    fact("with", ", ".join(f"{n} {number(v)}" for n, v in found.hparams.items()))
    fact("", f"seed {found.seed}, method {found.method}")
    if found.seconds is not None:
        kept = "" if found.best_epoch is None else f", epoch {found.best_epoch} was kept"
        fact("took", f"{duration(found.seconds)}{kept}")
    if found.made_with:
        fact("made with", ", ".join(f"{n} {v}" for n, v in found.made_with.items()))
    if found.weights is not None and found.size_bytes is not None:
        fact("weights", f"{size(found.size_bytes)}, sha256 {found.weights}")
        if found.freed is None:
            fact("file", found.file or "")
        else:
            fact("", f"{_let_go(found.freed)}: `soupray sweep` with keep: all makes them again")
    _flags(found)
    _in_entries(found)
    for command in found.use:
        fact("use it", command)
    _epochs(found.history, found.best_epoch, found.metric)


def _let_go(freed: Freed) -> str:
    return f"let go on {_when(freed.at)} (keep: {freed.keep})"


def _measured(scores: Measured, metric: Metric) -> str:
    from soupray.core.records import SHARES

    chosen = f"{scores.graded} " if scores.graded else ""
    if metric in SHARES[1:]:
        chosen = f"{metric} "
    elif metric not in ("accuracy", scores.graded):
        chosen = f"{metric} {scores.read(metric):.3f}, {chosen}"
    return (
        f"{chosen}{percent(scores.accuracy)} % ± {percent(scores.standard_error)} of {scores.n} "
        f"({percent(scores.low)} to {percent(scores.high)}), NLL {scores.nll:.3f}, "
        f"ECE {scores.ece:.3f}"
    )


def _shares(reported: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {percent(share)} %" for name, share in reported.items())


def _flags(found: TrialDetail) -> None:
    if found.flags is None:
        fact("check", "did not look at this trial: soupray check")
    elif not found.flags:
        fact("check", "found nothing")
    for flag in found.flags or ():
        fact("check", f"{flag.severity}: {flag.what}. {flag.advice}.")


def _in_entries(found: TrialDetail) -> None:
    if found.coefficients:
        shares = found.coefficients.items()
        said = ", ".join(n if c is None else f"{n} {c:.3g}" for n, c in shares)
        fact("in entries", said)


def show_worth(found: TrialWorth) -> None:
    """What a trial is worth: its numbers, what each means, and the answer last."""
    trial, of = found.trial, f"of {found.trials}"
    headline(f"trial {trial.key}", f"number {trial.index} of {trial.sweep}: what it is worth")
    if trial.held_out is not None:
        fact("held-out", _measured(trial.held_out, trial.metric))
    fact("place", f"{found.place} {of} by {trial.metric}, {found.loss_place} by {found.loss}")
    fact("left out", f"{_estimate(found.leave_one_out)}, place {found.leave_one_out.place} {of}")
    fact("Shapley", f"{_estimate(found.shapley)}, place {found.shapley.place} {of}")
    fact("", _how_sure(found))
    _in_entries(trial)
    others = found.entries - len(trial.coefficients)
    if found.entries:
        fact("" if trial.coefficients else "in entries", f"not in {others} of {found.entries}")
    _flags(trial)
    if found.copies:
        fact("copies", ", ".join(found.copies))
    if trial.freed is not None:
        fact("weights", _let_go(trial.freed))
    out.print()
    for meaning in _meanings(found):
        out.print(wrapped(meaning), style="dim")
    out.print()
    out.print(wrapped(found.verdict))


def _estimate(found: Estimate) -> str:
    return f"{found.value:+.3g} ± {found.standard_error:.2g}"


def _how_sure(found: TrialWorth) -> str:
    if found.orders == 0:
        return f"from all {2**found.trials} sets of trials"
    return f"from {found.orders} random orders, which adds ± {found.order_error:.2g}"


def _meanings(found: TrialWorth) -> tuple[str, ...]:
    gain = found.alone - found.ensemble
    unit = " in nats" if found.loss != "squared error" else ""
    return (
        f"left out, Shapley: {found.loss}{unit} on {found.n} held-out samples, ± one standard "
        "error from these samples; positive is good. No model ran: the numbers come from stored "
        "logits, whose mean is the ensemble.",
        f"left out: how much worse the ensemble of all {found.trials} trials is without this one. "
        "It is small where others do the same.",
        "Shapley: how much better an ensemble gets when this trial joins, on average over all "
        f"orders. All trials together have {gain:.3g}: what the ensemble of all "
        f"({found.ensemble:.3g}) gains over a trial drawn at random ({found.alone:.3g}).",
        "in entries: its coefficient; without a number where an entry has no single one.",
    )


def _epochs(history: tuple[EpochRecord, ...], best: int | None, metric: Metric) -> None:
    if not history:
        return
    values = (metric,) if any(e.value is not None for e in history) else ()
    right = ("epoch", "loss", "held-out", *values, "took")
    shown = table(*right, "", right=right)
    for e in history:
        shown.add_row(
            str(e.epoch),
            f"{e.train_loss:.4f}",
            percent(e.held_out_correct / e.held_out_n),
            *([] if not values else [_value(e, metric)]),
            duration(e.seconds),
            "kept" if e.epoch == best else "",
        )
    out.print()
    out.print(shown)
    out.print(
        "loss: of training. held-out: accuracy, recall or a graded metric, in %.", style="dim"
    )


def _value(epoch: EpochRecord, metric: Metric) -> str:
    from soupray.maths.metrics import as_read

    return "" if epoch.value is None else f"{as_read(epoch.value, metric):.3f}"


def show_entry(found: EntryDetail) -> None:
    """An entry: recipe, scores, gains, costs, weights, commands, ingredients."""
    entry = found.entry
    taken = ", the champion" if found.champion else ""
    headline(entry.name, f"{found.place} of {found.entries} entries of {found.sweep}{taken}")
    options = "".join(f", {n} {number(v)}" for n, v in entry.options.items())
    fact("recipe", f"{entry.recipe}{options}")
    ranked = {} if entry.rank is None else {"ranked on": entry.rank}
    for label, scores in {"held-out": entry.held_out, **ranked, "test": entry.test}.items():
        fact(label, _measured(scores, "accuracy"))
    if entry.shifts:
        fact("shifts", f"mean {percent(entry.shift_mean)} %")
    for name, scores in entry.shifts.items():
        fact("", f"{name}: {_measured(scores, 'accuracy')}")
    _gains(entry)
    passes = entry.forward_passes_per_sample
    fact("costs", f"{passes} forward pass{'es' * (passes > 1)} a sample, {size(entry.size_bytes)}")
    if entry.calibrated:
        fact("calibrated", f"temperature {entry.calibrated.temperature:.3g}")
    if found.weights is not None:
        fact("weights", f"sha256 {found.weights}")
    for file in found.files:
        fact("file", file)
    for command in found.use:
        fact("use it", command)
    _parts(found.parts)
    _dial(entry)


def _dial(entry: Entry) -> None:
    """The curve of which a dial chose the entry."""
    from soupray.reporting.dials import dial_table

    if found := dial_table(entry):
        out.print()
        out.print(fitted(found.columns, found.rows, found.numbers, found.least)[0])
        out.print(wrapped(found.meaning), style="dim")


def _gains(entry: Entry) -> None:
    gains = {"test": entry.test_gain, "the shifts": entry.shift_gain}
    for name, gain in gains.items():
        if gain:
            p = entry.test_versus_best_single.p if name == "test" else None
            fact("gain", f"{_gain(gain)} on {name}{'' if p is None else f', p = {p_value(p)}'}")
    if any(gains.values()):
        fact("", "in percentage points over the best single model, with a 95 % interval")


def _gain(gain: Gain) -> str:
    return f"{100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def _parts(parts: tuple[Part, ...]) -> None:
    """The ingredients, with the hyperparameters that differ and fit."""
    names = dict.fromkeys(name for part in parts for name in part.hparams)
    varied = [n for n in names if len({p.hparams[n] for p in parts if n in p.hparams}) > 1]
    columns = ("ingredient", "#", "share", *varied)
    rows = [
        (
            part.name,
            "" if part.index is None else str(part.index),
            "-" if part.coefficient is None else f"{part.coefficient:.3f}",
            *(number(part.hparams.get(name)) for name in varied),
        )
        for part in parts
    ]
    shown, _ = fitted(columns, rows, columns[1:], varied[::-1])
    out.print()
    out.print(shown)


def show_logs(found: Logs) -> None:
    """Who drove, what trials said, and the log files of this machine."""
    if found.driver is None:
        fact("driver", "none yet")
    else:
        beat = "" if found.heard is None else f"; last heartbeat {_when(found.heard)}"
        fact("driver", f"{found.driver}, {'runs now' if found.runs else 'ended'}{beat}")
    for key, reason in found.diverged.items():
        fact("diverged", f"{key}: {reason}")
    for key, reason in found.failed.items():
        fact("failed", f"{key}: {reason}")
    if found.trial is not None and not (found.diverged or found.failed or found.files):
        fact("trial", f"{found.trial} did not fail: soupray show {found.sweep} {found.trial}")
    fact("logs", found.elsewhere)
    for file in found.files:
        tell(f"{file.path}  {size(file.size_bytes)}, {_when(file.written)}")
        for line in file.lines:
            tell(f"  {line}")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
