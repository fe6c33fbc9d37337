"""A run in a terminal: its steps while it goes, its table at the end, and the page to open."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ..backends import Backend
from ..config.options import Resolved
from ..errors import UsageError, printable
from ..report import write_pages
from ..report.terminal import print_summary
from ..results.run_record import RunRecord, command_line
from .api import recorded


def run_verify(
    options: Resolved,
    backend: Backend,
    console: Console,
    record: RunRecord | None = None,
    complete: Callable[[RunRecord], None] = lambda record: None,
) -> int:
    """Verify into a folder of the run's own, or go on with a record; print the summary; returns the exit code.

    `complete` may add to the record what was found elsewhere, before it is shown.

    Raises:
        UsageError: what was found wrong before any rank started.
    """
    if backend.owns_terminal:
        record = recorded(options, backend, command_line(), record=record)
    else:
        with console.status("starting") as status:
            record = recorded(
                options, backend, command_line(), lambda text: status.update(Text(printable(text))), record=record
            )
    complete(record)
    print_summary(record, console)
    _leave_pages(record, console)
    return record.exit_code


def _leave_pages(record: RunRecord, console: Console) -> None:
    """Write the pages and name the one to open; a verdict stands without them."""
    try:
        console.print(Text(str(write_pages(record)[0]), style="dim"), soft_wrap=True)
    except UsageError as error:
        print(f"tp-harness: {error}", file=sys.stderr)
