"""From records to tracked runs: one for the sweep, one a trial, one a leaderboard entry.

The same metric names everywhere, so that a soup and a trial can be compared side by side; test
and shift metrics are there only after the choice.
"""

from __future__ import annotations

from collections.abc import Mapping

from soupray.ports import TrackedRun
from soupray.records import (
    EpochRecord,
    Ingredient,
    Manifest,
    Outcome,
    Rejected,
    Scores,
)
from soupray.reporting.ranking import Entry, Measured
from soupray.spec import SweepSpec

SHORT = 8
"""Characters of a trial's key in a run's name."""


def sweep_run(spec: SweepSpec, started: float, finished: float | None = None) -> TrackedRun:
    """The parent of all runs of a sweep."""
    return TrackedRun(
        key=spec.name,
        kind="sweep",
        name=f"sweep {spec.name}",
        parent=None,
        params={
            "model": spec.task.model,
            "data": spec.data.kind,
            "trials": str(spec.search.trials),
            "sampler": spec.search.sampler,
            "seed": str(spec.seed),
            "init": spec.init,
        },
        tags={"soupray.spec_digest": spec.digest},
        metrics={},
        curves={},
        started=started,
        finished=finished,
    )


def trial_run(
    spec: SweepSpec, manifest: Manifest, reported: Mapping[str, Scores] | None = None
) -> TrackedRun:
    """A trial; `reported` are its scores on test and shifts, once the soups are chosen."""
    trial = manifest.trial
    metrics: dict[str, float] = {}
    tags = {"soupray.status": "diverged"}
    if isinstance(manifest, Ingredient):
        metrics = {
            "best_epoch": float(manifest.best_epoch),
            **_metrics("held_out", manifest.held_out),
        }
        tags = {
            "soupray.status": "complete",
            "soupray.checkpoint": manifest.checkpoint.path,
            "soupray.init": manifest.init,
        }
        if reported:
            for name, scores in reported.items():
                metrics |= _metrics(name, scores)
            shifts = [s.accuracy for name, s in reported.items() if name.startswith("shift/")]
            if shifts:
                metrics["shift/mean/accuracy"] = sum(shifts) / len(shifts)
    else:
        tags["soupray.reason"] = manifest.reason
    return TrackedRun(
        key=f"{spec.name}/trial/{trial.key}",
        kind="trial",
        name=f"trial {trial.index:02d} {trial.key[:SHORT]}",
        parent=spec.name,
        params={"recipe": "trial", "ingredients": "1", **_params(trial.hparams)},
        tags=tags,
        metrics=metrics,
        curves=_curves(manifest.history),
        started=manifest.started,
        finished=manifest.finished,
        failed=not isinstance(manifest, Ingredient),
    )


def entry_run(
    spec: SweepSpec, entry: Entry, outcome: Outcome, rank: int, when: float
) -> TrackedRun:
    """A leaderboard entry, with the recipe's trace as a curve."""
    metrics = {"rank": float(rank)}
    if entry.shifts:
        metrics["shift/mean/accuracy"] = entry.shift_mean
    metrics |= _measured("held_out", entry.held_out) | _measured("test", entry.test)
    for name, m in entry.shifts.items():
        metrics |= _measured(f"shift/{name}", m)
    metrics["forward_passes_per_sample"] = float(entry.forward_passes_per_sample)
    metrics["size_mb"] = entry.size_bytes / 1e6
    return TrackedRun(
        key=f"{spec.name}/entry/{entry.name}",
        kind="entry",
        name=f"{entry.name}",
        parent=spec.name,
        params={
            "recipe": entry.recipe,
            "ingredients": str(len(entry.ingredients)),
            **_params(entry.options),
        },
        tags={"soupray.candidate": entry.candidate},
        metrics=metrics,
        curves=_trace(outcome),
        started=when,
        finished=when,
    )


def _params(values: Mapping[str, float | int | str]) -> dict[str, str]:
    return {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in values.items()}


def _metrics(name: str, scores: Scores) -> dict[str, float]:
    return {
        f"{name}/accuracy": scores.accuracy,
        f"{name}/nll": scores.nll,
        f"{name}/ece": scores.ece,
    }


def _measured(name: str, m: Measured) -> dict[str, float]:
    return {f"{name}/accuracy": m.accuracy, f"{name}/nll": m.nll, f"{name}/ece": m.ece}


def _curves(history: tuple[EpochRecord, ...]) -> dict[str, tuple[tuple[int, float], ...]]:
    if not history:
        return {}
    return {
        "epoch/train_loss": tuple((e.epoch, e.train_loss) for e in history),
        "epoch/held_out_accuracy": tuple(
            (e.epoch, e.held_out_correct / e.held_out_n) for e in history
        ),
    }


def _trace(outcome: Outcome) -> dict[str, tuple[tuple[int, float], ...]]:
    """Held-out accuracy of what was tried, by step (greedy) or by 100 alpha (WiSE-FT)."""
    steps = [
        (number, step.result.accuracy, step.accepted)
        for number, step in enumerate(outcome.trace)
        if not isinstance(step.result, Rejected)
    ]
    if not steps:
        return {}
    if outcome.recipe == "wise_ft":
        last = len(outcome.trace) - 1
        return {
            "alpha_percent/held_out_accuracy": tuple(
                (round(100 * number / last), accuracy) for number, accuracy, _ in steps
            )
        }
    kept = [(number, accuracy) for number, accuracy, accepted in steps if accepted]
    return {
        "trace/tried_held_out_accuracy": tuple((n, a) for n, a, _ in steps),
        "trace/kept_held_out_accuracy": tuple(kept),
    }
