"""Faults put into the launcher: every kind at every moment of a run, at tp 2, 8 and 32, and what became of it.

    python tests/bench/launcher_faults.py --write docs/launcher-faults.md    # about 250 runs, half an hour
    python tests/bench/launcher_faults.py SIGKILL:collective:8               # one of them

Each run verifies three components at tp 1 and then at the degree; the fault strikes the last rank, or the main
process, in the second component at the degree. A fault at start or rendezvous strikes at both of the two starts that
the launcher tries. Every run is a fork of this process, which has imported everything, and so are its ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from injection import ALL, Fault
from observation import MARK, Seen, observe
from promises import cell, complaints, page


def _read(path: Path | None) -> dict[Fault, Seen]:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Fault(**fault): Seen(**seen) for fault, seen in lines}


def _chosen(words: list[str]) -> Iterator[Fault]:
    for word in words:
        kind, moment, tp = word.rsplit(":", 2)
        yield Fault(kind, moment, int(tp))


def main() -> int:
    """Run what is asked for; 1 if anything is not as promised."""
    if MARK not in os.environ:  # in this process's own environment, by which its descendants are found
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {MARK: uuid.uuid4().hex})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="KIND:MOMENT:TP", help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table as Markdown")
    parser.add_argument("--seen", type=Path, metavar="FILE", help="results of other calls, joined in the table; grows")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seen = _read(arguments.seen)
    wrong = 0
    for fault in list(_chosen(arguments.faults)) or ALL:
        seen[fault] = observe(fault)
        found = complaints(fault, seen[fault])
        wrong += bool(found)
        print(
            f"{fault.kind:18} {fault.moment:10} tp {fault.tp:2}: {cell(fault, seen, {fault: found})}",
            *found,
            flush=True,
        )
        if arguments.seen:
            with arguments.seen.open("a") as file:
                print(json.dumps([asdict(fault), asdict(seen[fault])]), file=file)
        if arguments.write:
            seen = _read(arguments.seen) | seen  # of a call that goes on beside this one
            arguments.write.parent.mkdir(exist_ok=True)
            arguments.write.write_text(page(seen))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
