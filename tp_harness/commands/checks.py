"""`tp-harness checks`: the registry's faults and clean runs, judged by the checks in use today and by this tool."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ..config.options import Options, parse_degrees, resolve
from ..errors import UsageError
from ..models import presets

NAME = "checks"
HELP = "judge faults and clean runs by the checks in use today, side by side with this tool's"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--tp", default="2,8,32", metavar="2,8,32", help="tp_degrees, comma-separated")
    add("--model", default="tiny", help=f"{', '.join(presets())} or a config.json")
    add("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    add("--draws", type=int, default=3, metavar="N", help="clean runs of each component and degree")
    add("--page", type=Path, metavar="FILE.md", help="write the page of docs/, and its numbers beside it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Judge faults and clean runs by every check, and print or write the page.

    Returns:
        Exit code 1 if a check beats this tool's somewhere, else 0.

    Raises:
        UsageError: --draws below 1, or an option that cannot be.
    """
    if arguments.draws < 1:
        raise UsageError(f"--draws is {arguments.draws}; at least one clean run of each component is needed.")
    options = resolve(Options(degrees=parse_degrees(arguments.tp), model=arguments.model, seed=arguments.seed))
    from ..mutation.checks_comparison import hold  # noqa: PLC0415  (imports torch)
    from ..mutation.checks_page import page  # noqa: PLC0415

    console, began = Console(), time.monotonic()
    with console.status("starting") as status:
        contest = hold(options, arguments.draws, status.update)
    text = page(contest)
    if arguments.page:
        arguments.page.write_text(text, encoding="utf-8")
        numbers = json.dumps(asdict(contest), indent=0)
        arguments.page.with_suffix(".json").write_text(numbers + "\n", encoding="utf-8")
        console.print(f"{arguments.page} was written in {time.monotonic() - began:.0f} s.", highlight=False)
    else:
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    return int(bool(contest.beaten))
