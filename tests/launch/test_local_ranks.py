"""What is seen of ranks that torchrun has started: which ended, which are stopped; and who is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tp_harness.launch.local_ranks import Siblings

PATIENCE = 60.0  # seconds until a test gives up; never the measure of a pass

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc here")


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    processes = [subprocess.Popen(["sleep", "3600"]) for _ in range(3)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def send(pid: int, number: signal.Signals) -> None:
    """And wait until it has taken effect."""
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def test_who_is_lost(sleepers: list[int]) -> None:
    siblings = Siblings(sleepers)
    assert siblings.lost(0.0) == ""
    send(sleepers[2], signal.SIGKILL)
    assert (siblings.lost(), siblings.ended(), siblings.stopped()) == ("rank 2 has ended", (2,), ())
    send(sleepers[0], signal.SIGSTOP)
    assert siblings.lost() == "rank 0 is stopped by a signal"
    send(sleepers[1], signal.SIGSTOP)
    assert siblings.lost() == "ranks 0, 1 are stopped by a signal"


def test_only_those_that_are_stopped_are_killed(sleepers: list[int]) -> None:
    send(sleepers[1], signal.SIGSTOP)
    Siblings(sleepers).kill_stopped()
    os.waitid(os.P_PID, sleepers[1], os.WEXITED | os.WNOWAIT)
    assert Siblings(sleepers).ended() == (1,)


def test_one_that_stays_stopped_is_told_and_one_that_goes_on_is_not(sleepers: list[int]) -> None:
    told = [threading.Event(), threading.Event()]
    siblings = Siblings(sleepers)
    for rank, event in enumerate(told):
        siblings.when_stopped(rank, 1.0, event.set)
    send(sleepers[0], signal.SIGSTOP)
    assert told[0].wait(PATIENCE)
    assert not told[1].is_set()
