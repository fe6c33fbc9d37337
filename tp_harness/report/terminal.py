"""The verdict table and the paragraphs below it, for a terminal. Pure functions of the results; no torch."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import printable
from ..results.result import Result, Status
from ..results.run_record import RunRecord
from .failure_text import details, sentence
from .failures import Failure, failures
from .headline import cell, legend
from .rank_logs import written_logs
from .view import draws

_YELLOW = (Status.VOID, Status.UNDECIDED, Status.NOT_PROVED, Status.SKIPPED)
_COLOURS = {Status.PASS: "green", Status.PROVED: "green"} | dict.fromkeys(_YELLOW, "yellow")


def summary(record: RunRecord) -> RenderableType:
    """The verdict table, a paragraph per failure, notes, and the path of run.json."""
    degrees = list(dict.fromkeys(result.tp for result in record.results))
    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column("component", overflow="fold")
    table.add_column("layer", justify="right")
    table.add_column("dtype")
    for tp in degrees:
        table.add_column(f"tp {tp}", justify="right")
    for key, row in _rows(record.results).items():
        table.add_row(Text(printable(key[0])), str(key[1]), key[2], *(_cell(row.get(tp)) for tp in degrees))
    return Group(table, *_legend(record.results), *_paragraphs(record), *_ending(record))


def _rows(results: list[Result]) -> dict[tuple[str, int, str], dict[int, Result]]:
    rows: dict[tuple[str, int, str], dict[int, Result]] = {}
    for result in results:
        rows.setdefault((result.label, result.layer, result.dtype), {})[result.tp] = result
    return rows


def _cell(result: Result | None) -> Text:
    if result is None:
        return Text("-", style="dim")
    return Text(" ".join(filter(None, cell(result))) or "PASS", style=_COLOURS.get(result.status, "bold red"))


def _legend(results: list[Result]) -> list[Text]:
    said = legend(results)
    return [Text(said, style="dim")] if said else []


def _paragraphs(record: RunRecord) -> list[Text]:
    """A paragraph for each mistake, the worst first: a sentence, then the place, then numbers and logs."""
    paragraphs = []
    for failure in failures(record.results):
        status = failure.first.status
        style = _COLOURS.get(status, "bold red")
        text = Text.assemble((f"{status.value} ", style), (printable(sentence(failure)), "bold"))
        for line in (*details(failure), *_logs(record, failure)):
            text.append(f"\n  {printable(line)}")
        paragraphs.append(text)
    return paragraphs


def _logs(record: RunRecord, failure: Failure) -> list[str]:
    """A line with the folders of rank logs that are not empty."""
    folders = dict.fromkeys(folder for r in failure.results for folder in [r.log_dir] if written_logs(record, r))
    return [f"rank logs: {', '.join(folders)}"] if folders else []


def _ending(record: RunRecord) -> list[Text]:
    counts = {status: sum(r.status is status for r in record.results) for status in Status}
    words = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    notes = [Text(f"note: {printable(note)}", style="yellow") for note in record.notes]
    drawn = f"each with {draws(record)} of weights and inputs"
    return [
        *notes,
        *_controls(record),
        Text(f"{words or 'nothing was run'} ({drawn}; backend {record.backend}: {record.blind_spots})"),
        Text(printable(str(record.path)), style="dim"),
    ]


def _controls(record: RunRecord) -> list[Text]:
    """Lines on the controls, faults that a run must reject: those that were rejected, and those that were not."""
    lines = []
    if rejected := controls_text(record, rejected=True):
        lines.append(Text(f"controls, mistakes put in on purpose, rejected as they must be: {rejected}", style="dim"))
    if missed := controls_text(record, rejected=False):
        lines.append(Text(f"controls NOT rejected, so that their degree proves nothing: {missed}", style="bold red"))
    return lines


def controls_text(record: RunRecord, *, rejected: bool) -> str:
    """The controls that were `rejected`, or were not: `shard-rolled at tp 1, 2; part-dropped at tp 8`; "" if none."""
    degrees: dict[str, dict[int, None]] = {}
    for control in record.controls:
        if control.rejected is rejected:
            of = f" in {control.component}" if len(record.options.get("case", ())) > 1 else ""
            degrees.setdefault(control.fault + of, {})[control.tp] = None
    return "; ".join(f"{printable(fault)} at tp {', '.join(map(str, found))}" for fault, found in degrees.items())


def print_summary(record: RunRecord, console: Console) -> None:
    """Print the summary; the table keeps its width when the output is no terminal."""
    console.print(summary(record), soft_wrap=True)
