"""A chart as plotly.js takes it: traces and a layout, without colours, which the page's theme sets. Pure."""

from __future__ import annotations

import math
from typing import Any

from .charts import Chart, Series
from .svg import span, text_of, ticks, value_text

_SYMBOLS = ("circle", "square", "triangle-up", "diamond")


def plotly(chart: Chart) -> dict[str, Any]:
    """`traces` (whose `colour` is an index in the palette, or "limit") and `layout`, of JSON values."""
    return {
        "traces": [*(_trace(chart, series) for series in chart.series), *_lines(chart)],
        "layout": {
            "xaxis": {"title": {"text": chart.x_title, "standoff": 6}, "type": "category"},
            "yaxis": _y_axis(chart),
            "barmode": "stack",
        },
    }


def _trace(chart: Chart, series: Series) -> dict[str, Any]:
    values = [v if v is not None and chart.drawable(v) else None for v in series.values]
    trace: dict[str, Any] = {
        "x": list(chart.x),
        "y": values,
        "name": _plain(series.name),
        "text": [value_text(chart, v) for v in values],
        "colour": series.colour,
        "showlegend": series.listed,
        "legendgroup": series.group or series.name,
        "hovertemplate": "%{fullData.name} at %{x}: %{text}<extra></extra>",
    }
    if chart.kind == "stack":
        return trace | {"type": "bar", "textposition": "none"}
    symbol = _SYMBOLS[series.variant % len(_SYMBOLS)]
    line = {"dash": "dash", "width": 1} if series.dashed else {"width": 2}
    mode = "lines" if series.dashed else "lines+markers"
    return trace | {"type": "scatter", "mode": mode, "line": line, "marker": {"symbol": symbol, "size": 8}}


def _lines(chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            "x": list(chart.x),
            "y": [line.value] * len(chart.x),
            "name": _plain(line.name),
            "type": "scatter",
            "mode": "lines",
            "line": {"dash": "dash", "width": 2},
            "colour": "limit",
            "hovertemplate": "%{fullData.name}<extra></extra>",
        }
        for line in chart.drawn_lines
    ]


def _y_axis(chart: Chart) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": {"text": chart.y_title, "standoff": 8},
        "rangemode": "tozero" if chart.from_zero else "normal",
    }
    low, high = span(chart)
    if chart.log:
        axis |= {"type": "log", "range": [math.log10(low), math.log10(high)]}
    if chart.log or chart.unit in ("s", "B"):
        marks = list(ticks(chart, low, high))
        axis |= {"tickvals": marks, "ticktext": [text_of(chart, mark) for mark in marks]}
    if chart.unit == "%":
        axis |= {"tickformat": ".0%"}
    return axis


def _plain(text: str) -> str:
    """The text escaped: plotly.js would read <b>, <a href> and the like in it as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
