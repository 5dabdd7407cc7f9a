"""Figures. Separate functions compute the numbers, which tests check, and draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soupray.core.candidates import Candidate, LayerSoup, Outcome, WeightSoup, mean_of
from soupray.core.records import Basis, Record, Rejected, ReportedSplit
from soupray.core.trials import Pool
from soupray.maths.metrics import interval, logit, mean_accuracy
from soupray.recipes import BY_NAME, RECIPES
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import INK, Style
from soupray.recipes.starts import interpolate
from soupray.recipes.wise_ft import LINE_GRID, WISE_FT
from soupray.reporting.ranking import Reported, measure_of

MUTED = "#9aa0b4"

PLUGINS = Style("plug-ins", "D", "#8e5ea2")


Interval = tuple[float, float]


class Point(Record, frozen=True, kw_only=True):
    """A model in the robustness figure: ID accuracy (see `Robustness`) and mean shift accuracy.

    `id_interval` and `shift_interval`: of 95 %.
    """

    name: str
    kind: str
    id_accuracy: float
    shift_mean: float
    id_interval: Interval
    shift_interval: Interval


class Robustness(Record, frozen=True, kw_only=True):
    """The numbers of the robustness figure; `n` and `shift_n` limit the logits of 0 and 1.

    ID accuracy is that on ID test. If a shift has only some classes (`same_classes`), it is a
    mean over the shifts: the ID test accuracy on the classes of each shift (arXiv:2109.01903).
    `champion`: name of the entry to take. `measure`: accuracy, or the graded metric.
    """

    champion: str
    n: int
    shift_n: int
    same_classes: bool
    models: list[Point]
    lines: dict[str, list[Point]]
    measure: str = "accuracy"


def line_candidates(outcomes: list[Outcome]) -> dict[str, list[Any]]:
    """Return the models on each WiSE-FT line of the figure, by the name of theta_1."""
    lines = {str(o.options["theta_1"]): o.trace for o in outcomes if o.recipe == "wise_ft"}
    found = {}
    for name, trace in sorted(lines.items()):
        anchor, theta_1 = trace[0].candidate, trace[-1].candidate
        assert isinstance(anchor, WeightSoup)
        assert isinstance(theta_1, WeightSoup | LayerSoup)
        found[name] = [interpolate(anchor, theta_1, k, LINE_GRID) for k in range(LINE_GRID + 1)]
    return found


def robustness(
    champion: str, outcomes: list[Outcome], pool: Pool, basis: Basis, reported: Reported
) -> Robustness:
    """Compute the points of the robustness figure: ingredients, entries and WiSE-FT lines.

    Args:
        champion: name of the entry to take.
        outcomes: what the recipes chose.
        pool: the ingredients.
        basis: the splits; at least one is a shift.
        reported: scores by (model, name of the split).
    """
    shifts = [s for s in basis.reported if s.role == "shift"]
    beside = _beside(shifts, reported)

    def point(name: str, kind: str, candidate: Candidate) -> Point:
        on_id = [reported[candidate, split] for split in beside or ["test"]]
        accuracy, *id_interval = mean_accuracy(on_id)
        if not beside:  # one split: exact
            id_interval = list(interval(on_id[0]))
        shift, *shift_interval = mean_accuracy([reported[candidate, s.name] for s in shifts])
        return Point(
            name=name,
            kind=kind,
            id_accuracy=accuracy,
            shift_mean=shift,
            id_interval=(id_interval[0], id_interval[1]),
            shift_interval=(shift_interval[0], shift_interval[1]),
        )

    models = [
        point(i.trial.key, "ingredient", mean_of([i.checkpoint.sha256])) for i in pool.ingredients
    ]
    models += [point(o.name, o.recipe, o.candidate) for o in outcomes]
    return Robustness(
        champion=champion,
        n=basis.split("test").size,
        shift_n=shifts[0].size,
        measure=measure_of(outcomes[0].held_out),
        same_classes=bool(beside),
        models=models,
        lines={
            name: [
                point(f"{k / LINE_GRID:g}", "wise_ft", candidate)
                for k, candidate in enumerate(candidates)
            ]
            for name, candidates in line_candidates(outcomes).items()
        },
    )


def _beside(shifts: list[ReportedSplit], reported: Reported) -> list[str]:
    """Return the ID test splits to compare each shift with, if a shift has only some classes.

    Empty if all shifts have all classes, or if ID test has no sample of the classes of a shift.
    """
    names = ["test" if s.label_map is None else f"test on {s.name}" for s in shifts]
    known = {name for _, name in reported}
    some = any(s.label_map is not None for s in shifts)
    return names if some and known.issuperset(names) else []


def draw_robustness(numbers: Robustness, path: Path) -> None:
    """Draw ID accuracy against mean shift accuracy, as PNG and SVG; both axes have a logit scale.

    The best single model and the champion have their intervals.

    Args:
        numbers: the numbers.
        path: of the PNG file; the SVG file is beside it.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 5.4), layout="constrained")
    _draw_lines(axes, numbers)
    _draw_intervals(axes, numbers)
    _draw_models(axes, numbers)
    named = [p for p in numbers.models if _has_interval(p, numbers)]
    ids = [p.id_accuracy for p in _all(numbers)] + [v for p in named for v in p.id_interval]
    shifts = [p.shift_mean for p in _all(numbers)] + [v for p in named for v in p.shift_interval]
    _set_logit_ticks(axes.xaxis, ids, numbers.n)
    _set_logit_ticks(axes.yaxis, shifts, numbers.shift_n)
    axes.set_xlabel(f"{id_label(numbers)} (n = {numbers.n}; logit scale)")
    axes.set_ylabel(f"mean {numbers.measure} over shifts (logit scale)")
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def id_label(numbers: Robustness) -> str:
    """Return the label of the horizontal axis."""
    if numbers.same_classes:
        return f"ID test {numbers.measure} on the same classes, mean over shifts"
    return f"ID test {numbers.measure}"


def _place(point: Point, numbers: Robustness) -> tuple[float, float]:
    return logit(point.id_accuracy, numbers.n), logit(point.shift_mean, numbers.shift_n)


def _draw_lines(axes: Any, numbers: Robustness) -> None:
    look = {"color": WISE_FT.style.colour, "lw": 1.4, "marker": ".", "ms": 5, "zorder": 2}
    anchor = next((p.name for p in numbers.models if p.kind == "anchor"), "anchor")
    for style, (name, points) in zip(("-", "--", ":"), numbers.lines.items(), strict=False):
        xs, ys = zip(*(_place(p, numbers) for p in points), strict=True)
        label = f"WiSE-FT, {anchor.replace('_', '-')} to {name}"
        axes.plot(xs, ys, style, label=label, **look)


def _has_interval(point: Point, numbers: Robustness) -> bool:
    return point.kind == "best_single" or point.name == numbers.champion


def _draw_intervals(axes: Any, numbers: Robustness) -> None:
    """Draw the 95 % intervals of the best single model and the champion, and a ring around it."""
    for point in numbers.models:
        if not _has_interval(point, numbers):
            continue
        x, y = _place(point, numbers)
        xs = [logit(v, numbers.n) for v in point.id_interval]
        ys = [logit(v, numbers.shift_n) for v in point.shift_interval]
        axes.plot(xs, [y, y], color=INK, lw=0.8, alpha=0.5, zorder=1)
        axes.plot([x, x], ys, color=INK, lw=0.8, alpha=0.5, zorder=1)
        if point.name == numbers.champion:
            label = f"champion: {point.name.replace('_', ' ')}"
            ring = {"facecolor": "none", "edgecolor": INK, "lw": 1.4, "zorder": 5}
            axes.scatter([x], [y], s=260, label=label, **ring)


def _draw_models(axes: Any, numbers: Robustness) -> None:
    trials = [_place(p, numbers) for p in numbers.models if p.kind == "ingredient"]
    axes.scatter(*zip(*trials, strict=True), s=26, color=MUTED, label="trials", zorder=3)
    for point in numbers.models:
        style = BY_NAME[point.kind].style if point.kind in BY_NAME else None
        if style is not None and style.own:
            x, y = _place(point, numbers)
            axes.scatter(
                [x],
                [y],
                s=170 if style.marker == "*" else 70,
                marker=style.marker,
                color=style.colour,
                edgecolor="white",
                lw=0.8,
                label=point.name.replace("_", " "),
                zorder=4,
            )

    styles = dict.fromkeys(r.style for r in RECIPES if r.style.marker and not r.style.own)
    for style in (*styles, PLUGINS):
        kinds = {r.name for r in RECIPES if r.style == style}
        if style == PLUGINS:
            kinds = {p.kind for p in numbers.models} - BY_NAME.keys() - {"ingredient"}
        others = [_place(p, numbers) for p in numbers.models if p.kind in kinds]
        if others:
            look = {"facecolor": "none", "edgecolor": style.colour, "zorder": 4}
            axes.scatter(
                *zip(*others, strict=True), s=40, marker=style.marker, label=style.label, **look
            )


def _all(numbers: Robustness) -> list[Point]:
    return numbers.models + [p for points in numbers.lines.values() for p in points]


def logit_ticks(values: list[float], n: int) -> list[float]:
    """Return round accuracies in the range of the data, for an axis of logits.

    Args:
        values: accuracies that the axis must show.
        n: number of samples, which limits the logits of 0 and 1.
    """
    nice = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95]
    nice += [0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999]
    low, high = min(values), max(values)
    shown = [t for t in nice if logit(low, n) - 0.15 <= logit(t, n) <= logit(high, n) + 0.15]
    # Ticks near 1 would overlap, so two ticks are at least a twelfth of the axis apart.
    gap = (logit(high, n) - logit(low, n)) / 12
    kept: list[float] = []
    for tick in shown:
        if not kept or logit(tick, n) - logit(kept[-1], n) >= gap:
            kept.append(tick)
    return kept


def _set_logit_ticks(axis: Any, values: list[float], n: int) -> None:
    kept = logit_ticks(values, n)
    axis.set_ticks([logit(t, n) for t in kept], [f"{100 * t:g} %" for t in kept])


class Trace(Record, frozen=True, kw_only=True):
    """The numbers of the greedy trace, for each step.

    Attributes:
        tried: held-out accuracy of the soup with the ingredient; None where it was given up early.
        at_most: accuracy that a soup that was given up could not exceed; None for the others.
        accepted: whether the ingredient was kept.
        best: accuracy of the soup after the step.
        measure: accuracy, or the graded metric.
    """

    tried: list[float | None]
    at_most: list[float | None]
    accepted: list[bool]
    best: list[float]
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        """Raise ValueError if a step lacks a number."""
        if len({len(self.tried), len(self.at_most), len(self.accepted), len(self.best)}) > 1:
            raise ValueError("the lists of a trace have different lengths")


def greedy_trace(outcome: Outcome) -> Trace:
    """Return the numbers of `draw_trace`."""
    measure = measure_of(outcome.held_out)
    trace = Trace(tried=[], at_most=[], accepted=[], best=[], measure=measure)
    for step in outcome.trace:
        result = step.result
        accuracy = None if isinstance(result, Rejected) else result.accuracy
        trace.tried.append(accuracy)
        bound = result.bound / outcome.held_out.most if isinstance(result, Rejected) else None
        trace.at_most.append(bound)
        trace.accepted.append(step.accepted)
        trace.best.append(accuracy if step.accepted and accuracy is not None else trace.best[-1])
    return trace


def draw_trace(trace: Trace, path: Path) -> None:
    """Draw the held-out accuracy of a greedy soup with each ingredient in turn, as PNG and SVG.

    Args:
        trace: the numbers.
        path: of the PNG file; the SVG file is beside it.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    steps = list(range(1, len(trace.tried) + 1))
    colour = GREEDY.style.colour
    axes.step(steps, trace.best, where="post", color=colour, lw=1.6, label="the soup")
    kept = [(s, y) for s, y, a in zip(steps, trace.tried, trace.accepted, strict=True) if a]
    tried = [
        (s, y)
        for s, y, a in zip(steps, trace.tried, trace.accepted, strict=True)
        if not a and y is not None
    ]
    given_up = [(s, y) for s, y in zip(steps, trace.at_most, strict=True) if y is not None]
    look = {"s": 44, "edgecolor": colour, "zorder": 3}
    for points, label, more in (
        (kept, "kept", {"color": colour}),
        (tried, "tried, not kept", {"color": "white"}),
        (given_up, "given up early: below the mark", {"color": "white", "marker": "v"}),
    ):
        if points:
            axes.scatter(*zip(*points, strict=True), label=label, **look, **more)
    axes.set_xticks(steps)
    axes.set_xlabel("ingredient, best held-out first")
    axes.set_ylabel(f"held-out {trace.measure} with it")
    shown = [y for y in (*trace.tried, *trace.at_most) if y is not None]
    room = max(0.004, 0.08 * (max(shown) - min(shown)))
    axes.set_ylim(min(shown) - room, min(1.001, max(shown) + room))
    axes.yaxis.set_major_formatter(lambda y, _: percent_label(y, axes.get_yticks()))
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def percent_label(tick: float, ticks: Sequence[float]) -> str:
    """Return the label of a tick, with as many digits as make all labels different.

    Args:
        tick: a share, 0 to 1.
        ticks: all ticks of the axis.
    """

    def labels(digits: int) -> list[str]:
        return [f"{100 * t:.{digits}f} %" for t in (*ticks, tick)]

    most = 6
    different = len({round(t, most + 2) for t in (*ticks, tick)})
    enough = (d for d in range(1, most) if len(set(labels(d))) == different)
    return labels(next(enough, most))[-1]


def draw_all(folder: Path, figure: Robustness | None, greedy: Trace | None) -> Mapping[str, Path]:
    """Draw the figures, as PNG and SVG.

    Args:
        folder: where the files are written.
        figure: the numbers of the robustness figure; None without shifts.
        greedy: the trace of the greedy soup; None without one.

    Returns:
        Paths of the files, by name.
    """
    drawn = []
    if figure is not None:
        draw_robustness(figure, folder / "robustness.png")
        drawn.append("robustness")
    if greedy is not None:
        draw_trace(greedy, folder / "greedy_trace.png")
        drawn.append("greedy_trace")
    names = [f"{name}.{ending}" for name in drawn for ending in ("png", "svg")]
    return {name: folder / name for name in names}


def pyplot() -> Any:
    """Return matplotlib's pyplot for drawing without a screen, in the style of all figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.grid": True,
            "grid.color": "#e6e8ee",
            "axes.axisbelow": True,
            "svg.hashsalt": "soupray",  # equal numbers are equal files
        }
    )
    return plt
