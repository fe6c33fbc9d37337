"""A chart as static SVG, for pages without scripts and for print. Colours come from the page's style sheet.

Pure: Chart -> text. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from .charts import Chart, Series
from .view import seconds, size

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 14, 52
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
LEGEND_ROW, LEGEND_COLUMN = 20, 210
MARKERS = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4h8v8h-8z", "M0,-5l5,9h-10z", "M0,-5l5,5l-5,5l-5,-5z")
MAX_X_LABELS = 12

Scale = Callable[[float], float]


def svg(chart: Chart) -> str:
    """The chart as an SVG element, with a title and description for screen readers."""
    low, high = span(chart)
    y = _scale(low, high, log=chart.log)
    listed = [series for series in chart.series if series.listed]
    rows = math.ceil((len(listed) + len(chart.drawn_lines)) / 3)
    body = _stacks(chart, y) if chart.kind == "stack" else "".join(_line(chart, s, y) for s in chart.series)
    return (
        f'<svg class="static" role="img" viewBox="0 0 {WIDTH} {HEIGHT + rows * LEGEND_ROW}" '
        f'aria-label="{escape(chart.title)}"><title>{escape(chart.title)}</title><desc>{escape(chart.caption)}</desc>'
        f"{_axes(chart, low, high, y)}{body}{_lines(chart, y)}{_legend(chart, listed)}</svg>"
    )


def value_text(chart: Chart, value: float | None) -> str:
    """A value of a series with its unit, to three digits; a dash where there is none."""
    if value is None:
        return "-"
    return text_of(chart, value) if chart.unit else f"{value:.3g}"


def text_of(chart: Chart, value: float) -> str:
    """A value in the chart's unit, as an axis is labelled."""
    if chart.unit == "s":
        return seconds(value)
    if chart.unit == "B":
        return size(value)
    if chart.unit == "%":
        return f"{value:.0%}"
    return f"{value:.0e}" if chart.log else f"{value:.3g}"


def span(chart: Chart) -> tuple[float, float]:
    """The lowest and highest value of the y axis, in the chart's unit; whole decades when it is logarithmic."""
    values = [v for series in chart.series for v in series.values if v is not None and chart.drawable(v)]
    if chart.kind == "stack":
        columns = zip(*(series.values for series in chart.series), strict=True)
        values = [sum(v or 0 for v in column) for column in columns]
    values += [line.value for line in chart.drawn_lines]
    values = values or [1.0]
    if chart.log:
        return 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values) * 1.01))
    top = max([*values, 1e-12])
    if chart.from_zero:
        return 0.0, top * 1.08
    margin = max(0.1 * (top - min(values)), 0.01 * top)
    return min(values) - margin, top + margin


def _scale(low: float, high: float, *, log: bool) -> Scale:
    """Value -> y in the picture; values below a logarithmic axis are put at its lower end."""

    def place(value: float) -> float:
        above, whole = (math.log(max(value, low) / low), math.log(high / low)) if log else (value - low, high - low)
        return TOP + PLOT_HEIGHT * (1 - min(max(above / whole, 0), 1))

    return place


def ticks(chart: Chart, low: float, high: float) -> Sequence[float]:
    """The labelled values from `low` to `high`, in the chart's unit: decades, powers of 16 (bytes), or round steps."""
    if chart.log and chart.unit == "B":
        return [tick for tick in (2.0**power for power in range(-2, 60, 4)) if low <= tick <= high]
    if chart.log:
        first, last = round(math.log10(low)), round(math.log10(high))
        return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 6))]
    raw = (high - low) / 5
    unit = 2.0 ** (10 * (math.log2(raw) // 10)) if chart.unit == "B" else 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1024) if unit * factor >= raw)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _x(chart: Chart, index: int) -> float:
    """The middle of a label's column."""
    return LEFT + PLOT_WIDTH * (index + 0.5) / len(chart.x)


def _axes(chart: Chart, low: float, high: float, y: Scale) -> str:
    parts = []
    for tick in ticks(chart, low, high):
        at, label = y(tick), escape(text_of(chart, tick))
        parts.append(f'<path class="grid" d="M{LEFT},{at:.1f}h{PLOT_WIDTH}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for index in range(0, len(chart.x), math.ceil(len(chart.x) / MAX_X_LABELS)):
        place = f'x="{_x(chart, index):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{escape(chart.x[index])}</text>')
    foot = f'x="{LEFT + PLOT_WIDTH / 2}" y="{HEIGHT - 12}"'
    side = f'transform="translate(14,{TOP + PLOT_HEIGHT / 2}) rotate(-90)"'
    for place, title in ((foot, chart.x_title), (side, chart.y_title)):
        parts.append(f'<text class="axis" {place} text-anchor="middle">{escape(title)}</text>')
    return "".join(parts)


def _line(chart: Chart, series: Series, y: Scale) -> str:
    """The series' points, joined where neighbours have values."""
    path, pen, marks = "", "M", ""
    for index, value in enumerate(series.values):
        if value is None or not chart.drawable(value):
            pen = "M"
            continue
        x, at = _x(chart, index), y(value)
        path += f"{pen}{x:.1f},{at:.1f}"
        pen = "L"
        if not series.dashed:
            tip = f"<title>{_tip(chart, series, index)}</title>"
            marks += f'<path class="mark" transform="translate({x:.1f},{at:.1f})" d="{_shape(series)}">{tip}</path>'
    style = f"s{series.colour % 8}{' dashed' if series.dashed else ''}"
    return f'<g class="{style}"><path class="line" d="{path}"/>{marks}</g>' if path else ""


def _shape(series: Series) -> str:
    return MARKERS[series.variant % len(MARKERS)]


def _tip(chart: Chart, series: Series, index: int) -> str:
    return escape(f"{series.name} at {chart.x[index]}: {value_text(chart, series.values[index])}")


def _stacks(chart: Chart, y: Scale) -> str:
    width = max(1.0, PLOT_WIDTH / len(chart.x) * 0.8)
    parts, foot = [], [0.0] * len(chart.x)
    for series in chart.series:
        bars = []
        for index, value in enumerate(series.values):
            top, bottom = y(foot[index] + (value or 0)), y(foot[index])
            foot[index] += value or 0
            place = f'x="{_x(chart, index) - width / 2:.1f}" y="{top:.1f}"'
            tip = f"<title>{_tip(chart, series, index)}</title>"
            bars.append(f'<rect {place} width="{width:.1f}" height="{bottom - top:.1f}">{tip}</rect>')
        parts.append(f'<g class="bar s{series.colour % 8}">{"".join(bars)}</g>')
    return "".join(parts)


def _lines(chart: Chart, y: Scale) -> str:
    return "".join(f'<path class="limit" d="M{LEFT},{y(line.value):.1f}h{PLOT_WIDTH}"/>' for line in chart.drawn_lines)


def _legend(chart: Chart, listed: Sequence[Series]) -> str:
    bar = " bar" if chart.kind == "stack" else ""
    entries = [(f"s{s.colour % 8}{bar}", f'<path class="mark" d="{_shape(s)}"/>', s.name) for s in listed]
    entries += [("", '<path class="limit" d="M-9,0h18"/>', line.name) for line in chart.drawn_lines]
    parts = []
    for number, (style, mark, name) in enumerate(entries):
        place = f"translate({LEFT + number % 3 * LEGEND_COLUMN},{HEIGHT + number // 3 * LEGEND_ROW + 8})"
        text = f'<text class="tick" x="14" y="4">{escape(name)}</text>'
        parts.append(f'<g class="{style}" transform="{place}">{mark}{text}</g>')
    return "".join(parts)
