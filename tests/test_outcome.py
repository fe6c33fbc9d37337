"""From the facts about the ranks of a run to the one explanation of how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tp_harness.launch import LaunchOutcome
from tp_harness.launch.outcome import Death, Report, RunRecord, explain


def record(**facts: object) -> RunRecord:
    connected = {0, 1, 2, 3}
    return RunRecord(
        size=4,
        log_dir=Path("logs"),
        timeout=9,
        start_timeout=9,
        **({"connected": connected} | facts),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("deaths", "reports", "expected"),
    [
        ({}, {1: 20, 2: 10}, 2),  # the earlier exception
        ({3: 5000}, {1: 5001}, 3),  # last seen alive before the exception that its death explains
        ({3: 5001}, {1: 5000}, 3),  # just after it, but dying takes a while
        ({3: 6000}, {1: 5000}, 1),  # alive a second after the exception
        ({1: 5, 2: 5}, {1: 10}, 2),  # rank 1 raised, rank 2 died silently
        ({}, {}, None),
    ],
)
def test_first_failure(deaths: dict[int, int], reports: dict[int, int], expected: int | None) -> None:
    facts = record(
        deaths={rank: Death(alive_ns=moment * 1_000_000, exit_code=1) for rank, moment in deaths.items()},
        reports={
            rank: Report(time_ns=moment * 1_000_000, error="E", traceback="T") for rank, moment in reports.items()
        },
    )
    assert facts.first_failure() == expected


def test_explanations() -> None:
    def said(**facts: object) -> str:
        return explain(record(**facts), retries=0, start_seconds=0, seconds=0).message

    killed = {3: Death(alive_ns=1, exit_code=-9)}
    assert said(deaths=killed) == f"rank 3 of 4 was killed by SIGKILL; its log: {Path('logs/rank3.log')}"
    assert said() == "the elastic agent of 4 ranks ended by itself: it was killed; logs: logs"
    assert said(deaths=killed, connected={0}).startswith("the ranks could not be started: rank 3 of 4 was killed")
    assert "ranks 0, 2 of 4 were still running" in said(ending="timeout", returned={1, 3})
    assert "returned, but a process did not end" in said(ending="timeout", returned={0, 1, 2, 3})
    assert said(ending="timeout", succeeded=True) == "all 4 ranks finished"


def test_outcome_survives_json() -> None:
    outcome = LaunchOutcome(
        ok=False,
        kind="timeout",
        message="m",
        size=2,
        log_path=Path("a"),
        unfinished_ranks=(0, 1),
        seconds=1.5,
    )
    assert LaunchOutcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    with pytest.raises(ValueError, match="contradicts"):
        LaunchOutcome(ok=True, kind="crash", message="", size=1)


def test_package_needs_no_torch() -> None:
    code = "import sys, tp_harness.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
