"""The terminal table: what holds, what does not, and where to look. Pure functions of the results; no torch."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .errors import printable
from .record import RunRecord
from .result import Divergence, Result, Status

_COLOURS = {Status.PASS: "green", Status.VOID: "yellow", Status.UNDECIDED: "yellow", Status.SKIPPED: "yellow"}


def summary(record: RunRecord) -> RenderableType:
    """The verdict table, a paragraph per failure, notes, and the path of run.json."""
    degrees = list(dict.fromkeys(result.tp for result in record.results))
    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column("component")
    table.add_column("layer", justify="right")
    table.add_column("dtype")
    for tp in degrees:
        table.add_column(f"tp {tp}", justify="right")
    for key, row in _rows(record.results).items():
        table.add_row(Text(printable(key[0])), str(key[1]), key[2], *(_cell(row.get(tp)) for tp in degrees))
    return Group(table, *_legend(record.results), *_failures(record.results), *_ending(record))


def _rows(results: list[Result]) -> dict[tuple[str, int, str], dict[int, Result]]:
    rows: dict[tuple[str, int, str], dict[int, Result]] = {}
    for result in results:
        rows.setdefault((result.label, result.layer, result.dtype), {})[result.tp] = result
    return rows


def _cell(result: Result | None) -> Text:
    if result is None:
        return Text("-", style="dim")
    number = ""
    if result.gates:
        value = result.gates[0].value
        number = f"{value:.1e}" if result.dtype == "float32" else f"R {value:.2f}"
    word = number if result.status is Status.PASS else f"{result.status.value} {number}".rstrip()
    return Text(word, style=_COLOURS.get(result.status, "bold red"))


def _legend(results: list[Result]) -> list[Text]:
    if not any(result.gates for result in results):
        return []
    return [
        Text(
            "float32: rel_L2 against the float64 oracle; bfloat16: R, error over the single-core error. "
            "The worst of all draws.",
            style="dim",
        )
    ]


def _failures(results: list[Result]) -> list[Text]:
    lines = []
    for result in results:
        if result.status is Status.PASS:
            continue
        line = Text.assemble(
            (f"{result.status.value} ", "bold red"), (printable(result.title), "bold"), f": {printable(result.reason)}"
        )
        if result.worst and result.gates:
            worst = result.worst
            line.append(
                f"\n  worst element: {worst.tensor}{list(worst.index)} on rank {worst.rank} is "
                f"{worst.actual:.6g}, expected {worst.expected:.6g} (seed {result.seed})"
            )
        if result.first_divergence:
            what = "first tensor over its limit" if result.status is Status.VOID else "first wrong tensor"
            line.append(f"\n  {what}: {printable(divergence_text(result.first_divergence))}")
            for sentence in diagnosis_text(result):
                line.append(f"\n  {printable(sentence)}")
        for note in result.notes:
            line.append(f"\n  note: {printable(note)}")
        line.append(f"\n  rank logs: {printable(result.log_dir)}")
        lines.append(line)
    return lines


def divergence_text(found: Divergence) -> str:
    """Where it went wrong first, in one sentence: tensor, ranks, token, index, numbers, and what was right before."""
    where = f"{found.tensor} on {_ranks_text(found.ranks)}"
    if found.detail:
        where += f": {found.detail}"
    if found.gate and not found.gate.passed and found.kind != "choice":
        where += (
            f"; {found.gate.metric} is {found.gate.value:.2e}, {found.gate.value / found.gate.limit:.3g} x its limit"
        )
    at = f"token {found.token[1]} of row {found.token[0]}" if found.token else ""
    if found.index and found.kind != "choice":
        value = f"worst at {list(found.index)}" + (f" ({at})" if at else "")
        where += f"; {value}: {found.actual:.6g} instead of {found.expected:.6g}"
    elif at:
        where += f" ({at})"
    before = f"{found.after} before it is right" if found.after else "it is the first that is looked at"
    return f"{where}; {before}"


def diagnosis_text(result: Result) -> list[str]:
    """Every cause that reproduces the first wrong tensor, or that none is known."""
    if not result.diagnosis:
        tried = (
            f": none of {result.hypotheses} guesses at known mistakes gives these numbers" if result.hypotheses else ""
        )
        return [f"no known cause{tried}"] if result.status is Status.MISMATCH else []  # a wrong dtype says it all
    return [
        f"{'likely' if len(result.diagnosis) == 1 else 'possible'} cause: {cause.name}: {cause.sentence} "
        f"(accounts for {cause.explained:.2%} of the squared error; {cause.residual:.1e} is left, rounding explains up "
        f"to {cause.limit:.1e})"
        for cause in result.diagnosis
    ]


def _ranks_text(ranks: tuple[int, ...]) -> str:
    """`rank 5`, or `ranks 1-7, 9`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    words = [f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(words)}"


def _ending(record: RunRecord) -> list[Text]:
    counts = {status: sum(r.status is status for r in record.results) for status in Status}
    words = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    draws = max((result.draws for result in record.results), default=0)
    notes = [Text(f"note: {printable(note)}", style="yellow") for note in record.notes]
    drawn = f"{draws} draw{'s' if draws != 1 else ''} each"
    return [
        *notes,
        *_controls(record),
        Text(f"{words or 'nothing was run'} ({drawn}, backend {record.backend}: {record.blind_spots})"),
        Text(printable(str(record.path)), style="dim"),
    ]


def _controls(record: RunRecord) -> list[Text]:
    """The faults that were put in to see them rejected."""
    words = [f"tp {c.tp} {c.fault}{'' if c.rejected else ' (NOT rejected)'}" for c in record.controls]
    return [Text(f"faults put in as a control and rejected: {', '.join(words)}", style="dim")] if words else []


def print_summary(record: RunRecord, console: Console) -> None:
    """Print the summary; the table keeps its width when output is no terminal."""
    console.print(summary(record), soft_wrap=True)
