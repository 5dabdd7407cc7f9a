"""Figures. Separate functions compute the numbers, which tests check, and draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from soupray.core.candidates import Candidate, LayerSoup, Outcome, WeightSoup, mean_of
from soupray.core.records import Basis, Pool, Record, Rejected, Split
from soupray.maths.metrics import logit
from soupray.recipes import BY_NAME, RECIPES
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import INK
from soupray.recipes.starts import interpolate
from soupray.recipes.wise_ft import LINE_GRID, WISE_FT
from soupray.reporting.ranking import Entry, Reported

MUTED = "#9aa0b4"


class Point(Record, frozen=True, kw_only=True):
    """A model in the robustness figure: ID accuracy (see `Robustness`) and mean shift accuracy."""

    name: str
    kind: str
    id_accuracy: float
    shift_mean: float


class Robustness(Record, frozen=True, kw_only=True):
    """The numbers of the robustness figure; `n` and `shift_n` limit the logits of 0 and 1.

    ID accuracy is held-out accuracy. If a shift has only some classes (`same_classes`), it is a
    mean over the shifts: the ID test accuracy on the classes of each shift (arXiv:2109.01903).
    """

    n: int
    shift_n: int
    same_classes: bool
    models: list[Point]
    lines: dict[str, list[Point]]


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
    entries: list[Entry], outcomes: list[Outcome], pool: Pool, basis: Basis, reported: Reported
) -> Robustness:
    """Compute the points of the robustness figure: ingredients, entries and WiSE-FT lines.

    Args:
        entries: the leaderboard.
        outcomes: what the recipes chose.
        pool: the ingredients.
        basis: the splits; at least one is a shift.
        reported: scores by (model, name of the split).
    """
    shifts = [s for s in basis.reported if s.role == "shift"]
    beside = _beside(shifts, reported)

    def mean_over(splits: list[str], candidate: Candidate) -> float:
        return sum(reported[candidate, name].accuracy for name in splits) / len(splits)

    def point(name: str, kind: str, candidate: Candidate, held_out: float) -> Point:
        return Point(
            name=name,
            kind=kind,
            id_accuracy=mean_over(beside, candidate) if beside else held_out,
            shift_mean=mean_over([s.name for s in shifts], candidate),
        )

    chosen = {o.name: o.candidate for o in outcomes}
    models = [
        point(i.trial.key, "ingredient", mean_of([i.checkpoint.sha256]), i.held_out.accuracy)
        for i in pool.ingredients
    ]
    models += [point(e.name, e.recipe, chosen[e.name], e.held_out.accuracy) for e in entries]
    return Robustness(
        n=basis.split("test" if beside else "held_out").size,
        shift_n=shifts[0].size,
        same_classes=bool(beside),
        models=models,
        lines=_lines(outcomes, point),
    )


def _beside(shifts: list[Split], reported: Reported) -> list[str]:
    """Return the ID test splits to compare each shift with, if a shift has only some classes.

    Empty if all shifts have all classes, or if ID test has no sample of the classes of a shift.
    """
    names = ["test" if s.label_map is None else f"test on {s.name}" for s in shifts]
    known = {name for _, name in reported}
    some = any(s.label_map is not None for s in shifts)
    return names if some and known.issuperset(names) else []


def _lines(
    outcomes: list[Outcome], point: Callable[[str, str, Candidate, float], Point]
) -> dict[str, list[Point]]:
    """Return the points of the WiSE-FT lines, by the name of theta_1."""
    # The traces of the outcomes contain the held-out scores along a line.
    held_out = {
        step.candidate: step.result.accuracy
        for o in outcomes
        if o.recipe == "wise_ft"
        for step in o.trace
        if not isinstance(step.result, Rejected)
    }
    return {
        name: [
            point(f"{k / LINE_GRID:g}", "wise_ft", candidate, held_out[candidate])
            for k, candidate in enumerate(candidates)
            if candidate in held_out
        ]
        for name, candidates in line_candidates(outcomes).items()
    }


def draw_robustness(numbers: Robustness, path: Path) -> None:
    """Draw ID accuracy against mean shift accuracy into a file; both axes have a logit scale."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 5.4), layout="constrained")
    _draw_lines(axes, numbers)
    _draw_models(axes, numbers)
    _logit_ticks(axes.xaxis, [p.id_accuracy for p in _all(numbers)], numbers.n)
    _logit_ticks(axes.yaxis, [p.shift_mean for p in _all(numbers)], numbers.shift_n)
    axes.set_xlabel(id_label(numbers))
    axes.set_ylabel("mean accuracy over shifts")
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def id_label(numbers: Robustness) -> str:
    """Return the label of the horizontal axis."""
    if numbers.same_classes:
        return "ID test accuracy on the same classes, mean over shifts"
    return "held-out accuracy (ID)"


def _place(point: Point, numbers: Robustness) -> tuple[float, float]:
    return logit(point.id_accuracy, numbers.n), logit(point.shift_mean, numbers.shift_n)


def _draw_lines(axes: Any, numbers: Robustness) -> None:
    look = {"color": WISE_FT.style.colour, "lw": 1.4, "marker": ".", "ms": 5, "zorder": 2}
    anchor = next((p.name for p in numbers.models if p.kind == "anchor"), "anchor")
    for style, (name, points) in zip(("-", "--", ":"), numbers.lines.items(), strict=False):
        xs, ys = zip(*(_place(p, numbers) for p in points), strict=True)
        label = f"WiSE-FT, {anchor.replace('_', '-')} to {name}"
        axes.plot(xs, ys, style, label=label, **look)


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

    for style in dict.fromkeys(r.style for r in RECIPES if r.style.marker and not r.style.own):
        kinds = {r.name for r in RECIPES if r.style == style}
        others = [_place(p, numbers) for p in numbers.models if p.kind in kinds]
        if others:
            look = {"facecolor": "none", "edgecolor": style.colour, "zorder": 4}
            axes.scatter(
                *zip(*others, strict=True), s=40, marker=style.marker, label=style.label, **look
            )


def _all(numbers: Robustness) -> list[Point]:
    return numbers.models + [p for points in numbers.lines.values() for p in points]


def _logit_ticks(axis: Any, values: list[float], n: int) -> None:
    """Set ticks at round accuracies in the range of the data."""
    nice = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95]
    nice += [0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999]
    low, high = min(values), max(values)
    shown = [t for t in nice if logit(low, n) - 0.15 <= logit(t, n) <= logit(high, n) + 0.15]
    # Ticks near 1 would overlap, so two ticks are at least a fifteenth of the axis apart.
    gap = (logit(high, n) - logit(low, n)) / 15
    kept: list[float] = []
    for tick in shown:
        if not kept or logit(tick, n) - logit(kept[-1], n) >= gap:
            kept.append(tick)
    axis.set_ticks([logit(t, n) for t in kept], [f"{100 * t:g} %" for t in kept])


class Trace(Record, frozen=True, kw_only=True):
    """The numbers of the greedy trace: for each step, the accuracy, accepted or not, and best."""

    tried: list[float]
    accepted: list[bool]
    best: list[float]


def greedy_trace(outcome: Outcome) -> Trace:
    """Return the numbers of `draw_trace`; a rejected step without a score shows its upper bound."""
    tried: list[float] = []
    accepted: list[bool] = []
    best: list[float] = []
    for step in outcome.trace:
        r = step.result
        accuracy = r.bound / outcome.held_out.n if isinstance(r, Rejected) else r.accuracy
        tried.append(accuracy)
        accepted.append(step.accepted)
        best.append(accuracy if step.accepted else best[-1])
    return Trace(tried=tried, accepted=accepted, best=best)


def draw_trace(trace: Trace, path: Path) -> None:
    """Draw the held-out accuracy of a greedy soup with each ingredient in turn into a file."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    steps = list(range(1, len(trace.tried) + 1))
    axes.step(steps, trace.best, where="post", color=GREEDY.style.colour, lw=1.6, label="the soup")
    for kept, label, face in (
        (True, "kept", GREEDY.style.colour),
        (False, "tried, not kept", "white"),
    ):
        xs = [s for s, a in zip(steps, trace.accepted, strict=True) if a == kept]
        ys = [y for y, a in zip(trace.tried, trace.accepted, strict=True) if a == kept]
        axes.scatter(xs, ys, s=44, color=face, edgecolor=GREEDY.style.colour, label=label, zorder=3)
    axes.set_xticks(steps)
    axes.set_xlabel("ingredient, best held-out first")
    axes.set_ylabel("held-out accuracy with it")
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.1f} %")
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_all(
    folder: Path,
    entries: list[Entry],
    outcomes: list[Outcome],
    world: tuple[Pool, Basis],
    reported: Reported,
) -> Mapping[str, Path]:
    """Draw the figures that these outcomes allow.

    Args:
        folder: where the files are written.
        entries: the leaderboard.
        outcomes: what the recipes chose.
        world: the pool and its basis.
        reported: scores by (model, name of the split).

    Returns:
        Paths of the figures, by file name.
    """
    pool, basis = world
    drawn = {}
    if any(s.role == "shift" for s in basis.reported):
        drawn["robustness.png"] = folder / "robustness.png"
        numbers = robustness(entries, outcomes, pool, basis, reported)
        draw_robustness(numbers, drawn["robustness.png"])
    for outcome in outcomes:
        if outcome.recipe == "greedy":
            drawn["greedy_trace.png"] = folder / "greedy_trace.png"
            draw_trace(greedy_trace(outcome), drawn["greedy_trace.png"])
    return drawn


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
        }
    )
    return plt
