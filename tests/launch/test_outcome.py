"""From the facts about the ranks of a run to the one explanation of how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tp_harness.launch import LaunchOutcome
from tp_harness.launch.outcome import Death, Report, RunFacts, outcome_of
from tp_harness.launch.stacks import Stack


def record(**facts: object) -> RunFacts:
    connected = {0, 1, 2, 3}
    return RunFacts(
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


LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1. GLHF!"
WAITED = """Traceback (most recent call last):
  File "/x/tp_harness/ranks/rank.py", line 95, in call
    return module(x)
  File "/x/torch/nn/modules/module.py", line 1, in _call_impl
    return forward_call(*args)
  File "/x/model.py", line 15, in forward
    dist.all_reduce(y)
  File "/x/torch/distributed/c10d_logger.py", line 83, in wrapper
    return func(*args, **kwargs)
  File "/x/torch/distributed/distributed_c10d.py", line 3252, in all_reduce
    work.wait()
RuntimeError: ...
"""


def ended(returned: set[int] = frozenset(), **errors: str) -> LaunchOutcome:  # type: ignore[assignment]
    """Of a crash in which ranks raised these errors, one nanosecond after another."""
    reports = {
        int(rank.strip("rank")): Report(time_ns=i, error=error, traceback=WAITED)
        for i, (rank, error) in enumerate(errors.items())
    }
    return outcome_of(record(reports=reports, returned=returned), retries=0, start_seconds=0, seconds=0)


def test_a_lost_connection_is_the_doing_of_the_rank_that_returned() -> None:
    found = ended({1}, rank0=LOST, rank2=LOST)
    assert (found.failed_rank, found.error, found.log_path) == (1, None, Path("logs/rank1.log"))
    assert found.message == (
        "rank 1 of 4 returned without all_reduce (model.py:15 in forward), in which ranks 0, 2, 3 wait; "
        f"logs: {Path('logs/rank1.log')} and rank0.log"
    )
    assert found.traceback == WAITED


def test_a_lost_connection_is_the_doing_of_the_rank_that_failed_by_itself() -> None:
    """Though it tells later, having cleaned up first."""
    found = ended(rank0=LOST, rank3="ValueError: no")
    assert (found.failed_rank, found.error) == (3, "ValueError: no")
    assert "rank 3 of 4 failed with ValueError: no" in found.message
    assert ended({1}, rank0=LOST, rank3="ValueError: no").failed_rank == 3


def test_a_lost_connection_that_nobody_explains_is_said_as_it_is() -> None:
    found = ended(rank0=LOST)
    assert (found.failed_rank, found.error) == (0, LOST)
    assert LOST in found.message


def test_an_error_of_a_rank_s_own_is_no_lost_connection() -> None:
    found = ended({1}, rank0="ValueError: connection closed")
    assert found.failed_rank == 0
    assert "rank 0 of 4 failed with ValueError: connection closed (rank 1 had returned before)" in found.message


def waits_in(call: str, line: int) -> Stack:
    return Stack(
        frames=(
            f'  File "/x/torch/distributed/distributed_c10d.py", line 1 in {call}',
            f'  File "/x/model.py", line {line} in forward',
        )
    )


@pytest.mark.parametrize(
    ("stacks", "returned", "failed", "words"),
    [
        (
            [
                waits_in("all_reduce", 15),
                waits_in("broadcast", 9),
                waits_in("all_reduce", 15),
                waits_in("all_reduce", 15),
            ],
            set(),
            1,
            "still running, not in the same call: ranks 0, 2, 3 in all_reduce (model.py:15 in forward), rank 1 in "
            "broadcast (model.py:9 in forward); their logs",
        ),
        (
            [waits_in("all_reduce", 15), waits_in("all_reduce", 15)],
            {2, 3},
            2,
            "still running, ranks 0, 1 in all_reduce (model.py:15 in forward); ranks 2, 3 had returned; their logs",
        ),
        ([waits_in("recv", 15)] * 4, set(), None, "still running, all in recv (model.py:15 in forward); their logs"),
        ([Stack()], {1, 2, 3}, None, "rank 0 of 4 was still running; their logs"),
    ],
    ids=["another-call", "returned", "all-in-one", "computes"],
)
def test_a_hang_is_the_doing_of_the_rank_that_is_elsewhere(
    stacks: list[Stack], returned: set[int], failed: int | None, words: str
) -> None:
    facts = record(ending="timeout", returned=returned, stacks=dict(enumerate(stacks)))
    found = outcome_of(facts, retries=0, start_seconds=0, seconds=0)
    assert found.failed_rank == failed
    assert words in found.message


def test_explanations() -> None:
    def said(**facts: object) -> str:
        return outcome_of(record(**facts), retries=0, start_seconds=0, seconds=0).message

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
        threads=((1, 140),),
        seconds=1.5,
    )
    assert LaunchOutcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    with pytest.raises(ValueError, match="contradicts"):
        LaunchOutcome(ok=True, kind="crash", message="", size=1)


def test_package_needs_no_torch() -> None:
    code = "import sys, tp_harness.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
