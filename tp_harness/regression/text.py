"""A comparison as text: for a terminal, and as Markdown for a pull request. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from ..text_table import TextTable
from .comparison import Comparison
from .rules import Change

_HEADERS = ("row", "kind", "what", "before", "after", "why")
MOST_ROWS = 5  # named one by one


def terminal(comparison: Comparison) -> RenderableType:
    """What the runs do not share, then changes, the worse ones first and with their reasons, then the sum of it."""
    return Group(
        Text(f"{comparison.before} -> {comparison.after}", style="bold"),
        *(Text(line, style="yellow") for line in _caveats(comparison)),
        *(_narrow(table).terminal() for table in _tables(comparison)),
        *(Text(f"{c.row}, {c.what}: {_line(c.reason)}") for c in comparison.regressions),
        Text(verdict(comparison), style="bold red" if comparison.regressions else "green"),
    )


def markdown(comparison: Comparison) -> str:
    """The same as a section of Markdown."""
    lines = [f"## {verdict(comparison)}", "", f"`{comparison.before}` -> `{comparison.after}`", ""]
    lines += [f"- {line}" for line in _caveats(comparison)]
    for table in _tables(comparison):
        lines += ["", f"### {table.title}", "", table.markdown()]
    return "\n".join(lines).rstrip() + "\n"


def verdict(comparison: Comparison) -> str:
    """The outcome of the comparison in one sentence."""
    better = sum(change.worse is False for change in comparison.changes)
    worse = len(comparison.regressions)
    sizes = [_count(worse, "regression"), _count(better, "improvement")]
    return f"{' and '.join(sizes)} in {_count(comparison.rows, 'row')} that both runs have"


def _caveats(comparison: Comparison) -> Iterable[str]:
    """What to know before reading the changes."""
    yield from comparison.differences
    for kind in comparison.not_compared:
        yield f"not compared: {kind}"
    for which, rows in (("before", comparison.only_before), ("after", comparison.only_after)):
        if rows:
            more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
            yield f"only in the run {which}: {', '.join(rows[:MOST_ROWS])}{more}"


def _tables(comparison: Comparison) -> Iterable[TextTable]:
    for title, worse in (("worse", True), ("changed", None), ("better", False)):
        changes = [change for change in comparison.changes if change.worse is worse]
        if changes:
            yield TextTable(title=title, headers=_HEADERS, rows=tuple(map(_cells, changes)), left=len(_HEADERS))


def _narrow(table: TextTable) -> TextTable:
    """Kind and what in one column, and no reasons: for 80 columns."""
    rows = tuple((row, f"{kind}: {what}", before, after) for row, kind, what, before, after, _ in table.rows)
    return TextTable(title=table.title, headers=("row", "what", "before", "after"), rows=rows, left=4)


def _cells(change: Change) -> tuple[str, ...]:
    return change.row, change.kind, change.what, change.before, change.after, _line(change.reason)


def _line(text: str) -> str:
    return " ".join(text.split())


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
