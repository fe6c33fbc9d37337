"""`tp-harness compare`: what changed from one run to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ..errors import UsageError

NAME = "compare"
HELP = "what changed from one run to another; exit code 1 when something is worse"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("before", type=Path, help="the folder of a run, or its run.json kept as a baseline")
    parser.add_argument("after", type=Path, help="the run to judge")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the summary there too")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; returns exit code 1 when something is worse, else 0.

    Raises:
        UsageError: no run at a path, runs without a common row, or a file that cannot be written.
    """
    from ..regression.comparison import compare  # noqa: PLC0415
    from ..regression.text import markdown, terminal  # noqa: PLC0415
    from ..results.run_record import read_run  # noqa: PLC0415

    comparison = compare(read_run(arguments.before), read_run(arguments.after))
    if not comparison.rows:
        raise UsageError(
            f"{arguments.before} and {arguments.after} have no row (component, layer, tp, dtype) in common; "
            "compare runs of the same components and degrees."
        )
    if arguments.markdown:
        _write(arguments.markdown, markdown(comparison))
    Console().print(terminal(comparison), soft_wrap=True)
    return comparison.exit_code


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another file with --markdown.") from None
