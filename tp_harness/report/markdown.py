"""report.md: what goes into a pull request. The verdict first, then the table, then every failure. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import printable
from ..record import RunRecord
from ..result import Result, Status
from ..scoreboard import Trial, remarks, score_table
from ..table import divergence_text
from . import cells, view

MAX_FAILURES = 20  # more would hide the first; all are in report.html


def render(record: RunRecord, trials: Sequence[Trial] = ()) -> str:
    """The page, as GitHub renders it; `trials` as for report.html."""
    parts = [
        f"## {view.word(record)}: {view.headline(record)}",
        f"{view.counts(record.results)}; {_code(view.subject(record))}, backend {_code(record.backend)}, "
        f"{view.started(record)}, {view.seconds(record.seconds)}.",
        f"Not seen by this run: {_text(record.blind_spots)}.",
        *(f"Note: {_text(note)}" for note in record.notes),
        _verdicts(record),
        *_failures(record),
        *_faults(record, trials),
        *_costs(record),
        f"Repeat with {_code(record.command)}. Limits, logs and charts: report.html.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(record: RunRecord) -> str:
    degrees = view.degrees(record.results)
    rows = [
        (_code(component), str(layer), dtype, *(_cell(by_degree.get(tp)) for tp in degrees))
        for (component, layer, dtype), by_degree in view.matrix(record.results).items()
    ]
    return _table(("component", "layer", "dtype", *(f"tp {tp}" for tp in degrees)), rows) if rows else ""


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    measure = view.measure(result)
    return measure or "PASS" if result.status is Status.PASS else f"**{result.status.value}** {measure}".rstrip()


def _failures(record: RunRecord) -> list[str]:
    failures = view.failures(record.results)
    parts = ["### Failures"] if failures else []
    parts += [_failure(record, result) for result in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        parts.append(f"{len(failures) - MAX_FAILURES} more are in report.html.")
    return parts


def _failure(record: RunRecord, result: Result) -> str:
    lines = [f"**{result.status.value}** {_code(result.title)}: {_text(result.reason)}"]
    if result.first_divergence:
        lines.append(f"- First wrong tensor: {_text(divergence_text(result.first_divergence))}")
    lines += [f"- Cause: {_text(cause.name)}: {_text(cause.sentence)}" for cause in result.diagnosis]
    if result.worst:
        worst = result.worst
        where = _code(f"{worst.tensor}{list(worst.index)}")
        lines.append(f"- Worst element: {where} on rank {worst.rank} is {worst.actual:.6g}, not {worst.expected:.6g}")
    for label, path in view.logs(record, result)[:1]:
        lines.append(f"- Log of {label}: {_code(path)}")
    lines.append(f"- Repeat: {_code(view.command(record, result))}")
    return "\n".join(lines)


def _faults(record: RunRecord, trials: Sequence[Trial]) -> list[str]:
    """Controls in one line; kill scores as a table."""
    controls = [
        f"{_code(c.fault)} at tp {c.tp}{' rejected' if c.rejected else ' **NOT rejected**'}" for c in record.controls
    ]
    parts = [f"Faults put in as a control: {', '.join(controls)}."] if controls else []
    if trials:
        table = score_table(trials)
        parts.append(_table(table.headers, [tuple(map(_text, row)) for row in table.rows]))
        parts += [_text(remark) for remark in remarks(trials)]
    return parts


def _costs(record: RunRecord) -> list[str]:
    rows = cells.cost_rows(record)
    if not rows:
        return []
    degrees = view.degrees(record.results)
    return [
        "<details><summary>Cost, measured</summary>",
        f"{view.time_note(record)} {cells.counted_and_warm(rows)}",
        *_replication(rows, degrees),
        _table(*_with_code(cells.every_cost(record, rows))),
        "</details>",
    ]


def _replication(rows: Sequence[cells.CostRow], degrees: Sequence[int]) -> tuple[str, ...]:
    if 1 not in degrees:
        return (cells.NO_DEGREE_1,)
    return (
        "FLOPs of one forward and bytes of weights, summed over all ranks, over degree 1's:",
        _table(*_with_code(cells.replication(rows, degrees))),
    )


def _with_code(table: cells.Table) -> cells.Table:
    headers, rows = table
    return headers, [(_code(row[0]), *row[1:]) for row in rows]


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *rows))


def _code(text: str) -> str:
    """A code span, in which nothing is markup and nobody is mentioned; also within a table."""
    text = printable(re.sub(r"\s+", " ", text)).replace("|", "\\|") or " "
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _text(text: str) -> str:
    """Plain words: markup characters are escaped, and `@name` mentions nobody."""
    text = printable(re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return text.replace("@", "@\u200b").replace("://", ":\u200b//")
