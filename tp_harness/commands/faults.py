"""`tp-harness faults`: put known mistakes into the model, and see that each is caught."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from ..errors import UsageError
from ..options import Options, Resolved, parse_degrees, resolve
from ..result import to_json

NAME = "faults"
HELP = "put known mistakes into the model, and see that each is caught"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--tp", default="2,8,32", metavar="2,8,32", help="tp_degrees, comma-separated")
    add("--only", action="append", default=[], metavar="NAME", help="a fault from `tp-harness list faults`; repeatable")
    add("--dtype", action="append", default=[], metavar="D", help="float32 or bfloat16; repeatable; default: both")
    add("--model", default="tiny", help="tiny, gpt-oss-20b, gpt-oss-120b or a config.json")
    add("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    add("--json", action="store_true", help="every trial, for programs")
    add("--markdown", type=Path, metavar="FILE", help="write the page of docs/ about it")


def run(arguments: argparse.Namespace) -> int:
    """Try the faults, print; 0 if every one that is active and visible was caught, else 1."""
    options = resolve(
        Options(
            degrees=parse_degrees(arguments.tp),
            model=arguments.model,
            dtypes=tuple(arguments.dtype),
            seed=arguments.seed,
        )
    )
    from ..faults import FAULTS, GRAPH, find_fault  # noqa: PLC0415  (imports torch)

    faults = [find_fault(name) for name in dict.fromkeys(arguments.only)] or list(FAULTS)
    compiled = [fault.name for fault in faults if fault in GRAPH]
    if compiled:
        raise UsageError(f"fault {compiled[0]} is one of the compiled path: `tp-harness graph-faults` tries those.")
    generic = [fault.name for fault in faults if fault not in FAULTS]
    if generic:
        raise UsageError(f"fault {generic[0]} is for own cases: `tp-harness verify --case FILE.py:NAME --fault NAME`.")
    return _try(faults, options, arguments)


def _try(faults: list[object], options: Resolved, arguments: argparse.Namespace) -> int:
    from ..killscore import try_all  # noqa: PLC0415
    from ..scoreboard import remarks, score_table, trial_table  # noqa: PLC0415

    console, began = Console(), time.monotonic()
    with console.status("starting") as status:
        trials = try_all(faults, options, status.update)  # type: ignore[arg-type]
    if arguments.json:
        print(json.dumps({"trials": to_json(trials)}, indent=1))
    else:
        for table in (trial_table(trials), score_table(trials)):
            console.print(table.terminal(), soft_wrap=True)
        for line in remarks(trials):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(trials)} trials in {time.monotonic() - began:.0f} s.", highlight=False)
    return int(any(trial.bad for trial in trials))
