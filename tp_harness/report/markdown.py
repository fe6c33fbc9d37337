"""report.md, a text for a pull request: the verdict first, then what is wrong, then the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import printable
from ..results.mutation_score import Trial, remarks, score_table
from ..results.result import Result, Status
from ..results.run_record import RunRecord
from . import cells, proofs, view
from .failure_text import details, sentence
from .failures import Failure, failures, title_of
from .headline import legend
from .terminal import controls_text

MAX_FAILURES = 20  # more would hide the first; all are in report.html


def render(record: RunRecord, trials: Sequence[Trial] = ()) -> str:
    """The page, as GitHub renders it; `trials` as for report.html."""
    parts = [
        f"## {view.word(record)}: {view.headline(record)}",
        f"{view.counts(record.results)}; {_code(view.subject(record))}, backend {_code(record.backend)}, "
        f"{view.started(record)}, {view.seconds(record.seconds)}.",
        f"Not seen by this run: {_text(record.blind_spots)}.",
        *(f"Note: {_text(note)}" for note in record.notes),
        *_failures(record),
        *_verdicts(record),
        *_proofs(record),
        *_faults(record, trials),
        *_costs(record),
        f"Repeat with {_code(record.command)}. Limits, logs and charts: report.html.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(record: RunRecord) -> list[str]:
    degrees = view.degrees(record.results)
    rows = [
        (_code(component), str(layer), dtype, *(_cell(by_degree.get(tp)) for tp in degrees))
        for (component, layer, dtype), by_degree in view.matrix(record.results).items()
    ]
    table = _table(("component", "layer", "dtype", *(f"tp {tp}" for tp in degrees)), rows)
    return [text for text in (table, legend(record.results)) if text] if rows else []


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    measure = view.measure(result)
    if result.status is Status.PASS:
        return measure or "PASS"
    word = result.status.value if result.status.passed else f"**{result.status.value}**"
    return f"{word} {measure}".rstrip()


def _proofs(record: RunRecord) -> list[str]:
    headers, rows = proofs.table(record.results)
    if not rows:
        return []
    table = _table(headers, [tuple(map(_text, row)) for row in rows])
    claim = _text(proofs.claim(record.results))
    return ["<details><summary>Proofs in exact arithmetic</summary>", claim, table, "</details>"]


def _failures(record: RunRecord) -> list[str]:
    """A paragraph for each mistake, as the terminal has it."""
    found = failures(record.results)
    parts = [f"### {title_of(found)}"] if found else []
    parts += [_failure(record, failure) for failure in found[:MAX_FAILURES]]
    if len(found) > MAX_FAILURES:
        parts.append(f"{len(found) - MAX_FAILURES} more are in report.html.")
    return parts


def _failure(record: RunRecord, failure: Failure) -> str:
    lines = [f"**{failure.first.status.value}** {_text(sentence(failure))}"]
    lines += [f"- {_text(line)}" for line in details(failure)]
    lines += [f"- log of {label}: {_code(path)}" for label, path in view.logs(record, failure.first)[:1]]
    lines.append(f"- repeat: {_code(view.command(record, failure.first))}")
    return "\n".join(lines)


def _faults(record: RunRecord, trials: Sequence[Trial]) -> list[str]:
    """Controls in one line, or two; kill scores as a table."""
    parts = []
    if rejected := controls_text(record, rejected=True):
        parts.append(f"Controls, mistakes put in on purpose, rejected as they must be: {_text(rejected)}.")
    if missed := controls_text(record, rejected=False):
        parts.append(f"Controls **NOT rejected**, so that their degree proves nothing: {_text(missed)}.")
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
    """A code span, also within a table: GitHub finds no markup and no mention in it."""
    text = printable(re.sub(r"\s+", " ", text)).replace("|", "\\|") or " "
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _text(text: str) -> str:
    """Plain text: markup characters are escaped, and `@name` is no mention."""
    text = printable(re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
    return text.replace("@", "@\u200b").replace("://", ":\u200b//")
