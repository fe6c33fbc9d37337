"""A few rows of docs/launcher-faults.md, and a proof that its judge would see what is not as promised."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from injection import ALL, DEGREES, Fault  # noqa: E402
from observation import MARK, Seen  # noqa: E402
from promises import complaints, page  # noqa: E402

DEFAULT = ("SIGKILL:collective:2", "raise:gather:2", "main: SIGKILL:write:2", "folder gone:write:2")


def rows(*faults: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "launcher_faults.py"), *faults]
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_faults_end_as_promised() -> None:
    seen = rows(*DEFAULT)
    assert (seen.returncode, len(seen.stdout.splitlines())) == (0, len(DEFAULT)), seen.stdout + seen.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tp", DEGREES)
def test_hangs_and_signals_end_as_promised(tp: int) -> None:
    chosen = (
        "SIGSTOP:collective",
        "sleep:forward",
        "SIGSTOP:start",
        "allocation:rendezvous",
        "main: SIGINT twice:start",
    )
    seen = rows(*(f"{fault}:{tp}" for fault in chosen))
    assert seen.returncode == 0, seen.stdout + seen.stderr


FAULT = Fault("SIGKILL", "forward", 8)
BAD = {"status": "CRASH", "reason": "rank 7 of 8 was killed by SIGKILL; its log: x", "traceback": ""}
GOOD = Seen(code=3, struck=True, seconds=1.0, results=[{"status": "PASS", "reason": ""}] * 5 + [BAD], errors="")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": 1}, "exit code 1 instead of 3"),
        ({"struck": False}, "the fault did not strike"),
        ({"seconds": 23.0}, "23.0 s, more than 22"),
        ({"left": ["process 7 python"]}, "left behind: process 7 python"),
        ({"results": [BAD]}, "0 results kept, at least 5 promised"),
        ({"results": [*GOOD.results[:5], BAD | {"reason": "rank 3 of 8 was killed"}]}, "not named"),
        ({"results": [*GOOD.results[:5], BAD | {"status": "TIMEOUT"}]}, "not named"),
        ({"results": GOOD.results[:5]}, "not named"),
    ],
    ids=["code", "struck", "slow", "left", "lost", "other_rank", "status", "no_failure"],
)
def test_what_is_not_as_promised_is_seen(change: dict[str, Any], words: str) -> None:
    assert complaints(FAULT, GOOD) == []
    (found,) = complaints(FAULT, replace(GOOD, **change))
    assert words in found


def test_the_page_shows_each_fault_and_counts_what_is_wrong() -> None:
    text = page({FAULT: GOOD, replace(FAULT, tp=2): replace(GOOD, code=0, left=["x"])})
    assert f"2 of {len(ALL)} faults were put in, 1 ended as promised, 1 left anything behind" in text
    assert "| SIGKILL | forward | 0, 1.0 s, 5 kept **wrong** | 3, 1.0 s, 5 kept | not run |" in text


def test_the_page_in_the_docs_has_every_fault_and_each_as_promised() -> None:
    text = (Path(__file__).parents[2] / "docs" / "launcher-faults.md").read_text(encoding="utf-8")
    number = len(ALL)
    assert f"{number} of {number} faults were put in, {number} ended as promised, 0 left anything behind" in text
    assert {row.split(" | ")[0] for row in text.splitlines() if row.startswith("| ")} >= {f"| {f.kind}" for f in ALL}
    assert "not run" not in text and "**wrong**" not in text
