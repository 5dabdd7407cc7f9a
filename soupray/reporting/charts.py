"""The charts of the report, as Vega-Lite: drawn by the browser as SVG, with values on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from soupray.maths.metrics import logit
from soupray.recipes import BY_NAME
from soupray.recipes.recipe import INK
from soupray.reporting.details import Answers, Details
from soupray.reporting.plots import MUTED, Point, Robustness, id_label, logit_ticks
from soupray.reporting.ranking import Entry, measure_of
from soupray.reporting.trial_charts import coefficients, parallel, worth
from soupray.reporting.vega import (
    CHAMPION,
    PERCENT,
    SINGLE,
    WIDTH,
    Chart,
    chart_of,
    finished,
    share_of,
)

BESIDE = 12
"""Up to this number of classes, two confusion matrices stand side by side."""

MOST_CLASSES = 30
"""Classes of a chart: with more, those whose numbers differ most, then the worst."""


def charts(details: Details, entries: Sequence[Entry], classes: Sequence[str]) -> dict[str, Chart]:
    """Return the charts that the details allow, by name.

    Args:
        details: the numbers.
        entries: the leaderboard, best first.
        classes: names of the classes, in the order of the model's outputs.
    """
    found: dict[str, Any] = {
        "robustness": details.robustness and _robustness(details.robustness),
        "splits": _splits(details, entries),
        "lines": _lines(details),
        "greedy": _greedy(details),
        "parallel": parallel(details.trials),
        "coefficients": coefficients(details.trials, entries),
        "worth": worth(details.trials),
    }
    if all(a.confusion for a in details.answers):  # one class for each sample
        found |= {
            "reliability": _reliability(details.answers),
            "classes": _by_class(details.answers, classes),
            "confusion": _confusions(details.answers, classes),
        }
    return {name: finished(name, c) for name, c in found.items() if c is not None}


# ---- ID test against shifts


def _robustness(numbers: Robustness) -> Any:
    models = [_spot(p, numbers) for p in numbers.models]
    lines = [
        _spot(p, numbers) | {"line": f"WiSE-FT to {name}", "order": k}
        for name, points in numbers.lines.items()
        for k, p in enumerate(points)
    ]
    named = [m for m in models if m["name"] in (numbers.champion, "best_single")]
    spots = [*models, *lines]
    x = _logit_axis("x", id_label(numbers), numbers.n, spots, named)
    y = _logit_axis("y", f"mean {numbers.measure} over the shifts", numbers.shift_n, spots, named)
    about = ["name:N", "kind:N", share_of("id", "ID test"), share_of("shifts", "shifts")]
    layers = []
    if lines:
        path = chart_of(lines).mark_line(point=True, strokeWidth=1.5)
        dash = alt.StrokeDash("line:N", title=None)
        layers.append(
            path.encode(x, y, dash, order="order:Q", tooltip=about, color=alt.value("#9dbfe0"))
        )
    rule = chart_of(named).mark_rule(color=INK, opacity=0.5)
    layers += [
        rule.encode(x, y, x2="x_high:Q").transform_calculate(x="datum.x_low"),
        rule.encode(x, y, y2="y_high:Q").transform_calculate(y="datum.y_low"),
    ]
    kinds = [kind for kind in _KINDS if any(m["kind"] == kind for m in models)]
    colours = alt.Scale(domain=kinds, range=[_KINDS[kind] for kind in kinds])
    colour = alt.Color("kind:N", title=None, sort=kinds, scale=colours)
    marks = chart_of(models)
    layers.append(
        marks.mark_point(filled=True, size=70, opacity=0.9).encode(x, y, colour, tooltip=about)
    )
    champion = [m for m in models if m["name"] == numbers.champion]
    ring = chart_of(champion)
    layers += [
        ring.mark_point(size=320, color=CHAMPION, strokeWidth=2).encode(x, y, tooltip=about),
        ring.mark_text(align="left", dx=12, dy=-10, color=CHAMPION, fontWeight="bold").encode(
            x, y, text="name:N"
        ),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=420)


_KINDS = {
    "trial": MUTED,
    "baseline": INK,
    "soup": "#2a9d8f",
    "line": SINGLE,
    "ensemble": "#e9a03b",
    "plug-in": "#8e5ea2",
}
"""Colours by the kind of a recipe, and of trials."""


def _kind(point: Point) -> str:
    if point.kind == "ingredient":
        return "trial"
    return BY_NAME[point.kind].kind if point.kind in BY_NAME else "plug-in"


def _spot(point: Point, numbers: Robustness) -> dict[str, Any]:
    low, high = point.id_interval
    below, above = point.shift_interval
    return {
        "name": "trial " + point.name[:8] if point.kind == "ingredient" else point.name,
        "kind": _kind(point),
        "id": point.id_accuracy,
        "shifts": point.shift_mean,
        "x": logit(point.id_accuracy, numbers.n),
        "y": logit(point.shift_mean, numbers.shift_n),
        "x_low": logit(low, numbers.n),
        "x_high": logit(high, numbers.n),
        "y_low": logit(below, numbers.shift_n),
        "y_high": logit(above, numbers.shift_n),
    }


def _logit_axis(
    name: str, title: str, n: int, spots: list[dict[str, Any]], named: list[dict[str, Any]]
) -> Any:
    """An axis whose positions are logits and whose labels are accuracies."""
    of = {"x": "id", "y": "shifts"}[name]
    ends = [m[f"{name}_{end}"] for m in named for end in ("low", "high")]
    places = [m[name] for m in spots] + ends
    shares = [m[of] for m in spots] + [1 / (1 + math.exp(-v)) for v in ends]
    axis = alt.Axis(
        values=[logit(t, n) for t in logit_ticks(shares, n)],
        labelExpr="format(1 / (1 + exp(-datum.value)), '.3~p')",
    )
    room = 0.05 * (max(places) - min(places) or 1)
    scale = alt.Scale(domain=[min(places) - room, max(places) + room], nice=False)
    channel = {"x": alt.X, "y": alt.Y}[name]
    return channel(f"{name}:Q", title=f"{title} (logit scale)", axis=axis, scale=scale)


# ---- champion and best single model, split by split


def _compared(details: Details, entries: Sequence[Entry]) -> list[Entry]:
    names = [a.name for a in details.answers]
    return sorted((e for e in entries if e.name in names), key=lambda e: names.index(e.name))


def _splits(details: Details, entries: Sequence[Entry]) -> Any:
    rows = [
        {"split": split, "model": e.name, "accuracy": m.accuracy, "low": m.low, "high": m.high}
        for e in _compared(details, entries)
        for split, m in {"ID test": e.test, **e.shifts}.items()
    ]
    names = [a.name for a in details.answers]
    base = chart_of(rows, width=WIDTH, height=alt.Step(16))
    y = alt.Y("split:N", sort=None, title=None)
    beside = alt.YOffset("model:N", sort=names)
    colour = _two("model", names)
    measure = measure_of(entries[0].test)
    about = ["split:N", "model:N", share_of("accuracy", measure), share_of("low", "95 %, from"),
             share_of("high", "to")]  # fmt: skip
    scale = alt.Scale(zero=False, padding=8, nice=False)
    x = alt.X("low:Q", title=f"{measure}, 95 % interval", axis=PERCENT, scale=scale)
    dots = alt.X("accuracy:Q", title=f"{measure}, 95 % interval", axis=PERCENT, scale=scale)
    return base.mark_rule().encode(x, y, beside, colour, x2="high:Q") + base.mark_point(
        filled=True, size=60
    ).encode(dots, y, beside, colour, tooltip=about)


def _two(field: str, names: list[str]) -> alt.Color:
    scale = alt.Scale(domain=names, range=[CHAMPION, SINGLE][: len(names)])
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=alt.Legend(orient="top"))


# ---- lines and traces


def _lines(details: Details) -> Any:
    measure = details.robustness.measure if details.robustness else "accuracy"
    rows = [
        {"to": name, "alpha": alpha, "accuracy": accuracy, "data": "held-out"}
        for name, points in details.lines.items()
        for alpha, accuracy in points
    ]
    for name, points in (details.robustness.lines if details.robustness else {}).items():
        for p in points:
            row = {"to": name, "alpha": float(p.name)}
            rows.append(row | {"accuracy": p.id_accuracy, "data": "ID test"})
            rows.append(row | {"accuracy": p.shift_mean, "data": "shifts (mean)"})
    if not rows:
        return None
    colour = alt.Color(
        "data:N",
        title=None,
        scale=alt.Scale(
            domain=["held-out", "ID test", "shifts (mean)"], range=[MUTED, SINGLE, CHAMPION]
        ),
        legend=alt.Legend(orient="top"),
    )
    return (
        chart_of(rows, width=WIDTH / 2 - 30, height=240)
        .mark_line(point=True)
        .encode(
            alt.X("alpha:Q", title="alpha: 0 is the anchor, 1 the other end"),
            alt.Y("accuracy:Q", title=measure, axis=PERCENT, scale=alt.Scale(zero=False)),
            colour,
            alt.Facet(
                "to:N", columns=2, title=None, header=alt.Header(labelExpr="'to ' + datum.value")
            ),
            tooltip=["to:N", "data:N", "alpha:Q", share_of("accuracy", measure)],
        )
    )


def _greedy(details: Details) -> Any:
    trace = details.greedy
    if trace is None:
        return None
    kinds = ["kept", "tried, not kept", "given up early: below the mark"]
    rows, soup = [], []
    for k, (tried, most, kept, best) in enumerate(
        zip(trace.tried, trace.at_most, trace.accepted, trace.best, strict=True), 1
    ):
        what = kinds[0] if kept else kinds[1] if tried is not None else kinds[2]
        rows.append({"ingredient": k, "accuracy": most if tried is None else tried, "step": what})
        soup.append({"ingredient": k, "accuracy": best})
    ends = [v for v in (*trace.tried, *trace.at_most, *trace.best) if v is not None]
    room = max(0.004, 0.08 * (max(ends) - min(ends)))
    heights = alt.Scale(domain=[min(ends) - room, min(1.0, max(ends) + room)])
    widths = alt.Scale(domain=[0.5, len(soup) + 0.5], nice=False)
    x = alt.X("ingredient:Q", title="ingredient, best held-out first",
              axis=alt.Axis(tickMinStep=1), scale=widths)  # fmt: skip
    y = alt.Y("accuracy:Q", title=f"held-out {trace.measure} with it", axis=PERCENT, scale=heights)
    line = chart_of(soup, width=WIDTH, height=260)
    marks = chart_of(rows)
    kind = alt.Scale(domain=kinds, range=["circle", "circle", "triangle-down"])
    colours = alt.Scale(domain=kinds, range=[CHAMPION, MUTED, MUTED])
    top = alt.Legend(orient="top")
    return line.mark_line(interpolate="step-after", color=CHAMPION).encode(x, y) + marks.mark_point(
        filled=True, size=70
    ).encode(
        x,
        y,
        alt.Color("step:N", title=None, scale=colours, legend=top),
        alt.Shape("step:N", title=None, scale=kind, legend=top),
        tooltip=["ingredient:Q", "step:N", share_of("accuracy", f"{trace.measure}, or at most")],
    )


# ---- probabilities and classes


def _reliability(answers: Sequence[Answers]) -> Any:
    rows = [
        {"model": a.name, "after": after, "confidence": b.confidence, "accuracy": b.accuracy,
         "n": b.n}
        for a in answers
        for after, bins in (("as it is", a.reliability), ("calibrated", a.calibrated))
        for b in bins
    ]  # fmt: skip
    low = min(v for a in answers for b in a.reliability for v in (b.confidence, b.accuracy))
    scale = alt.Scale(domain=[low, 1])
    panels = []
    for a in answers:
        base = chart_of([r for r in rows if r["model"] == a.name])
        ideal = chart_of([{"confidence": v, "accuracy": v} for v in (low, 1)])
        x = alt.X("confidence:Q", axis=PERCENT, scale=scale)
        y = alt.Y("accuracy:Q", axis=PERCENT, scale=scale)
        colour = alt.Color(
            "after:N",
            title=None,
            scale=alt.Scale(domain=["as it is", "calibrated"], range=[MUTED, CHAMPION]),
            legend=alt.Legend(orient="top"),
        )
        about = [
            "after:N",
            share_of("confidence", "confidence"),
            share_of("accuracy", "accuracy"),
            "n:Q",
        ]
        panels.append(
            alt.layer(
                ideal.mark_line(strokeDash=[4, 4], color=INK, opacity=0.5).encode(x, y),
                base.mark_line(point=True).encode(x, y, colour, tooltip=about),
                title=f"{a.name} (T = {a.temperature:.2f})",
            ).properties(width=WIDTH / 2 - 30, height=WIDTH / 2 - 30)
        )
    return alt.hconcat(*panels)


def recalls(answers: Answers, count: int) -> list[tuple[int, int]]:
    """Return (right answers, samples) of each class on ID test.

    Args:
        answers: of an entry.
        count: number of classes.
    """
    found = [[0, 0] for _ in range(count)]
    for cell in answers.confusion:
        found[cell.label][1] += cell.n
        if cell.label == cell.answer:
            found[cell.label][0] += cell.n
    return [(right, n) for right, n in found]


def _by_class(answers: Sequence[Answers], classes: Sequence[str]) -> Any:
    by_entry = [recalls(a, len(classes)) for a in answers]
    there = [k for k in range(len(classes)) if by_entry[0][k][1]]

    def worth_a_look(k: int) -> tuple[float, float]:
        shares = [rows[k][0] / rows[k][1] for rows in by_entry]
        return -abs(shares[0] - shares[-1]), shares[0]

    shown = sorted(sorted(there, key=worth_a_look)[:MOST_CLASSES])
    rows = [
        {"class": classes[k], "model": a.name, "recall": table[k][0] / table[k][1],
         "right": table[k][0], "n": table[k][1]}
        for a, table in zip(answers, by_entry, strict=True)
        for k in shown
    ]  # fmt: skip
    base = chart_of(rows, width=WIDTH, height=alt.Step(18))
    y = alt.Y("class:N", sort=None, title=None)
    x = alt.X("recall:Q", axis=PERCENT, scale=alt.Scale(zero=False, padding=8, nice=False),
              title="share of the class's ID test samples that is right")  # fmt: skip
    about = ["class:N", "model:N", share_of("recall", "right"), "right:Q", "n:Q"]
    return base.mark_line(color=MUTED).encode(x, y, detail="class:N") + base.mark_point(
        filled=True, size=80
    ).encode(x, y, _two("model", [a.name for a in answers]), tooltip=about)


def _confusions(answers: Sequence[Answers], classes: Sequence[str]) -> Any:
    """Of as many classes as a chart has room for; with more, the report lists the mistakes."""
    if len(classes) > MOST_CLASSES:
        return None
    made = [_confusion(one, classes) for one in answers]
    return alt.hconcat(*made) if len(classes) <= BESIDE else alt.vconcat(*made)


def _confusion(answers: Answers, classes: Sequence[str]) -> Any:
    totals = [n for _, n in recalls(answers, len(classes))]
    rows = [
        {"label": classes[c.label], "answer": classes[c.answer], "n": c.n,
         "share": c.n / totals[c.label]}
        for c in answers.confusion
    ]  # fmt: skip
    there = [name for name, n in zip(classes, totals, strict=True) if n]
    slanted = alt.Axis(labelAngle=-45)
    base = chart_of(rows, width=alt.Step(26), height=alt.Step(22), title=answers.name).encode(
        alt.X("answer:N", sort=list(classes), title="answer", axis=slanted),
        alt.Y("label:N", sort=there, title="label"),
    )
    blues = alt.Scale(scheme="blues", domain=[0, 1])
    return base.mark_rect().encode(
        alt.Color("share:Q", scale=blues, legend=None),
        tooltip=["label:N", "answer:N", "n:Q", share_of("share", "of the class")],
    ) + base.mark_text(fontSize=10).encode(
        text="n:Q",
        color=alt.condition("datum.share > 0.5", alt.value("white"), alt.value(INK)),
    )
