"""Hostile input to `tp-harness`: each ends with exit code 2 and one sentence, or is good and gets as far as the ranks.

    python tests/support/fuzz.py --count 500    # inputs per kind; prints a table, and what failed

A failing input is printed with what it needs to be repeated. No rank is ever started, no weight written.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_case import fuzz_case
from fuzz_files import fuzz_config, fuzz_header, fuzz_resume
from fuzz_words import fuzz_cli
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

MEMORY = 4 << 30  # bytes that an input may make the program take


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    kind: str
    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[str, int] = field(default_factory=dict)  # what went wrong -> a draw that repeats it
    seconds: float = 0.0


KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    "config": fuzz_config,
    "case": fuzz_case,
    "header": fuzz_header,
    "cli": fuzz_cli,
    "resume": fuzz_resume,
}


def fuzz(kind: str, count: int, number: int = 0) -> Tally:
    """Try `count` inputs of a kind, drawn by hypothesis from a fixed seed."""
    tally = Tally(kind)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def run(draw: int) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            try:
                tally.ends[KINDS[kind](Path(folder), random.Random(draw))] += 1
            except AssertionError as error:
                tally.ends["failed"] += 1
                tally.failures.setdefault(_kind_of(str(error)), draw)

    start = time.process_time()
    run()
    tally.seconds = time.process_time() - start
    return tally


def _kind_of(text: str) -> str:
    """Where and with which exception, so that a hundred inputs with one cause are told once."""
    lines = [line.strip() for line in text.splitlines()]
    places = [line for line in lines if line.startswith("File ") and "/tp_harness/" in line]
    last = next((line for line in reversed(lines) if line and "this is a bug" not in line), "")
    return f"{last:.300} <- {' <- '.join(places[-3:][::-1])}" if places else text[:500]


def main() -> int:
    """Print the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, metavar="N", help="inputs per kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    parser.add_argument("--draw", type=int, metavar="N", help="only this input of one --kind, as a failure names it")
    arguments = parser.parse_args()
    if arguments.draw is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            print(KINDS[arguments.kind[0]](Path(folder), random.Random(arguments.draw)))
            return 0
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    failed = 0
    print(f"{'kind':8} {'inputs':>7} {'refused':>8} {'accepted':>9} {'CPU s':>7}  tracebacks and hangs")
    for kind in arguments.kind or KINDS:
        tally = fuzz(kind, arguments.count, arguments.seed)
        ends = tally.ends
        failed += ends["failed"]
        counts = f"{ends.total():7} {ends['refused']:8} {ends['accepted']:9} {tally.seconds:7.1f}"
        print(f"{kind:8} {counts} {ends['failed']:21}", flush=True)
        for text, draw in tally.failures.items():
            print(f"  --kind {kind} --draw {draw}: {text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
