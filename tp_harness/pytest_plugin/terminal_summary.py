"""The table that closes a run with marked tests, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..results.gate import RATIO
from ..results.proof import at_most
from ..results.result import Status
from .pool_usage import core_seconds, ideal, occupations, shared, span
from .results import TestResult, row
from .settings import Settings


def closing(results: Sequence[TestResult], settings: Settings, workers: int) -> list[str]:
    """A row per test, or per component that a test verified, a column per degree; then how the cores were used."""
    degrees = sorted({result.tp for result in results})
    rows: dict[str, dict[int, TestResult]] = {}
    for result in results:
        rows.setdefault(row(result), {})[result.tp] = result
    cells = [["", *(f"tp {tp}" for tp in degrees)]]
    cells += [[title, *(_cell(by_degree.get(tp)) for tp in degrees)] for title, by_degree in sorted(rows.items())]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [*lines, _counts(results), *_usage(results, settings, workers)]


def _cell(result: TestResult | None) -> str:
    if result is None:
        return "-"
    if result.proof and result.status.passed:
        return f"{result.status.value} {at_most(result.proof.bound)}"
    if result.gate is None:
        return f"{result.status.value} {result.seconds:.1f} s"
    value = f"{result.gate.value:.2f}" if result.gate.kind == RATIO else f"{result.gate.value:.1e}"
    return f"{result.status.value} {value}"


def _counts(results: Sequence[TestResult]) -> str:
    counts = {status: sum(r.status is status for r in results) for status in Status}
    return ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)


def _usage(results: Sequence[TestResult], settings: Settings, workers: int) -> list[str]:
    tests = occupations(results)
    if not tests:
        return []
    pool, kind = len(settings.cores), "NeuronCores" if settings.neuron else "virtual cores"
    lines = [
        f"WRONG: {a.test} tp {a.tp} and {b.test} tp {b.tp} held a core at the same time: something else than this "
        "plugin removed the locks"
        for a, b in shared(results)
    ]
    return [
        *lines,
        f"{pool} {kind}: {core_seconds(tests):.1f} core-seconds held within {span(tests):.1f} s, ideal packing "
        f"{ideal(tests, pool=pool, workers=workers):.1f} s; longest wait {max(r.waited_s for r in tests):.1f} s",
    ]
