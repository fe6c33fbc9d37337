"""The cost of each component at each degree, computed from the ranks' records. Nothing here is modelled.

A rank's time is its median over the timed forwards. A forward ends when its slowest rank does, so latency is the
largest wall time over ranks, forward by forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from ..results.result import Collective, RankRecord, Result

Key = tuple[str, int, str]  # component, layer, dtype


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Collectives of one kind, dtype and group size: per rank their count and bytes; median over ranks of seconds."""

    kind: str
    dtype: str
    group_size: int
    count: int
    bytes: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One component, layer and dtype at one degree: seconds and bytes, tuples with a number per rank.

    `timed` forwards gave the times; `low_s` and `high_s` are the 10th and 90th percentile of the latency. What was not
    measured is None or empty.
    """

    tp: int
    timed: int
    warm: bool
    latency_s: float | None
    low_s: float | None
    high_s: float | None
    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    collective_s: tuple[float, ...]
    weight_bytes: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    flops: tuple[int, ...]
    calls: tuple[Calls, ...]

    @property
    def imbalance(self) -> float | None:
        """The busiest rank's CPU time divided by the mean; 1 is even, None where it was not measured."""
        total = sum(self.cpu_s)
        return max(self.cpu_s) * len(self.cpu_s) / total if total else None

    @property
    def compute_s(self) -> tuple[float, ...]:
        """Seconds of wall time outside collectives, by rank."""
        return tuple(max(0.0, wall - inside) for wall, inside in zip(self.wall_s, self.collective_s, strict=False))

    @property
    def communication(self) -> float | None:
        """The fraction of all ranks' wall time inside collectives; None where they were not timed."""
        return sum(self.collective_s) / sum(self.wall_s) if self.collective_s and sum(self.wall_s) else None


def costs(results: Iterable[Result]) -> dict[Key, dict[int, Cost]]:
    """Per component, layer and dtype: degree -> cost. Results without timed ranks are left out."""
    found: dict[Key, dict[int, Cost]] = {}
    for result in results:
        if result.ranks and all(rank.forwards for rank in result.ranks):
            key = (result.label, result.layer, result.dtype)
            found.setdefault(key, {})[result.tp] = _cost(result.tp, result.ranks)
    return found


def _cost(tp: int, ranks: Sequence[RankRecord]) -> Cost:
    forwards = [rank.forwards for rank in ranks if rank.forwards]
    latencies = [max(walls) for walls in zip(*(f.wall_s for f in forwards), strict=False)]
    low, high = _p10_p90(latencies)
    timed = all(f.collective_s for f in forwards)
    return Cost(
        tp=tp,
        timed=len(latencies),
        warm=all(f.warm for f in forwards),
        latency_s=median(latencies) if latencies else None,
        low_s=low,
        high_s=high,
        wall_s=tuple(median(f.wall_s) for f in forwards) if latencies else (),
        cpu_s=tuple(median(f.cpu_s) for f in forwards) if all(f.cpu_s for f in forwards) else (),
        collective_s=tuple(median(f.collective_s) for f in forwards) if timed else (),
        weight_bytes=tuple(rank.weight_bytes for rank in ranks),
        peak_bytes=tuple(rank.peak_bytes for rank in ranks),
        flops=tuple(rank.flops for rank in ranks if rank.flops is not None),
        calls=_calls(ranks),
    )


def _p10_p90(values: list[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return (values[0], values[0]) if values else (None, None)
    tenths = quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def _calls(ranks: Sequence[RankRecord]) -> tuple[Calls, ...]:
    """Rank 0's calls (the verdict checks that others have the same), summed by kind, dtype and group size."""
    groups: dict[tuple[str, str, int], None] = dict.fromkeys(map(_kind, ranks[0].collectives))
    return tuple(_sum_of(group, ranks) for group in groups)


def _kind(call: Collective) -> tuple[str, str, int]:
    return call.kind, call.dtype, call.group_size


def _sum_of(group: tuple[str, str, int], ranks: Sequence[RankRecord]) -> Calls:
    mine = [call for call in ranks[0].collectives if _kind(call) == group]
    by_rank = [[call.seconds for call in rank.collectives if _kind(call) == group] for rank in ranks]
    sums = [sum(s for s in seconds if s is not None) for seconds in by_rank if seconds and None not in seconds]
    return Calls(
        kind=group[0],
        dtype=group[1],
        group_size=group[2],
        count=len(mine),
        bytes=sum(call.bytes for call in mine),
        seconds=median(sums) if sums else None,
    )


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Ratios of a cost to degree 1's; None where one of the two is missing or zero.

    `speed_up` is T1 / T_tp and `efficiency` T1 / (tp T_tp), of wall time or (cpu_...) of the busiest rank's CPU time.
    `flops` and `weights` are the sum over ranks divided by degree 1's: above 1, some is done or held more than once.
    """

    speed_up: float | None
    efficiency: float | None
    cpu_speed_up: float | None
    cpu_efficiency: float | None
    flops: float | None
    weights: float | None


def scaling(by_degree: Mapping[int, Cost], tp: int) -> Scaling:
    """The cost at degree `tp` relative to degree 1.

    Raises:
        KeyError: degree `tp` has no cost.
    """
    cost, one = by_degree[tp], by_degree.get(1)
    wall = _ratio(one.latency_s if one else None, cost.latency_s)
    cpu = _ratio(max(one.cpu_s, default=None) if one else None, max(cost.cpu_s, default=None))
    return Scaling(
        speed_up=wall,
        efficiency=wall / tp if wall is not None else None,
        cpu_speed_up=cpu,
        cpu_efficiency=cpu / tp if cpu is not None else None,
        flops=_ratio(sum(cost.flops), sum(one.flops) if one else 0),
        weights=_ratio(sum(cost.weight_bytes), sum(one.weight_bytes) if one else 0),
    )


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None
