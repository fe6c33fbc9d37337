"""The charts of a run as data, without colours or positions; `svg` and `plotly` draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ..config.dtypes import DTYPES, SIXTEEN_BITS
from ..errors import printable
from ..results.result import Gate, Result, Status
from ..results.run_record import RunRecord
from .costs import Cost, Key, costs, scaling
from .headline import worst_output
from .view import components, matrix, wall_time_counts

CORE_BYTES = 16 * 2**30  # HBM of one NeuronCore of a trn1.32xlarge


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line or stack: a value per x, None where there is none. A legend entry toggles all series of its `group`."""

    name: str
    values: tuple[float | None, ...]
    colour: int
    variant: int = 0
    dashed: bool = False
    listed: bool = True
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A horizontal line at `value`, such as a limit."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart; `x` are labels, and `unit` is that of values: "" (none), "s", "B" or "%" (fractions, 1 is 100 %)."""

    id: str
    title: str
    caption: str
    x_title: str
    y_title: str
    x: tuple[str, ...]
    series: tuple[Series, ...]
    lines: tuple[Line, ...] = ()
    kind: Literal["lines", "stack"] = "lines"
    log: bool = False
    from_zero: bool = True
    unit: str = ""

    def drawable(self, value: float) -> bool:
        """Whether the axis can show a value, in the chart's unit: it is finite, and positive unless the axis has 0.

        Values above 1e300 or, on an axis without 0, up to 1e-300 are not drawn either: the axis' ends would overflow.
        """
        return abs(value) < 1e300 and (self.from_zero or value > 1e-300)

    @property
    def drawn_lines(self) -> tuple[Line, ...]:
        """The lines that can be drawn: a limit may be infinite."""
        return tuple(line for line in self.lines if self.drawable(line.value))


def accuracy_charts(record: RunRecord) -> list[Chart]:
    """Charts of the error against degree, with limits: rel_L2 in float64 and float32, R in 16 bits, without unit."""
    wanted = {
        "float64": ("error-float64", "float64 error against degree", "relative L2 error", True),
        "float32": ("error-float32", "float32 error against degree", "relative L2 error", True),
    } | {dtype: (f"error-{dtype}", f"{dtype} error against degree", "R", False) for dtype in SIXTEEN_BITS}
    of_errors = (
        "Relative L2 error of the worst output of all draws against the float64 oracle; dashed: the limit of the same "
        "colour. An error of exactly 0 has no place on a logarithmic axis."
    )
    captions = {
        "float64": of_errors,
        "float32": of_errors,
    } | {
        dtype: f"R: error of the sharded run over the error of the single-core {dtype} run, routing locked. 1 is as "
        "exact as one core; dashed: the limit. An exact output (R 0) is not drawn."
        for dtype in SIXTEEN_BITS
    }
    charts = []
    for dtype, (name, title, y_title, log) in wanted.items():
        gates = (worst_output(r) for r in record.results if r.dtype == dtype)
        limits = {gate.limit for gate in gates if gate}
        one = limits.pop() if len(limits) == 1 else None
        series = tuple(_error_series(record, dtype, with_limits=one is None))
        if series:
            charts.append(
                Chart(
                    id=name,
                    title=title,
                    caption=captions[dtype],
                    x_title="tp_degree",
                    y_title=y_title,
                    x=_labels(record),
                    series=series,
                    lines=() if one is None else (Line(name=f"limit {one:g}", value=one),),
                    log=log,
                    from_zero=False,
                )
            )
    return charts


def _error_series(record: RunRecord, dtype: str, *, with_limits: bool) -> Iterable[Series]:
    palette = _Palette(record)
    for (component, layer, of), row in matrix(record.results).items():
        gates = [_number(row.get(tp)) for tp in _degrees(record)]
        if of != dtype or not any(gates):
            continue
        name = f"{printable(component)} {layer}"
        look = {"colour": palette.colour(component), "variant": palette.variant(component, layer), "group": name}
        yield Series(name=name, values=tuple(g.value if g else None for g in gates), **look)  # type: ignore[arg-type]
        if with_limits:
            limits = tuple(g.limit if g else None for g in gates)
            yield Series(name=f"limit of {name}", values=limits, dashed=True, listed=False, **look)  # type: ignore[arg-type]


def _number(result: Result | None) -> Gate | None:
    return worst_output(result) if result else None


def time_charts(record: RunRecord) -> list[Chart]:
    """One chart per component and layer: the seconds of each rank at each degree."""
    charts: list[Chart] = []
    found = costs(record.results)
    for component, layer, dtype in _one_dtype(found):
        timed = [cost for _, cost in sorted(found[component, layer, dtype].items()) if cost.wall_s]
        if timed:
            charts.append(_time_chart(f"time-{len(charts)}", f"{printable(component)} layer {layer} {dtype}", timed))
    return charts


def _time_chart(name: str, title: str, timed: list[Cost]) -> Chart:
    """Stacks of compute and collectives, or the whole time where collectives were not timed."""
    caption = "Median wall time of one forward on each rank"
    if all(cost.collective_s for cost in timed):
        caption += ": outside collectives, and inside them (waiting for other ranks included)."
        parts = {
            "compute": [s for cost in timed for s in cost.compute_s],
            "collectives": [s for cost in timed for s in cost.collective_s],
        }
    else:
        caption += "; collectives were not timed apart."
        parts = {"forward": [s for cost in timed for s in cost.wall_s]}
    return Chart(
        id=name,
        title=title,
        caption=caption,
        x_title="rank at tp_degree",
        y_title="seconds",
        x=tuple(f"{rank}@{cost.tp}" for cost in timed for rank in range(len(cost.wall_s))),
        series=tuple(Series(name=part, values=tuple(v), colour=i) for i, (part, v) in enumerate(parts.items())),
        kind="stack",
        unit="s",
    )


def cost_charts(record: RunRecord) -> list[Chart]:
    """Charts against the degree: communication and efficiency as fractions, weights per core in bytes."""
    wall = wall_time_counts(record)
    what, of = ("wall time", "wall") if wall else ("CPU time of the busiest rank", "CPU")
    charts = [
        Chart(
            id="communication",
            title="Communication share against degree",
            caption="Share of the ranks' wall time spent inside collectives, waiting for other ranks included.",
            x_title="tp_degree",
            y_title="share of wall time",
            x=_labels(record),
            series=_cost_series(record, lambda _by_degree, cost: cost.communication),
            unit="%",
        ),
        Chart(
            id="efficiency",
            title=f"Efficiency against degree, from {of} time",
            caption=f"T1 / (tp x T_tp), T being the {what}. 100 %: the work is divided evenly, nothing is done twice.",
            x_title="tp_degree",
            y_title="T1 / (tp x T_tp)",
            x=_labels(record),
            series=_cost_series(record, lambda by_degree, cost: _efficiency(by_degree, cost.tp, wall=wall)),
            lines=(Line(name="ideal", value=1.0),),
            unit="%",
        ),
        Chart(
            id="memory",
            title="Weights per core against degree",
            caption="Bytes of weights, as stored, that the fullest rank holds, against the 16 GiB of a NeuronCore of "
            "Trn1. Cache and activations come on top: see the model.",
            x_title="tp_degree",
            y_title="bytes per core",
            x=_labels(record),
            series=_cost_series(record, lambda _by_degree, cost: max(cost.weight_bytes) or None),
            lines=(Line(name="16 GiB, one NeuronCore", value=CORE_BYTES),),
            log=True,
            from_zero=False,
            unit="B",
        ),
    ]
    shown = [chart for chart in charts[:-1] if any(_beyond_one(record, series) for series in chart.series)]
    return [*shown, *(chart for chart in charts[-1:] if chart.series)]


def _beyond_one(record: RunRecord, series: Series) -> bool:
    """Whether there is a value at a degree above 1: a chart of degree 1 alone compares nothing."""
    return any(v is not None for tp, v in zip(_degrees(record), series.values, strict=True) if tp > 1)


def _efficiency(by_degree: dict[int, Cost], tp: int, *, wall: bool) -> float | None:
    scale = scaling(by_degree, tp)
    return scale.efficiency if wall else scale.cpu_efficiency


def _cost_series(record: RunRecord, value: Callable[[dict[int, Cost], Cost], float | None]) -> tuple[Series, ...]:
    """A line per component and layer, in one dtype: that of the fewest digits, bfloat16 where it was run."""
    palette, found, lines = _Palette(record), costs(record.results), []
    for component, layer, dtype in _one_dtype(found):
        by_degree = found[component, layer, dtype]
        values = [value(by_degree, by_degree[tp]) if tp in by_degree else None for tp in _degrees(record)]
        if any(v is not None for v in values):
            name = f"{printable(component)} {layer}"
            colour, variant = palette.colour(component), palette.variant(component, layer)
            lines.append(Series(name=name, values=tuple(values), colour=colour, variant=variant, group=name))
    return tuple(lines)


def _one_dtype(found: Iterable[Key]) -> list[Key]:
    keys = list(found)
    dtypes = {dtype for _, _, dtype in keys}
    chosen = next((dtype for dtype in reversed(DTYPES) if dtype in dtypes), min(dtypes, default=""))
    return [key for key in keys if key[2] == chosen]


class _Palette:
    """A colour per component and a variant per layer of it, the same in all charts of a run."""

    def __init__(self, record: RunRecord) -> None:
        self.layers: dict[str, list[int]] = {}
        for component, layer in components(record.results):
            self.layers.setdefault(component, []).append(layer)

    def colour(self, component: str) -> int:
        return list(self.layers).index(component)

    def variant(self, component: str, layer: int) -> int:
        return self.layers[component].index(layer)


def _degrees(record: RunRecord) -> list[int]:
    return sorted({result.tp for result in record.results if result.status is not Status.SKIPPED})


def _labels(record: RunRecord) -> tuple[str, ...]:
    return tuple(str(tp) for tp in _degrees(record))
