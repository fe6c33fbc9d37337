"""The tests' own judge of which processes live: what is dead but not yet gone does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from living import lives, marked

MARK = "TP_HARNESS_LIVING"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "3600"], env=os.environ | {MARK: str(os.getpid())})
    yield process
    process.kill()
    process.wait()


def test_one_that_runs_a_zombie_and_one_that_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    assert lives(sleeper.pid) and lives(process := psutil.Process(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_running() and not lives(process) and not lives(sleeper.pid)
    sleeper.wait()
    assert not lives(process) and not lives(sleeper.pid)


def test_another_process_of_the_same_number_is_not_meant(sleeper: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(sleeper.pid)
    process._ident = (process.pid, 1.0)  # as if it had started long before the one that has the number now
    assert not lives(process) and lives(sleeper.pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no kernel threads are shown here")
def test_one_without_memory_does_not_live_though_its_state_is_no_zombies() -> None:
    """A kernel thread looks so for as long as one likes, and a dying process for a moment."""
    every = psutil.process_iter(["ppid", "status"])
    threads = [p for p in every if p.info["ppid"] == 2 and p.info["status"] != psutil.STATUS_ZOMBIE]
    if not threads:
        pytest.skip("this container shows no kernel thread")
    assert not lives(threads[0])


def test_the_marked_ones_are_found(sleeper: subprocess.Popen[bytes]) -> None:
    def found() -> list[int]:
        return [process.pid for process in marked(MARK, str(os.getpid()))]

    # While it still loads its program it has no environment.
    while not psutil.Process(sleeper.pid).environ():
        pass
    assert found() == [sleeper.pid]
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert found() == []
