"""The cost tables as cells of text, for HTML and for Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..results.run_record import RunRecord
from .costs import Cost, Scaling, costs, scaling
from .view import ratio, seconds, size, wall_time_counts

CostRow = tuple[str, int, str, list[tuple[Cost, Scaling]]]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # headers, rows


def cost_rows(record: RunRecord) -> list[CostRow]:
    """Component, layer, dtype, and per degree, ascending, its cost and the cost relative to degree 1."""
    return [
        (*key, [(cost, scaling(by_degree, tp)) for tp, cost in sorted(by_degree.items())])
        for key, by_degree in costs(record.results).items()
    ]


NO_DEGREE_1 = "What is held or done more than once is told by degree 1, which was not run: --tp 1 with the others."


def replication(rows: Sequence[CostRow], degrees: Iterable[int]) -> Table:
    """Per degree, FLOPs and weights summed over ranks, divided by degree 1's; the same in all dtypes of a component."""
    degrees = list(degrees)
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for component, layer, _dtype, by_degree in rows:
        line = {cost.tp: f"{ratio(scale.flops)} / {ratio(scale.weights)}" for cost, scale in by_degree}
        cells.setdefault((component, layer), {}).update(line)
    return (
        ("component", "layer", *(f"tp {tp}" for tp in degrees)),
        [(component, str(layer), *(line.get(tp, "-") for tp in degrees)) for (component, layer), line in cells.items()],
    )


def every_cost(record: RunRecord, rows: Sequence[CostRow]) -> Table:
    """A line per component, layer, dtype and degree."""
    wall = wall_time_counts(record)
    headers = ("component", "layer", "dtype", "tp", "latency (p10-p90)", "forwards", "CPU of busiest rank", "imbalance",
               *(("speed-up", "efficiency") if wall else ("CPU: T1 / T", "CPU: T1 / (tp T)")),
               "in collectives", "weights per rank", "peak memory per rank", "FLOPs per rank")  # fmt: skip
    return headers, [
        (component, str(layer), dtype, *_cost_cells(cost, scale, wall=wall))
        for component, layer, dtype, by_degree in rows
        for cost, scale in by_degree
    ]


def _cost_cells(cost: Cost, scale: Scaling, *, wall: bool) -> tuple[str, ...]:
    spread = f" ({seconds(cost.low_s)}-{seconds(cost.high_s)})" if cost.timed > 1 else ""
    speed_up, efficiency = (scale.speed_up, scale.efficiency) if wall else (scale.cpu_speed_up, scale.cpu_efficiency)
    return (
        str(cost.tp),
        seconds(cost.latency_s) + spread,
        f"{cost.timed} {'warm' if cost.warm else 'cold'}" if cost.timed else "-",
        seconds(max(cost.cpu_s, default=None)),
        ratio(cost.imbalance, 2),
        ratio(speed_up, 2),
        ratio(efficiency, 2),
        "-" if cost.communication is None else f"{cost.communication:.0%}",
        size(max(cost.weight_bytes, default=None)),
        size(max(cost.peak_bytes, default=None) or None),
        f"{max(cost.flops):,}" if cost.flops else "-",
    )


def collectives(rows: Sequence[CostRow]) -> Table:
    """Every kind of collective of one forward, per rank."""
    headers = ("component", "layer", "dtype", "tp", "kind", "of dtype", "ranks", "count", "bytes", "time (median rank)")
    return headers, [
        (component, str(layer), dtype, str(cost.tp), calls.kind, calls.dtype, str(calls.group_size), str(calls.count),
         size(calls.bytes), seconds(calls.seconds))
        for component, layer, dtype, by_degree in rows
        for cost, _scale in by_degree
        for calls in cost.calls
    ]  # fmt: skip


def counted_and_warm(rows: Sequence[CostRow]) -> str:
    """A sentence on how the times were measured, and on what was not counted."""
    found = [cost for *_key, by_degree in rows for cost, _scale in by_degree]
    timed = [cost for cost in found if cost.timed]
    if not timed:
        return "Nothing was timed: a first call builds the program. With --repeats 5 more are timed and FLOPs counted."
    if all(cost.warm for cost in timed):
        number = min(cost.timed for cost in timed)
        if number == 1:
            return "Times are those of one forward after a warm-up: what they scatter by is not known."
        return f"Times are medians (p10-p90) of {number} forwards after a warm-up."
    return (
        "Times are those of the one forward that was judged, cold: they hold its first allocations. "
        "With --repeats 5 warm ones are timed, and FLOPs are counted."
    )
