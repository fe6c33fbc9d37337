"""What changed between two results of the same row, and whether it is worse. Pure; no torch.

Each threshold has its reason beside it. What is exact (verdicts, schedules, bytes held, operations) has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from ..results.gate import RATIO
from ..results.result import Collective, Gate, RankRecord, Result, Status

ERROR_FACTOR = 1.5  # sharding reorders sums: 1.02 x at most in 576 clean runs; the weakest fault is 4.4 x
RATIO_FACTOR = 1.1  # bfloat16's R: clean runs with locked routing lie between 0.95 and 1.09
LIMIT_FACTOR = 1.1  # limits follow the single-core error, which another CPU rounds a little differently
WALL_FACTOR = 0.1  # of a device's own time; what a host adds to a launch differs by less
# On shared cores other work slows a whole run down. Five runs of one program on two cores with about ten processes
# waiting, compared in pairs (600 rows): 1 row was a quarter slower beyond both scatters, 4 were faster.
CPU_FACTOR = 0.25
LEAST_REPEATS = 5  # fewer say nothing of noise
MEMORY_FACTOR = 0.1  # of what a forward adds to a rank: allocators keep freed pages or give them back
MEMORY_FLOOR = 16 << 20  # bytes; one arena of malloc more or less


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference in one row: `worse` True is a regression, False an improvement, None neither."""

    row: str
    kind: str
    what: str
    before: str
    after: str
    worse: bool | None
    reason: str = ""


def verdict_changes(before: Result, after: Result) -> Iterator[Change]:
    """Another status: from a pass to anything else is worse, or from unknown to a failure; among failures, neither.

    What is not proved any more may still be right, so that it is told, and neither worse nor better.
    """
    if before.status is not after.status:
        unknown = before.status in (Status.SKIPPED, Status.NOT_PROVED)
        told = after.status is Status.NOT_PROVED or not (after.status.passed or before.status.passed or unknown)
        worse = None if told else not after.status.passed
        yield _change(after, "verdict", "status", before.status.value, after.status.value, worse=worse,
                      reason=after.reason)  # fmt: skip


def check_changes(before: Result, after: Result) -> Iterator[Change]:
    """A pass that rests on less: checks or gates that are gone, limits that were raised."""
    checked = _judged(after)
    for name in _judged(before):
        if name not in checked:
            yield _change(after, "checks", name, "checked", "not checked", worse=True, reason="it cannot fail any more")
    if before.proof and after.proof:
        was_on, now_on = (proof.draws * len(proof.primes) for proof in (before.proof, after.proof))
        if now_on < was_on:
            yield _change(after, "checks", "points modulo a prime", str(was_on), str(now_on), worse=True,
                          reason="a wrong function is accepted more easily")  # fmt: skip
    for was, now in _same_gates(before, after):
        if now.limit > LIMIT_FACTOR * was.limit:
            yield _change(after, "checks", f"limit of {now.metric}", _short(was.limit), _short(now.limit), worse=True,
                          reason=f"more than {LIMIT_FACTOR:g} x")  # fmt: skip


def error_changes(before: Result, after: Result) -> Iterator[Change]:
    """Gates whose value moved by more than its factor; one that was exactly 0 must stay so.

    None in float64: below its limit an error is nothing but the order of sums, which another CPU changes.
    """
    if after.dtype == "float64":
        return
    for was, now in _same_gates(before, after):
        factor = RATIO_FACTOR if now.kind == RATIO else ERROR_FACTOR
        value_was, value_now = (math.inf if math.isnan(gate.value) else gate.value for gate in (was, now))
        worse = value_now > factor * value_was
        if worse or value_was > factor * value_now:
            reason = f"more than {factor:g} x"
            yield _change(after, "error", now.metric, _short(was.value), _short(now.value), worse=worse, reason=reason)


def latency_changes(before: Result, after: Result, *, wall: bool) -> Iterator[Change]:
    """Median time of a forward, where it moved by more than its factor and more than the repeats of both runs scatter.

    With `wall` a forward takes as long as its slowest rank; without, what counts is the CPU time of all ranks, because
    ranks that share cores wait for each other.
    """
    was, now = forward_seconds(before, wall=wall), forward_seconds(after, wall=wall)
    if was is None or now is None:
        return
    noise = max((WALL_FACTOR if wall else CPU_FACTOR) * median(was), _scatter(was) + _scatter(now))
    moved = median(now) - median(was)
    if abs(moved) > noise:
        what = "wall time of the slowest rank" if wall else "CPU time of all ranks"
        reason = f"more than the noise of {_ms(noise)} ({len(was)} and {len(now)} repeats)"
        yield _change(after, "latency", what, _ms(median(was)), _ms(median(now)), worse=moved > 0, reason=reason)


def memory_changes(before: Result, after: Result) -> Iterator[Change]:
    """Bytes of weights that the fullest rank holds (exact), and what a forward adds to the largest rank at its peak."""
    was, now = (max((rank.weight_bytes for rank in result.ranks), default=0) for result in (before, after))
    if was != now and was and now:
        yield _change(after, "memory", "weights of a rank", _bytes(was), _bytes(now), worse=now > was, reason="exact")
    was, now = (max((_added(rank) for rank in result.ranks), default=0) for result in (before, after))
    if was and now and abs(now - was) > max(MEMORY_FLOOR, MEMORY_FACTOR * was):
        reason = f"more than {MEMORY_FACTOR:.0%} and {_bytes(MEMORY_FLOOR)}"
        yield _change(
            after, "memory", "peak of a rank above its start", _bytes(was), _bytes(now), worse=now > was, reason=reason
        )


def collective_changes(before: Result, after: Result) -> Iterator[Change]:
    """Another schedule on rank 0 (all ranks have the same, or the verdict says so): more calls or bytes is worse."""
    if not before.ranks or not after.ranks:
        return
    was, now = (result.ranks[0].collectives for result in (before, after))
    if was == now:
        return
    grown = (len(now) - len(was), sum(c.bytes for c in now) - sum(c.bytes for c in was))
    worse = any(d > 0 for d in grown) or (False if any(grown) else None)
    first = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    reason = f"first at call {first}: {_call(was, first)} became {_call(now, first)}"
    yield _change(
        after, "collectives", "schedule of a rank", _schedule(was), _schedule(now), worse=worse, reason=reason
    )


def operation_changes(before: Result, after: Result) -> Iterator[Change]:
    """Operations of a forward, summed over the ranks, where both runs counted them (exact)."""
    was, now = ([rank.flops for rank in result.ranks] for result in (before, after))
    if None in was or None in now or not was or not now:
        return
    total_was, total_now = (sum(flops or 0 for flops in each) for each in (was, now))
    if total_was != total_now:
        worse = total_now > total_was
        yield _change(
            after, "operations", "of all ranks", f"{total_was:,}", f"{total_now:,}", worse=worse, reason="exact"
        )


def forward_seconds(result: Result, *, wall: bool) -> tuple[float, ...] | None:
    """Seconds of each repeat: of the slowest rank, or CPU seconds of all; None with too few repeats to judge."""
    forwards = [rank.forwards for rank in result.ranks]
    if not forwards or any(f is None or not f.warm for f in forwards):
        return None
    of_ranks = [f.wall_s if wall else f.cpu_s for f in forwards if f is not None]
    if len({len(times) for times in of_ranks}) > 1 or len(of_ranks[0]) < LEAST_REPEATS:
        return None
    return tuple(max(times) if wall else sum(times) for times in zip(*of_ranks, strict=True))


def _judged(result: Result) -> tuple[str, ...]:
    """Names of all that was judged."""
    return (*(check.name for check in result.checks), *(gate.metric for gate in result.gates))


def _same_gates(before: Result, after: Result) -> Iterator[tuple[Gate, Gate]]:
    gates = {gate.metric: gate for gate in before.gates}
    return ((gates[gate.metric], gate) for gate in after.gates if gate.metric in gates)


def _scatter(seconds: Sequence[float]) -> float:
    return max(seconds) - min(seconds)


def _added(rank: RankRecord) -> int:
    return rank.peak_bytes - rank.begin_bytes if rank.begin_bytes else 0


def _change(row: Result, kind: str, what: str, *values: str, worse: bool | None, reason: str) -> Change:
    return Change(row=row.title, kind=kind, what=what, before=values[0], after=values[1], worse=worse, reason=reason)


def _call(calls: tuple[Collective, ...], index: int) -> str:
    return str(calls[index]) if index < len(calls) else "nothing"


def _schedule(calls: tuple[Collective, ...]) -> str:
    return f"{len(calls)} calls, {_bytes(sum(call.bytes for call in calls))}"


def _short(value: float) -> str:
    return f"{value:.2g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _bytes(size: float) -> str:
    return f"{size:,.0f} B" if size < 1 << 20 else f"{size / 2**20:,.1f} MiB"
