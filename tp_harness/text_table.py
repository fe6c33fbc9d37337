"""A table of text cells that can be shown in a terminal and in Markdown. Pure; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A title, headers and rows of text; the first `left` columns are words, aligned left, the others numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def markdown(self) -> str:
        """A GitHub table."""
        rule = ["---"] * self.left + ["---:"] * (len(self.headers) - self.left)
        lines = (self.headers, rule, *([cell.replace("|", "\\|") for cell in row] for row in self.rows))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def terminal(self) -> RenderableType:
        """A rich table."""
        table = Table(title=self.title, title_justify="left", header_style="bold", pad_edge=False, box=box.SIMPLE)
        for number, header in enumerate(self.headers):
            table.add_column(header, justify="left" if number < self.left else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))  # no markup: cells hold [indices]
        return table
