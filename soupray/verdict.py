"""The verdict of a pre-flight, in plain words: which ingredients hurt, and what greedy will do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soupray.core.records import CheckpointRef, Pool, Record
from soupray.maths.geometry import angles, interpolation_advantage, norms, paired_difference
from soupray.preflight import (
    ERRORS,
    Facts,
    Finding,
    Middle,
    alike,
    below_init,
    blocked,
    broken,
    left_out,
    median_angles,
    misplaced,
)


class Row(Record, frozen=True, kw_only=True):
    """An ingredient: its held-out accuracy, its distance |theta_i - theta_0|, angles in degrees.

    `angle_others` is the median to the other ingredients; `with_best` the held-out accuracy of its
    mean with the best one. None: not measured, or no direction. `finds`: kinds of its findings.
    """

    trial: str
    hparams: dict[str, float | int | str]
    held_out: float
    standard_error: float
    distance: float | None
    angle_best: float | None
    angle_others: float | None
    with_best: float | None
    finds: tuple[str, ...]


class Pair(Record, frozen=True, kw_only=True):
    """Two ingredients and the mean of their weights, on held-out data."""

    trials: tuple[str, str]
    ends: tuple[float, float]
    middle: float
    advantage: float


class Report(Record, frozen=True, kw_only=True):
    """What a pre-flight found. `verdict` is one sentence or two each."""

    averageable: bool
    init: CheckpointRef
    n: int
    verdict: tuple[str, ...]
    findings: tuple[Finding, ...]
    ingredients: tuple[Row, ...]
    pairs: tuple[Pair, ...]


def judged(pool: Pool, facts: Facts) -> list[Finding]:
    """All findings, errors first."""
    found = broken(pool, facts.defects) + alike(pool)
    if facts.gram:
        found += misplaced(pool, np.asarray(facts.gram))
    if facts.init is not None:
        found += below_init(pool, facts.init)
    found += blocked(pool, facts.middles) + left_out(facts.diverged)
    return sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity))


def report(pool: Pool, facts: Facts) -> Report:
    """The findings with their verdict, and the numbers that they come from."""
    found = judged(pool, facts)
    averageable = not any(f.severity == "error" for f in found)
    return Report(
        averageable=averageable,
        init=pool.init,
        n=pool.ingredients[0].held_out.n,
        verdict=tuple(_verdict(pool, facts, found) if averageable else _refusal(found)),
        findings=tuple(found),
        ingredients=tuple(_rows(pool, facts, found)),
        pairs=tuple(_pair(pool, m) for m in facts.middles),
    )


def _refusal(found: Sequence[Finding]) -> list[str]:
    errors = [f for f in found if f.severity == "error"]
    bad = len({f.trials for f in errors})
    return [f"This pool cannot be averaged: {bad} of its ingredients cannot be read as a model."]


def _verdict(pool: Pool, facts: Facts, found: Sequence[Finding]) -> list[str]:
    k = len(pool.ingredients)
    said = [
        f"All {k} ingredients started from the same theta_0 ({pool.init.sha256[:12]}, head "
        "included), have the same tensors and no NaN: they can be averaged."
    ]
    hurt = list(dict.fromkeys(t for f in found if f.severity == "warning" for t in f.trials))
    if hurt:
        said.append(
            f"{len(hurt)} of {k} hurt: {', '.join(hurt)}. A uniform soup takes them in all the "
            "same; greedy, pruned and learned can leave them out."
        )
    else:
        said.append("No ingredient stands out as harmful.")
    with_best = [m for m in facts.middles if 0 in m.ends]
    return said + ([_greedy(pool, with_best, hurt)] if with_best else [])


def _greedy(pool: Pool, middles: Sequence[Middle], hurt: Sequence[str]) -> str:
    """What the means with the best ingredient say about a greedy soup, which starts at it."""
    best = pool.ingredients[0].held_out
    reach = sum(m.scores.correct >= best.correct for m in middles)
    top = f"the best ingredient ({_percent(best.accuracy)} ± {_percent(best.standard_error)})"
    if reach:
        return (
            f"Greedy should keep more than one: {reach} of {len(middles)} sampled means with "
            f"{top} are at least as good as it."
        )
    said = f"Greedy may keep only one: none of {len(middles)} sampled means with {top} reaches it. "
    others = [pool.ingredients[sum(m.ends)] for m in middles]
    if sum(i.trial.key in hurt for i in others) * 2 > len(others) or (
        pool.ingredients[0].trial.key in hurt
    ):
        return said + "Most of them have a finding above: lower the learning rates and sweep again."
    differences = [paired_difference(m.scores.right_mask(), best.right_mask()) for m in middles]
    if all(d < -ERRORS * e for d, e in differences):
        return said + "The other ingredients are much weaker: narrow the search around the best."
    return said + "Some are within noise of it: a larger held-out set would tell."


def _rows(pool: Pool, facts: Facts, found: Sequence[Finding]) -> list[Row]:
    k = len(pool.ingredients)
    known = bool(facts.gram)
    gram = np.asarray(facts.gram) if known else np.full((k, k), np.nan)
    length, degrees = norms(gram), angles(gram)
    others = median_angles(degrees)
    with_best = {sum(m.ends): m.scores.accuracy for m in facts.middles if 0 in m.ends}
    return [
        Row(
            trial=i.trial.key,
            hparams=i.trial.hparams,
            held_out=i.held_out.accuracy,
            standard_error=i.held_out.standard_error,
            distance=_number(length[at]),
            angle_best=_number(degrees[0, at]) if at else None,
            angle_others=_number(others[at]),
            with_best=with_best.get(at),
            finds=tuple(f.kind for f in found if i.trial.key in f.trials),
        )
        for at, i in enumerate(pool.ingredients)
    ]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _pair(pool: Pool, middle: Middle) -> Pair:
    a, b = (pool.ingredients[i] for i in middle.ends)
    ends = (a.held_out.accuracy, b.held_out.accuracy)
    return Pair(
        trials=(a.trial.key, b.trial.key),
        ends=ends,
        middle=middle.scores.accuracy,
        advantage=interpolation_advantage(middle.scores.accuracy, ends),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
