"""`tp-harness faults`: put known mistakes into the model, and see that each is caught; or none, and see none caught."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..config import dtypes
from ..config.options import Options, Resolved, parse_degrees, resolve
from ..errors import UsageError
from ..models import presets
from ..results.result import to_json

if TYPE_CHECKING:
    from ..faults import Fault
    from ..mutation.false_alarms import CleanRun
    from ..results.mutation_score import Trial

NAME = "faults"
HELP = "put known mistakes into the model, and see that each is caught"
MOST_CLEAN = 100_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--tp", metavar="2,8,32", help="tp_degrees, comma-separated; default: 2,8,32, and with --clean 1 too")
    add("--only", action="append", default=[], metavar="NAME", help="a fault from `tp-harness list faults`; repeatable")
    add("--clean", type=int, default=0, metavar="N", help="instead, N draws of right code: is any rejected?")
    add("--dtype", action="append", default=[], metavar="D", help=dtypes.HELP)
    add("--model", default="tiny", help=f"{', '.join(presets())} or a config.json")
    add("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    add("--json", action="store_true", help="every trial, for programs")
    add("--markdown", type=Path, metavar="FILE", help="write the page about it; with --clean, about both")


def run(arguments: argparse.Namespace) -> int:
    """Try the faults, or right code, and print.

    Returns:
        Exit code 0 if all that must be caught was caught, and nothing else; else 1.

    Raises:
        UsageError: --clean out of range or beside --only, another option that cannot be, or an unwritable page.
    """
    if not 0 <= arguments.clean <= MOST_CLEAN:
        raise UsageError(f"--clean is {arguments.clean}; a number between 1 and {MOST_CLEAN} is needed.")
    if arguments.clean and arguments.only:
        raise UsageError("--clean runs right code; it cannot be joined with --only.")
    faults_too = not arguments.clean or arguments.markdown
    trials = _try_faults(arguments) if faults_too else []
    runs = _run_clean(arguments) if arguments.clean else []
    if arguments.json:
        print(json.dumps({"trials": to_json(trials), "clean": to_json(runs)}, indent=1))
    if arguments.markdown:
        _write_page(arguments.markdown, trials, runs)
    return int(any(trial.bad for trial in trials) or any(clean.alarm for clean in runs))


def _options(arguments: argparse.Namespace, degrees: str) -> Resolved:
    return resolve(
        Options(
            degrees=parse_degrees(arguments.tp or degrees),
            model=arguments.model,
            dtypes=tuple(arguments.dtype),
            seed=arguments.seed,
        )
    )


def _try_faults(arguments: argparse.Namespace) -> list[Trial]:
    options = _options(arguments, "2,8,32")
    faults = _chosen(arguments.only)
    from ..mutation.kill_score import try_all  # noqa: PLC0415  (imports torch; a usage error needs none)
    from ..results.mutation_score import remarks, score_table, trial_table  # noqa: PLC0415

    console, began = Console(stderr=arguments.json), time.monotonic()
    with console.status("starting") as status:
        trials = try_all(faults, options, status.update)
    if not arguments.json:
        for table in (trial_table(trials), score_table(trials)):
            console.print(table.terminal(), soft_wrap=True)
        for line in remarks(trials):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(trials)} trials in {time.monotonic() - began:.0f} s.", highlight=False)
    return trials


def _chosen(names: list[str]) -> list[Fault]:
    from ..faults import FAULTS, GRAPH, find_fault  # noqa: PLC0415

    faults = [find_fault(name) for name in dict.fromkeys(names)] or list(FAULTS)
    compiled = [fault.name for fault in faults if fault in GRAPH]
    if compiled:
        raise UsageError(f"fault {compiled[0]} is one of the compiled path: `tp-harness graph-faults` tries those.")
    generic = [fault.name for fault in faults if fault not in FAULTS]
    if generic:
        raise UsageError(f"fault {generic[0]} is for own cases: `tp-harness verify --case FILE.py:NAME --fault NAME`.")
    return faults


def _run_clean(arguments: argparse.Namespace) -> list[CleanRun]:
    options = _options(arguments, "1,2,8,32")
    from ..mutation.false_alarms import clean_runs, clean_table, without_whole_model  # noqa: PLC0415

    console, began = Console(stderr=arguments.json), time.monotonic()
    with console.status("starting") as status:
        runs = clean_runs(without_whole_model(options), arguments.clean, status.update)
    if not arguments.json:
        console.print(clean_table(runs).terminal(), soft_wrap=True)
        for clean in (clean for clean in runs if clean.alarm):
            console.print(f"{clean}", soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(runs)} verdicts in {time.monotonic() - began:.0f} s.", highlight=False)
    return runs


def _write_page(path: Path, trials: list[Trial], runs: list[CleanRun]) -> None:
    from ..mutation.false_alarms import clean_table  # noqa: PLC0415
    from ..mutation.faults_page import page  # noqa: PLC0415
    from ..results.run_record import command_line  # noqa: PLC0415

    text = page(trials, clean_table(runs) if runs else None, command_line())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None
