"""`tp-harness report`: render the pages of a run again, from run.json alone."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "render report.html, report.md and junit.xml of a run again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="a run's folder, as artifacts/<run-id>")


def run(arguments: argparse.Namespace) -> int:
    """Read, render, print where; returns exit code 0 whatever the verdict is: the pages are made.

    Raises:
        UsageError: no run is there, or its folder cannot be written to.
    """
    from ..report import write_pages  # noqa: PLC0415
    from ..results.run_record import read_run  # noqa: PLC0415  (jinja2 and the rest, for this command alone)

    for path in write_pages(read_run(arguments.folder)):
        print(path)
    return 0
