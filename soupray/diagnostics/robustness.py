"""Effective robustness of each entry under each shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soupray.core.arrays import Float64, Mask
from soupray.core.candidates import Candidate
from soupray.core.records import Record, Split
from soupray.diagnostics.figures import Axis, dots, figure, grid, spans, straight
from soupray.diagnostics.measure import CannotMeasure, Inputs, Measure, Needed, Shown
from soupray.maths.metrics import on_classes_of, right_mask
from soupray.maths.robustness import (
    RESAMPLES,
    Line,
    fit_line,
    interval,
    logits_of,
    resampled,
)
from soupray.recipes.recipe import MULTI_LABEL, ONE_CLASS, REGRESSION, RETRIEVAL
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Figure, Table

OWN = "the pool's own trials"

MANY = 10**12
"""Samples of a model of a file, for `logits_of`: nothing is clipped."""

LOOSE = 0.5
"""R² below which a line explains less than half."""


class Rho(Record, frozen=True, kw_only=True):
    """An entry under a shift.

    Attributes:
        name: of the entry.
        on_id: ID accuracy, on the classes of the shift if it has only some.
        shifted: accuracy under the shift.
        expected: what the line expects at its ID accuracy.
        rho: effective robustness: shifted - expected.
        low: of the 95 % interval of rho (bootstrap of samples).
        high: of the same.
        outside: its ID accuracy is outside of that of the models of the line.
    """

    name: str
    on_id: float
    shifted: float
    expected: float
    rho: float
    low: float
    high: float
    outside: bool


class Standard(Record, frozen=True, kw_only=True):
    """A model of the line: its name, ID accuracy and accuracy under the shift."""

    name: str
    on_id: float
    shifted: float


class UnderShift(Record, frozen=True, kw_only=True):
    """A shift, its line and the entries.

    Attributes:
        name: of the shift.
        n: samples of the shift.
        on_id_n: samples of ID test, of the classes of the shift alone if it has only some.
        dropped: models of the baseline without a logit: an accuracy of theirs is 0 or 1.
        slope: of the line through logits.
        intercept: of the same.
        r2: share of variance that the line explains.
        line: the models of the line.
        entries: in the order of the leaderboard.
    """

    name: str
    n: int
    on_id_n: int
    dropped: int
    slope: float
    intercept: float
    r2: float
    line: tuple[Standard, ...]
    entries: tuple[Rho, ...]


class MeanRho(Record, frozen=True, kw_only=True):
    """The mean of rho over the shifts that have a line, with its 95 % interval."""

    name: str
    rho: float
    low: float
    high: float


class Robustness(Record, frozen=True, kw_only=True):
    """Effective robustness of a leaderboard.

    Attributes:
        baseline: whose line it is: a file, or the pool's own trials.
        own: the line is that of the pool's own trials.
        shifts: those that have a line.
        means: over these shifts, in the order of the leaderboard.
        left_out: why a shift has no line, by its name.
        resamples: of the bootstrap.
    """

    baseline: str
    own: bool
    shifts: tuple[UnderShift, ...]
    means: tuple[MeanRho, ...]
    left_out: dict[str, str]
    resamples: int


class _Masks(NamedTuple):
    """Which samples the entries and the trials get right, on ID test and under a shift."""

    on_id: list[Mask]
    shifted: list[Mask]


def measure_robustness(inputs: Inputs) -> Robustness:
    """Return the effective robustness of each entry of the newest leaderboard."""
    entries, trials = inputs.frozen.each(), inputs.trials
    left: dict[str, str] = {}
    found: list[UnderShift] = []
    replicates: list[Float64] = []
    for shift in inputs.shifts:
        masks = _masks(inputs, [*entries.values(), *trials.values()], shift)
        if masks is None:
            left[shift.name] = "ID test has no sample of its classes"
            continue
        line = _standard(inputs, shift, masks, list(trials))
        if isinstance(line, str):
            left[shift.name] = line
            continue
        made = _under_shift(inputs, shift, masks, line)
        if made is None:
            left[shift.name] = "the models of the line do not determine one"
            continue
        found.append(made[0])
        replicates.append(made[1])
    if not found:
        raise CannotMeasure("; ".join(f"{name}: {why}" for name, why in left.items()))
    mean = np.mean(replicates, axis=0)
    return Robustness(
        baseline=OWN if inputs.options.baseline is None else inputs.options.baseline.source,
        own=inputs.options.baseline is None,
        shifts=tuple(found),
        means=tuple(
            _mean(name, [s.entries[k].rho for s in found], mean[:, k])
            for k, name in enumerate(entries)
        ),
        left_out=left,
        resamples=RESAMPLES,
    )


def _mean(name: str, rhos: Sequence[float], values: Float64) -> MeanRho:
    low, high = interval(values)
    return MeanRho(name=name, rho=float(np.mean(rhos)), low=low, high=high)


def _masks(inputs: Inputs, models: Sequence[Candidate], shift: Split) -> _Masks | None:
    """Return what the models get right; None if ID test has no sample of the shift's classes."""
    shifted = inputs.right(models, shift)
    if shift.label_map is None:
        return _Masks(inputs.right(models, inputs.test), shifted)
    on_id = []
    for model in models:
        there = on_classes_of(inputs.answers.predictions(model, inputs.test), shift)
        if there is None:
            return None
        on_id.append(right_mask(there))
    return _Masks(on_id, shifted)


def _standard(
    inputs: Inputs, shift: Split, masks: _Masks, trials: Sequence[str]
) -> tuple[Standard, ...] | str:
    """Return the models of the line, or why there are none."""
    baseline = inputs.options.baseline
    if baseline is None:
        first = len(masks.on_id) - len(trials)
        return tuple(
            Standard(name=name, on_id=float(a.mean()), shifted=float(b.mean()))
            for name, a, b in zip(trials, masks.on_id[first:], masks.shifted[first:], strict=True)
        )
    on_id = baseline.on_id if shift.label_map is None else f"val-on-{shift.name}-classes"
    missing = [name for name in (shift.name, on_id) if name not in baseline.columns]
    if missing:
        return f"{baseline.source} has no column {missing[0]!r}"
    rows = baseline.pairs(on_id, shift.name)
    return tuple(Standard(name=name, on_id=a, shifted=b) for name, a, b in rows)


def _under_shift(
    inputs: Inputs, shift: Split, masks: _Masks, standard: tuple[Standard, ...]
) -> tuple[UnderShift, Float64] | None:
    """Return the shift, and rho of each entry on each resample, [B, entries]."""
    names = list(inputs.frozen.each())
    n_id, n = len(masks.on_id[0]), len(masks.shifted[0])
    # The number of samples of the trials is known, and limits the logits of 0 and 1.
    own = inputs.options.baseline is None
    usable = [m for m in standard if own or (0 < m.on_id < 1 and 0 < m.shifted < 1)]
    xs = logits_of(np.array([m.on_id for m in usable]), n_id if own else MANY)
    ys = logits_of(np.array([m.shifted for m in usable]), n if own else MANY)
    line = fit_line(xs, ys)
    if line is None:
        return None
    seed, count = inputs.spec.seed, len(names)
    on_id = resampled(masks.on_id, RESAMPLES, seed)
    shifted = resampled(masks.shifted, RESAMPLES, seed)
    x, y = logits_of(on_id, n_id), logits_of(shifted, n)
    if own:  # the line is an estimate from the same samples
        lines = [fit_line(x[b, count:], y[b, count:]) or line for b in range(RESAMPLES)]
    else:
        lines = [line] * RESAMPLES
    expected = np.stack([one.expected(row[:count]) for one, row in zip(lines, x, strict=True)])
    values = shifted[:, :count] - expected
    return (
        UnderShift(
            name=shift.name,
            n=n,
            on_id_n=n_id,
            dropped=len(standard) - len(usable),
            slope=line.slope,
            intercept=line.intercept,
            r2=line.r2,
            line=tuple(usable),
            entries=tuple(
                _rho(name, (masks.on_id[k], masks.shifted[k]), line, (xs, values[:, k]))
                for k, name in enumerate(names)
            ),
        ),
        values,
    )


def _rho(name: str, right: tuple[Mask, Mask], line: Line, about: tuple[Float64, Float64]) -> Rho:
    on_id, shifted = float(right[0].mean()), float(right[1].mean())
    (at,) = logits_of(np.array([on_id]), len(right[0]))
    expected = float(line.expected(at))
    low, high = interval(about[1])
    return Rho(
        name=name,
        on_id=on_id,
        shifted=shifted,
        expected=expected,
        rho=shifted - expected,
        low=low,
        high=high,
        outside=bool(at < about[0].min() or at > about[0].max()),
    )


# ---- How it is read


def _show(made: Robustness) -> Shown:
    return Shown(sentences=_sentences(made), tables=(_table(made),), figures=(_figure(made),))


def _table(made: Robustness) -> Table:
    names = [s.name for s in made.shifts]
    by_name = {s.name: {r.name: r for r in s.entries} for s in made.shifts}
    rows = []
    for mean in made.means:
        own = [by_name[name][mean.name] for name in names]
        rows.append(
            (
                mean.name,
                points(mean.rho),
                f"[{points(mean.low)}, {points(mean.high)}]",
                *(points(r.rho) + ("*" if r.outside else "") for r in own),
            )
        )
    return Table(
        columns=("entry", "mean rho", "95 %", *names),
        numbers=("mean rho", "95 %", *names),
        rows=tuple(rows),
        least=tuple(reversed(names)),
        meaning=(
            "rho: accuracy under the shift minus what the line expects at the entry's ID accuracy, "
            f"in points. The line: {made.baseline}. 95 %: bootstrap of samples "
            f"({made.resamples} resamples{'; the line is fitted again in each' if made.own else ''}"
            "). *: the entry's ID accuracy is outside of that of the models of the line."
        ),
    )


def _sentences(made: Robustness) -> tuple[str, ...]:
    above = [m.name for m in made.means if m.low > 0]
    best = max(made.means, key=lambda m: m.rho)
    fits = ", ".join(f"{s.name} {s.r2:.2f} ({len(s.line)} models)" for s in made.shifts)
    said = [
        f"Above the line by more than chance: {len(above)} of {len(made.means)} models; "
        f"the most is {best.name}, rho = {points(best.rho)} points "
        f"([{points(best.low)}, {points(best.high)}]).",
        f"Share of variance that the line explains (R²): {fits}.",
    ]
    beyond = {r.name for s in made.shifts for r in s.entries if r.outside}
    if far := [name for name in above if name in beyond]:
        said.insert(
            1,
            f"For {len(far)} of these {len(above)} ({', '.join(far)}) the line is drawn beyond the "
            "models that made it (* in the table): do not trust their rho.",
        )
    loose = [s.name for s in made.shifts if s.r2 < LOOSE]
    if loose:
        said.append(
            f"On {', '.join(loose)} these models hardly lie on a line (R² below {LOOSE}): there, "
            "rho is little more than the accuracy minus the mean of theirs."
        )
    if made.own:
        said.append(
            "The line is that of the pool's own trials, not of standard models: rho says what an "
            "entry has beyond single trials of this sweep. `--baseline FILE` takes another line."
        )
    said += [
        f"On {s.name}, {s.dropped} models of {made.baseline} have no logit (0 % or 100 %): the "
        "line is without them."
        for s in made.shifts
        if s.dropped
    ]
    said += [f"{name} is left out: {why}." for name, why in made.left_out.items()]
    return tuple(said)


def rows_of(shift: UnderShift) -> list[dict[str, Any]]:
    """Return the points of the figure of a shift: entries, in %."""
    return [
        {
            "entry": r.name,
            "on_id": r.on_id,
            "shifted": r.shifted,
            "rho": r.rho,
            "low": r.expected + r.low,
            "high": r.expected + r.high,
        }
        for r in shift.entries
    ]


def _figure(made: Robustness) -> Figure:
    charts = [_chart(s) for s in made.shifts]
    title = f"Effective robustness: entries (red) against the line of {made.baseline} (grey)"
    return figure("effective_robustness", title, grid(charts, 2), whole=True)


def _chart(shift: UnderShift) -> Any:
    def place(row: Mapping[str, Any]) -> dict[str, Any]:
        ys = {k: float(logits_of(np.array(row[k]), shift.n)) for k in ("shifted", "low", "high")}
        words = {k: v for k, v in row.items() if isinstance(v, str)}
        return {
            **words,
            "x": float(logits_of(np.array(row["on_id"]), shift.on_id_n)),
            "y": ys["shifted"],
            "ID accuracy": percent(row["on_id"]),
            "under shift": percent(row["shifted"]),
            "rho": points(row["rho"]) if row["rho"] is not None else "",
            "y_low": ys["low"],
            "y_high": ys["high"],
        }

    entries = [place(row) for row in rows_of(shift)]
    standard = [
        place({"entry": m.name, "on_id": m.on_id, "shifted": m.shifted, "rho": None,
               "low": m.shifted, "high": m.shifted})
        for m in shift.line
    ]  # fmt: skip
    x = Axis("x", "ID accuracy", logit=True)
    y = Axis("y", f"accuracy, {shift.name}", logit=True)
    xs = [row["x"] for row in (*entries, *standard)]
    line = straight([(v, shift.slope * v + shift.intercept) for v in (min(xs), max(xs))], x, y)
    return (
        line
        + dots(standard, x, y, size=26, color="#9aa0b4")
        + spans(entries, x, y, "y_low", "y_high")
        + dots(entries, x, y, size=50, color="#d1495b")
    ).properties(title=f"{shift.name} (n = {shift.n})", width=290, height=260)


def _needs(inputs: Inputs) -> Needed:
    models = (*inputs.frozen.each().values(), *inputs.trials.values())
    return Needed(models=tuple((models, split) for split in (inputs.test, *inputs.shifts)))


def _cannot(inputs: Inputs) -> str | None:
    if not inputs.shifts:
        return "the spec has no shifts"
    if inputs.options.baseline is None and len(inputs.pool.ingredients) < 3:
        return (
            f"the pool has {len(inputs.pool.ingredients)} trials: a line through its own trials "
            "needs 3. Give the accuracies of standard models (`--baseline FILE`)"
        )
    return None


EFFECTIVE_ROBUSTNESS = Measure(
    name="robustness",
    title="Effective robustness",
    summary="accuracy under shift beyond what the ID accuracy lets expect",
    paper=("Taori et al. 2020, arXiv:2007.00644; Wortsman et al. 2021, arXiv:2109.01903"),
    about=(
        "Models with a higher ID accuracy are usually better under a shift, too: on logit axes "
        "they lie on a line. What an entry has above this line is its effective robustness, rho."
    ),
    record=Robustness,
    compute=measure_robustness,
    show=_show,
    needs=_needs,
    depends=lambda inputs: inputs.options.baseline,
    cannot=_cannot,
    objectives=(ONE_CLASS, MULTI_LABEL, REGRESSION, RETRIEVAL),
)
