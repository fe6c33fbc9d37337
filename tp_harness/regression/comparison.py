"""Two runs side by side: what they do not share, and what changed in the rows they do. Pure; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..results.result import Result
from ..results.run_record import RunRecord
from .rules import (
    Change,
    check_changes,
    collective_changes,
    error_changes,
    latency_changes,
    memory_changes,
    operation_changes,
    verdict_changes,
)

# What two runs must share for each kind of change to be one of the program; without it, the kind is not compared.
_WORK = ("case", "model", "batch", "seq")
_DATA = (*_WORK, "seed", "draws", "init", "checkpoint")
_MACHINE = ("backend", "platform", "cpus", "packages")
NEEDED: dict[str, tuple[str, ...]] = {
    "checks": (*_DATA, "backend"),
    "error": _DATA,
    "latency": (*_DATA, "kernels", *_MACHINE),
    "memory": (*_WORK, "kernels", *_MACHINE),
    "collectives": _WORK,
    "operations": (*_DATA, "kernels"),
}
_IRRELEVANT = {"out", "timeout", "targets", "degrees", "dtypes", "repeats"}  # rows and repeats speak for themselves


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`before` and `after` are run ids; rows are named as results are; `differences` reads `what: before -> after`."""

    before: str
    after: str
    differences: tuple[str, ...]
    not_compared: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    rows: int
    changes: tuple[Change, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What is worse."""
        return tuple(change for change in self.changes if change.worse)

    @property
    def exit_code(self) -> int:
        """Exit code 1 with any regression, else 0."""
        return 1 if self.regressions else 0


def compare(before: RunRecord, after: RunRecord) -> Comparison:
    """What changed from one run to the other, in the order of the later run's rows."""
    differences = _differences(_setting(before), _setting(after))
    kinds = [kind for kind, needed in NEEDED.items() if not set(needed) & differences.keys()]
    rows_before, rows_after = _rows(before), _rows(after)
    shared = [title for title in rows_after if title in rows_before]
    wall = before.backend == after.backend == "neuron"  # elsewhere ranks share cores
    return Comparison(
        before=before.run_id,
        after=after.run_id,
        differences=tuple(_said(name, *values) for name, values in differences.items()),
        not_compared=tuple(_reason(kind, differences) for kind in NEEDED if kind not in kinds),
        only_before=tuple(title for title in rows_before if title not in rows_after),
        only_after=tuple(title for title in rows_after if title not in rows_before),
        rows=len(shared),
        changes=(
            *_ending(before, after),
            *(c for title in shared for c in _changes(rows_before[title], rows_after[title], kinds, wall)),
        ),
    )


def _ending(before: RunRecord, after: RunRecord) -> Iterator[Change]:
    if not after.finished:
        yield Change(
            row="the run",
            kind="verdict",
            what="end",
            before="finished" if before.finished else "not finished",
            after="not finished",
            worse=True,
            reason="what it did not reach may have become worse",
        )


def _changes(before: Result, after: Result, kinds: list[str], wall: bool) -> Iterator[Change]:
    """Changes of the verdict; of the rest where both passed, for what a wrong module costs says nothing."""
    yield from verdict_changes(before, after)
    if not (before.status.passed and after.status.passed):
        return
    of_kind = {
        "checks": check_changes(before, after),
        "error": error_changes(before, after),
        "latency": latency_changes(before, after, wall=wall),
        "memory": memory_changes(before, after),
        "collectives": collective_changes(before, after),
        "operations": operation_changes(before, after),
    }
    for kind in kinds:
        yield from of_kind[kind]


def _rows(record: RunRecord) -> dict[str, Result]:
    return {result.title: result for result in record.results}


def _setting(record: RunRecord) -> dict[str, Any]:
    """What may explain a change: options, backend, machine, versions, and whether the run ended."""
    options = {name: value for name, value in record.options.items() if name not in _IRRELEVANT}
    environment = {name: value for name, value in record.environment.items() if name != "commit"}
    return {"backend": record.backend, **options, **environment, "finished": record.finished}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _said(name: str, before: Any, after: Any) -> str:
    """One difference; of a mapping only the entries that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return "; ".join(_said(f"{name}.{key}", *values) for key, values in _differences(before, after).items())
    return f"{name}: {_word(before)} -> {_word(after)}"


def _word(value: Any) -> str:
    return "not said" if value is None else str(value) or "none"


def _reason(kind: str, differences: Mapping[str, Any]) -> str:
    return f"{kind}: another {', '.join(name for name in NEEDED[kind] if name in differences)}"
