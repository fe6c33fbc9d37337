"""Time of a collective on Trn1: published samples, or a table that nccom-test measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .constants import BOUNDARY, LATENCY_2, LATENCY_32, LINK
from .messages import Message

HOW = "nccom-test -r 32 --minbytes 1kb --maxbytes 64mb --stepfactor 4 -d fp32 allr --report-to-json-file FILE"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measured times of one kind of collective over `ranks`: (bytes, seconds), by size, as nccom-test counts bytes."""

    kind: str
    ranks: int
    points: tuple[tuple[float, float], ...]
    source: str

    def seconds(self, size: float) -> float:
        """Seconds for `size` bytes: linear between points; below the smallest its time, above the largest its rate."""
        below = [point for point in self.points if point[0] <= size]
        above = [point for point in self.points if point[0] > size]
        if not below:
            return above[0][1]
        if not above:
            return below[-1][1] * size / below[-1][0]
        (x0, y0), (x1, y1) = below[-1], above[0]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """How long messages take; `measured` tables come before the published samples."""

    measured: tuple[Table, ...] = ()

    def seconds(self, message: Message) -> float:
        """Seconds of one message.

        latency + passes (ranks - 1) / ranks x bytes / link rate: the cost of a ring, as nccom-test's bus bandwidth.
        """
        gathers, tp = message.kind == "all_gather", message.ranks
        size = message.bytes * (tp if gathers else 1)  # nccom-test counts a gather's output
        for table in self.measured:
            if (table.kind, table.ranks) == (message.kind, tp):
                return table.seconds(size)
        passes = 2 if message.kind == "all_reduce" else 1  # it is a reduce-scatter and an all-gather
        return latency(tp) + passes * (tp - 1) / tp * size / LINK.value


def latency(tp: int) -> float:
    """Seconds of a small message over `tp` ranks: fitted at 32, elsewhere in proportion to the published samples.

    Between the samples at 2 and 32 ranks it grows with log2(ranks).
    """
    if tp == 1:
        return 0.0
    sample = LATENCY_2.value + (LATENCY_32.value - LATENCY_2.value) * (math.log2(tp) - 1) / 4
    return BOUNDARY.value * sample / LATENCY_32.value


def read_nccom(paths: Iterable[Path]) -> Collectives:
    """Read files that `nccom-test --report-to-json-file` wrote, one operation and rank count each.

    Raises:
        UsageError: a file that cannot be read or is no such report, or two of the same operation and rank count.
    """
    tables: dict[tuple[str, int], Table] = {}
    for path in paths:
        table = parse_nccom(_read(path), source=str(path))
        twin = tables.setdefault((table.kind, table.ranks), table)
        if twin is not table:
            raise UsageError(f"{twin.source} and {path} both measure {table.kind} over {table.ranks} ranks; give one.")
    return Collectives(measured=tuple(tables.values()))


def parse_nccom(report: Any, *, source: str) -> Table:
    """The table of one report, in bytes and seconds. It names neither operation nor ranks; busbw / algbw gives both.

    That ratio is 2 (r - 1) / r for an all-reduce and (r - 1) / r for an all-gather (nccom-test guide, "Bus bandwidth
    calculation"), so that a ratio below 1 is a gather and from 1 on a reduction.

    Raises:
        UsageError: not such a report; the message says what it lacks.
    """
    try:
        rows = report["results"]
        points = sorted((float(row["size(B)"]), _microseconds(row) * 1e-6) for row in rows)
        ratios = {round(row["busbw(GB/s)"] / row["algbw(GB/s)"], 4) for row in rows}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{source} is no report of nccom-test ({what}); write one with `{HOW}`.") from None
    if not points or not all(math.isfinite(x) and x > 0 for point in points for x in point):
        raise UsageError(f"{source} holds no positive times; write it again with `{HOW}`.")
    kind, ranks = _operation(ratios)
    if not ranks:
        raise UsageError(
            f"{source} has busbw / algbw of {', '.join(map(str, sorted(ratios)))}, which is neither an all-reduce "
            f"(2 (r - 1) / r) nor an all-gather ((r - 1) / r) of one size; write it with `{HOW}`."
        )
    return Table(kind=kind, ranks=ranks, points=tuple(points), source=source)


def _operation(ratios: set[float]) -> tuple[str, int]:
    """Kind and ranks; 0 ranks when the ratios say neither."""
    ratio = max(ratios)
    if max(ratios) - min(ratios) > 1e-3 or not 0.5 <= ratio < 2:  # outside, neither formula holds
        return "", 0
    kind, ranks = ("all_reduce", 2 / (2 - ratio)) if ratio >= 1 else ("all_gather", 1 / (1 - ratio))
    return (kind, round(ranks)) if abs(ranks - round(ranks)) < 0.02 * ranks else ("", 0)


def _microseconds(row: dict[str, Any]) -> float:
    return float(row["time:avg(us)"] if "time:avg(us)" in row else row["time(us)"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}; write it with `{HOW}`.") from None
