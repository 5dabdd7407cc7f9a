"""What all charts of the report share: their size, colours, axes and style."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt

from soupray.recipes.recipe import INK

WIDTH = 640
"""Pixels of a chart: it fits a page of 960 beside its axis and legend."""

CHAMPION, SINGLE = "#d1495b", "#3a86c8"
"""Colours that people with the usual colour blindness tell apart, also by lightness."""


class Chart(NamedTuple):
    """A chart of the report.

    Attributes:
        id: names it in the page.
        spec: in Vega-Lite.
    """

    id: str
    spec: dict[str, Any]


def chart_of(rows: list[dict[str, Any]], **size: Any) -> Any:
    """Return a chart of these rows. Its type is that of Altair's methods, which promise none."""
    return alt.Chart(alt.InlineData(values=rows), **size)


def finished(name: str, chart: Any) -> Chart:
    """Return a chart of the page, in the style of all."""
    grid = {"gridColor": "#e6e8ee", "domainColor": INK, "labelColor": INK, "titleColor": INK}
    whole = chart.configure_view(stroke=None).configure_axis(**grid, labelLimit=320)
    return Chart(f"chart-{name}", whole.configure_legend(labelLimit=320).to_dict())


def as_altair(chart: Chart) -> alt.TopLevelMixin:
    """Return a chart of the page as an object of Altair, which a notebook shows.

    Args:
        chart: the chart.
    """
    made: alt.TopLevelMixin = alt.Chart.from_dict(chart.spec)
    return made


PERCENT = alt.Axis(format=".4~p", tickCount=6)  # 95 %, or 99.95 % where ticks are so near
"""The axis of a share."""


def share_of(name: str, title: str) -> alt.Tooltip:
    """Return the line of a tooltip for a share, in %."""
    return alt.Tooltip(f"{name}:Q", title=title, format=".1%")
