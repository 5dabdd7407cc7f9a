"""Figures of measures, as Vega-Lite: marks that are layered with `+`, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from soupray.recipes.recipe import INK
from soupray.reporting.plots import MUTED
from soupray.reporting.sections import Figure
from soupray.reporting.vega import WIDTH, chart_of, finished

Rows = Sequence[Mapping[str, object]]
"""What the marks show: a number or a text for each field."""

HEIGHT = 380


class Axis(NamedTuple):
    """An axis, or a scale of colours.

    Attributes:
        field: of the rows.
        title: what it is, with its unit.
        percent: the field is a share, shown in %.
        logit: the field is a logit, shown as the share in %.
        zero: the axis begins at 0.
        words: the field is text, or numbers that are names.
    """

    field: str
    title: str
    percent: bool = False
    logit: bool = False
    zero: bool = False
    words: bool = False


def dots(rows: Rows, x: Axis, y: Axis, colour: Axis | None = None, **look: Any) -> Any:
    """Return a point for each row; the tooltip has all fields.

    Args:
        rows: the points.
        x: the horizontal axis.
        y: the vertical axis.
        colour: the scale of colours.
        **look: of Altair's `mark_point`.
    """
    mark = chart_of([*map(dict, rows)]).mark_point(**{"filled": True, "size": 60, **look})
    return mark.encode(**_channels(x, y, colour), tooltip=_tooltip(rows))


def curve(rows: Rows, x: Axis, y: Axis, colour: Axis | None = None, **look: Any) -> Any:
    """Return a line through the rows of each colour, in the order of x."""
    mark = chart_of([*map(dict, rows)]).mark_line(**{"point": True, **look})
    return mark.encode(**_channels(x, y, colour), tooltip=_tooltip(rows))


def columns(rows: Rows, x: Axis, y: Axis, colour: Axis | None = None, **look: Any) -> Any:
    """Return a column for each row; those of several colours stand side by side."""
    channels = _channels(x, y, colour)
    if colour is not None:
        channels["xOffset"] = alt.XOffset(f"{colour.field}:N")
    return chart_of([*map(dict, rows)]).mark_bar(**look).encode(**channels, tooltip=_tooltip(rows))


def cells(rows: Rows, x: Axis, y: Axis, colour: Axis) -> Any:
    """Return a matrix with a coloured cell for each row."""
    channels = _channels(x, y, colour)
    return chart_of([*map(dict, rows)]).mark_rect().encode(**channels, tooltip=_tooltip(rows))


def spans(rows: Rows, x: Axis, y: Axis, low: str, high: str) -> Any:
    """Return a vertical bar from `low` to `high` for each row: an interval of y."""
    shown = [{**row, y.field: row[low], "_high": row[high]} for row in rows]
    mark = chart_of(shown).mark_rule(color=INK, opacity=0.5)
    return mark.encode(**_channels(x, y, None), y2="_high:Q")


def level(value: float, of: str = "y") -> Any:
    """Return a dashed line at a value of the axis `of`, "x" or "y"."""
    rule = chart_of([{"level": value}]).mark_rule(color=INK, strokeDash=[5, 4])
    return rule.encode(**{of: alt.Y("level:Q") if of == "y" else alt.X("level:Q")})


def straight(ends: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Any:
    """Return a dashed line through points, such as a diagonal or a fitted line."""
    rows = [{x.field: a, y.field: b} for a, b in ends]
    line = chart_of(rows).mark_line(color=MUTED, strokeDash=[6, 4])
    return line.encode(**_channels(x, y, None))


def grid(charts: Sequence[Any], across: int) -> Any:
    """Return charts beside and below each other, each with axes of its own.

    Args:
        charts: with their own sizes and titles.
        across: charts in a row.
    """
    return alt.concat(*charts, columns=across).resolve_scale(x="independent", y="independent")


def figure(name: str, title: str, chart: Any, whole: bool = False) -> Figure:
    """Return a figure of the report, with its title in it: files stand alone.

    Args:
        name: unique among all figures of a report.
        title: what it shows, with the number of samples.
        chart: marks of this module, layered, or a grid.
        whole: the chart has its size.
    """
    size: dict[str, int] = {} if whole else {"width": WIDTH, "height": HEIGHT}
    titled = chart.properties(title=alt.TitleParams(title, anchor="start"), **size)
    return Figure(name=name, spec=finished(name, titled).spec)


def _channels(x: Axis, y: Axis, colour: Axis | None) -> dict[str, Any]:
    found: dict[str, Any] = {"x": _position(alt.X, x), "y": _position(alt.Y, y)}
    if colour is not None:
        kind = "N" if colour.words else "Q"
        scale: dict[str, Any] = {} if colour.words else {"scale": alt.Scale(scheme="viridis")}
        legend = alt.Legend(format=".0%") if colour.percent else alt.Legend()
        found["color"] = alt.Color(
            f"{colour.field}:{kind}", title=colour.title, legend=legend, sort=None, **scale
        )
    return found


def _position(channel: Any, axis: Axis) -> Any:
    if axis.words:
        return channel(f"{axis.field}:N", title=axis.title, sort=None)
    look: dict[str, Any] = {"tickCount": 6}
    if axis.logit:
        look["labelExpr"] = "format(1 / (1 + exp(-datum.value)), '.3~p')"
    if axis.percent:
        look["format"] = ".4~p"
    scale = alt.Scale(zero=axis.zero, padding=0 if axis.zero else 8, nice=not axis.logit)
    return channel(f"{axis.field}:Q", title=axis.title, axis=alt.Axis(**look), scale=scale)


def _tooltip(rows: Rows) -> list[Any]:
    first = rows[0] if rows else {}
    return [
        alt.Tooltip(f"{name}:N" if isinstance(value, str) else f"{name}:Q")
        for name, value in first.items()
    ]
