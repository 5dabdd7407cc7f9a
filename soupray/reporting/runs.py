"""Turn records into runs of the tracker: the sweep, its trials and its leaderboard entries.

All runs use the same metric names, so that soups and trials can be compared. Test and shift metrics
exist only after the recipes have chosen. MLflow's pages group metrics by the part before the slash
and show the first names first; therefore names start with the measure, as in `accuracy/test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from soupray.core.candidates import Outcome
from soupray.core.findings import Finding
from soupray.core.names import slug
from soupray.core.ports import CURRENT, TrackedRun
from soupray.core.records import Metric, Rejected, Scores
from soupray.core.trials import EpochRecord, Ingredient, Manifest, Trial
from soupray.maths.metrics import as_read
from soupray.reporting.anytime import curves
from soupray.reporting.champion import Champion
from soupray.reporting.ranking import Entry, Measured, measured, shift_mean
from soupray.reporting.verdict import verdict
from soupray.search.plan import plan
from soupray.search.prefixes import Prefix
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout

SHORT = 8
"""Number of characters that are shown of the keys of trials and leaderboards."""


MOST_ROWS = 12
"""Entries that the note of a sweep lists."""


class Board(NamedTuple):
    """The newest leaderboard of a sweep, best entry first, and the entry to take."""

    entries: list[Entry]
    champion: Champion


def sweep_run(
    spec: SweepSpec,
    started: float,
    finished: float | None = None,
    board: Board | None = None,
    prefixes: Sequence[Prefix] = (),
) -> TrackedRun:
    """Return the run of a sweep, which is the parent of its other runs.

    Args:
        spec: the sweep.
        started: seconds since the epoch.
        finished: seconds since the epoch; None while the sweep runs.
        board: the newest leaderboard; None before the first soup.
        prefixes: what the first trials were worth, the smallest number first.
    """
    verdict_ = board and verdict(board.entries, board.champion, spec.name, spec.metric)
    return TrackedRun(
        key=spec.name,
        kind="sweep",
        name=f"sweep {spec.name}",
        parent=None,
        params={
            **{k: str(v) for k, v in _first(spec).items() if k not in _varied(spec)},
            "model": spec.task.model,
            "data": spec.data.kind,
            "trials": str(spec.search.trials),
            "sampler": spec.search.sampler,
            "seed": str(spec.seed),
            "init": spec.init_name,
        },
        tags={"soupray.spec_digest": spec.digest, CURRENT: "yes"},
        metrics=_of_board(board) if board else {},
        curves=curves(prefixes, spec.metric),
        started=started,
        finished=finished,
        note=_note(board, verdict_.lines) if board and verdict_ else "",
    )


def _of_board(board: Board) -> dict[str, float]:
    """Return the champion's and the best single model's numbers, under the names of all runs."""
    champion = next(e for e in board.entries if e.name == board.champion.name)
    best = next(e for e in board.entries if e.recipe == "best_single")
    metrics = comparable(champion.held_out, champion.test, champion.shifts) | gains(champion)
    metrics |= {f"best_single/{k}": v for k, v in comparable(best.held_out, best.test, {}).items()}
    metrics["entries"] = float(len(board.entries))
    return metrics


def _note(board: Board, lines: tuple[str, ...]) -> str:
    """Return the verdict and the first entries, as Markdown."""
    rows = ["| # | entry | test % | shifts % | passes |", "|---:|---|---:|---:|---:|"]
    for place, e in enumerate(board.entries[:MOST_ROWS], 1):
        name = f"**{e.name}**" if e.name == board.champion.name else e.name
        shifts = f"{100 * e.shift_mean:.1f}" if e.shifts else ""
        rows.append(
            f"| {place} | {name} | {100 * e.test.accuracy:.1f} | {shifts} | "
            f"{e.forward_passes_per_sample} |"
        )
    left = len(board.entries) - MOST_ROWS
    more = f"\n\nand {left} more: expand this run." if left > 0 else ""
    return "\n\n".join(lines) + "\n\n" + "\n".join(rows) + more


def gains(entry: Entry) -> dict[str, float]:
    """Return the differences of an entry to the best single model, as metrics."""
    found = {"gain/test": entry.test_gain, "gain/shift_mean": entry.shift_gain}
    return {name: gain.difference for name, gain in found.items() if gain}


def trial_run(
    spec: SweepSpec,
    manifest: Manifest,
    test: Scores | None = None,
    shifts: Mapping[str, Scores] | None = None,
    entries: Sequence[Entry] = (),
) -> TrackedRun:
    """Return the run of a trial.

    Args:
        spec: the sweep.
        manifest: the record of the trial.
        test: scores on ID test, after the soups are chosen.
        shifts: scores by shift, after the soups are chosen.
        entries: the leaderboard; the run has the coefficient that each soup gives the trial.
    """
    trial = manifest.trial
    metrics: dict[str, float] = {}
    tags = {"soupray.status": "diverged"}
    if isinstance(manifest, Ingredient):
        reported = {name: measured(scores) for name, scores in (shifts or {}).items()}
        after = measured(test) if test is not None else None
        metrics = comparable(measured(manifest.held_out), after, reported)
        metrics["best_epoch"] = float(manifest.best_epoch)
        metrics |= _coefficients(trial.key, entries)
        tags = {
            "soupray.status": "complete",
            "soupray.checkpoint": layout.weights(manifest.checkpoint.sha256),
            "soupray.init": manifest.init,
        }
    else:
        tags["soupray.reason"] = manifest.reason
    run = live_run(spec, trial, manifest.history, manifest.started, ended=manifest.finished)
    failed = not isinstance(manifest, Ingredient)
    return msgspec.structs.replace(run, tags=run.tags | tags, metrics=metrics, failed=failed)


def live_run(
    spec: SweepSpec,
    trial: Trial,
    history: Sequence[EpochRecord],
    started: float,
    ended: float | None = None,
) -> TrackedRun:
    """Return the run of a trial that has no manifest yet: its hyperparameters and its curves.

    Args:
        spec: the sweep.
        trial: the trial.
        history: the epochs up to now.
        started: seconds since the epoch.
        ended: the same, of a trial that does not run any more; None while it runs.
    """
    shown = set(trial.hparams) if trial.method == "imported" else _varied(spec)
    hparams = {f"trial.{k}": v for k, v in trial.hparams.items() if k in shown}
    return TrackedRun(
        key=f"{spec.name}/trial/{trial.key}",
        kind="trial",
        name=f"trial {trial.index:02d} {trial.key[:SHORT]}",
        parent=spec.name,
        params={"ingredients": "1", "recipe": "trial", **_params(hparams)},
        tags={CURRENT: "yes"},
        metrics={},
        curves=_curves(history, trial.metric),
        started=started,
        finished=ended,
        failed=ended is not None,
    )


def with_flags(run: TrackedRun, findings: Sequence[Finding]) -> TrackedRun:
    """Return the run of a trial with what `soupray check` found of it, as its note.

    Args:
        run: the run; it stays as it is if it is not one of a trial.
        findings: of the last check.
    """
    own = [f for f in findings if run.kind == "trial" and run.key.rpartition("/")[2] in f.trials]
    note = "\n\n".join(f"{f.severity}: {f.what}. {f.advice}." for f in own)
    return msgspec.structs.replace(run, note=note) if own else run


def with_currency(run: TrackedRun, newest: bool) -> TrackedRun:
    """Return a run that says whether it is of the newest leaderboard; trials always are.

    Args:
        run: the run, as it was stored when its leaderboard was made.
        newest: whether no leaderboard was made later.
    """
    current = "yes" if newest or run.kind != "entry" else "no"
    return msgspec.structs.replace(run, tags=run.tags | {CURRENT: current})


def _coefficients(trial: str, entries: Sequence[Entry]) -> dict[str, float]:
    """Return the coefficient of a trial in each soup: 0 if the trial is not in it."""
    found = {}
    for e in entries:
        if len(e.ingredients) > 1 and len(e.coefficients) == len(e.ingredients):
            share = dict(zip(e.ingredients, e.coefficients, strict=True)).get(trial, 0.0)
            found[f"coefficient/{slug(e.name)}"] = share
    return found


def entry_key(spec: SweepSpec, board: str, name: str) -> str:
    """Return the key of a leaderboard entry in the tracker.

    Args:
        spec: the sweep.
        board: key of the leaderboard.
        name: of the entry.
    """
    return f"{spec.name}/entry/{board[:SHORT]}/{name}"


def entry_run(
    spec: SweepSpec, board: str, entry: Entry, outcome: Outcome, rank: int, when: float
) -> TrackedRun:
    """Return the run of a leaderboard entry, with the trace of the recipe as a curve.

    Args:
        spec: the sweep.
        board: key of the leaderboard.
        entry: the entry.
        outcome: what the recipe chose.
        rank: place on the leaderboard, from 1.
        when: seconds since the epoch.
    """
    metrics = comparable(entry.held_out, entry.test, entry.shifts)
    if entry.rank is not None:
        metrics["accuracy/rank"] = entry.rank.accuracy
    if entry.calibrated:
        after = entry.calibrated
        metrics |= {"nll/test_calibrated": after.test_nll, "ece/test_calibrated": after.test_ece}
        metrics["temperature"] = after.temperature
    metrics |= gains(entry)
    if entry.test_versus_best_single.p is not None:
        metrics["p/test"] = entry.test_versus_best_single.p
    metrics["rank"] = float(rank)
    metrics["forward_passes_per_sample"] = float(entry.forward_passes_per_sample)
    metrics["size_mb"] = entry.size_bytes / 1e6
    options = {f"recipe.{k}": v for k, v in entry.options.items()}
    return TrackedRun(
        key=entry_key(spec, board, entry.name),
        kind="entry",
        name=entry.name,
        parent=spec.name,
        params={
            "ingredients": str(len(entry.ingredients)),
            "recipe": entry.recipe,
            **_params(options),
        },
        tags={
            "soupray.candidate": entry.candidate,
            "soupray.leaderboard": board[:SHORT],
            CURRENT: "yes",
        },
        metrics=metrics,
        curves=_trace(outcome),
        started=when,
        finished=when,
        note=f"Place {rank} of the leaderboard. Made of {len(entry.ingredients)}:",
        links=_ingredients(spec, entry),
    )


def _ingredients(spec: SweepSpec, entry: Entry) -> tuple[tuple[str, str], ...]:
    """Return each ingredient with its coefficient, and the key of its run."""
    several = len(entry.coefficients) == len(entry.ingredients) > 1
    shares = entry.coefficients if several else [None] * len(entry.ingredients)
    return tuple(
        (name if share is None else f"{share:.3g} of {name}", f"{spec.name}/trial/{name}")
        for name, share in zip(entry.ingredients, shares, strict=True)
    )


def comparable(
    held_out: Measured, test: Measured | None, shifts: Mapping[str, Measured]
) -> dict[str, float]:
    """Return the metrics that all trials and entries have, under the same names."""
    metrics: dict[str, float] = {}
    for name, m in (("held_out", held_out), ("test", test)):
        if m is not None:
            metrics |= {f"accuracy/{name}": m.accuracy, f"nll/{name}": m.nll, f"ece/{name}": m.ece}
    if shifts:
        metrics["accuracy/shift_mean"] = shift_mean(shifts)
    return metrics | {f"accuracy/shift_{name}": m.accuracy for name, m in shifts.items()}


def _first(spec: SweepSpec) -> dict[str, float | int | str]:
    """Return the hyperparameters of the first trial; empty if all models are imported."""
    trials = plan(spec)
    return trials[0].hparams if trials else {}


def _varied(spec: SweepSpec) -> set[str]:
    """Return the names of the hyperparameters that differ between trials."""
    trials = plan(spec)
    return {n for n in _first(spec) if len({t.hparams[n] for t in trials}) > 1}


def _params(values: Mapping[str, float | int | str]) -> dict[str, str]:
    return {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in values.items()}


def _curves(
    history: Sequence[EpochRecord], metric: Metric | msgspec.UnsetType
) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return curves by epoch: training loss, held-out accuracy, and the metric if it is another."""
    if not history:
        return {}
    held_out = tuple((e.epoch, e.held_out_correct / e.held_out_n) for e in history)
    curves = {
        "epoch/train_loss": tuple((e.epoch, e.train_loss) for e in history),
        "epoch/held_out_accuracy": held_out,
    }
    if metric:
        values = tuple((e.epoch, as_read(e.rank, metric)) for e in history)
        curves[f"epoch/held_out_{metric}"] = values
    return curves


def alphas_of(outcome: Outcome) -> list[float]:
    """Return the alpha of each point of a line, from the coefficient of the anchor.

    The coefficient falls from 1 at the anchor to the coefficient that theta_1 itself has.
    """
    points = [step.candidate for step in outcome.trace]
    anchor = points[0].checkpoints[0]
    shares = [dict(zip(p.checkpoints, p.coefficients, strict=True)).get(anchor, 0) for p in points]
    return [(1 - share) / (1 - shares[-1]) for share in shares]


def _trace(outcome: Outcome) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return the held-out accuracy of what was tried, by step or (WiSE-FT) by 100 alpha."""
    steps = [
        (number, step.result.accuracy, step.accepted)
        for number, step in enumerate(outcome.trace)
        if not isinstance(step.result, Rejected)
    ]
    if not steps:
        return {}
    if outcome.recipe == "wise_ft":
        return {
            "alpha_percent/held_out_accuracy": tuple(
                (round(100 * alpha), accuracy)
                for alpha, (_, accuracy, _) in zip(alphas_of(outcome), steps, strict=True)
            )
        }
    kept = [(number, accuracy) for number, accuracy, accepted in steps if accepted]
    return {
        "trace/tried_held_out_accuracy": tuple((n, a) for n, a, _ in steps),
        "trace/kept_held_out_accuracy": tuple(kept),
    }
