"""The launcher: ranks really run, and failures are told with their cause."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import assert_clean, entry, expire_only_when, start, wait_until, waits
from living import lives
from tp_harness.launch import RankLauncher


@pytest.fixture(scope="module")
def launcher() -> Iterator[RankLauncher]:
    with pytest.MonkeyPatch.context() as patch:
        expire_only_when(patch, waits)
        launcher = RankLauncher.fork(entry)
    with launcher:
        yield launcher
        zygote = psutil.Process(launcher._zygote)
    assert not zygote.is_running()


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_ranks_reduce(launcher: RankLauncher, tmp_path: Path, size: int) -> None:
    outcome = start(launcher, tmp_path, "sum_ranks", size=size).wait()
    assert outcome.ok, outcome.message
    assert (outcome.kind, outcome.size, outcome.start_retries) == ("ok", size, 0)
    assert 0 < outcome.start_seconds <= outcome.seconds
    for rank in range(size):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["total"] == size * (size - 1) / 2
        assert (seen["backend"], seen["threads"]) == ("gloo", 1)
        assert set(seen["hosts"]) <= {"127.0.0.1"}
        assert seen["env"] == {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        lines = (tmp_path / "logs" / f"rank{rank}.log").read_text().splitlines()
        told = [line for line in lines if not line.startswith("[Gloo]")]  # torch 2.9 says that it is connected
        assert told == [f"rank {rank} of {size} does sum_ranks"]
    assert len(list((tmp_path / "logs").iterdir())) == size
    assert_clean(launcher, tmp_path)


def test_raising_rank(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "raise_in_one").wait()
    assert (outcome.ok, outcome.kind, outcome.failed_rank, outcome.exit_code) == (False, "crash", 3, 1)
    assert outcome.error == "ValueError: no xxx from rank 3"
    log = tmp_path / "logs" / "rank3.log"
    assert outcome.message == f"rank 3 of 4 failed with ValueError: no xxx from rank 3; its log: {log}"
    assert outcome.log_path == log
    assert outcome.traceback is not None
    assert "in raise_in_one" in outcome.traceback
    assert "run_rank" not in outcome.traceback, "frames of the launcher only distract"
    assert outcome.traceback.strip() in log.read_text()
    assert_clean(launcher, tmp_path)


@pytest.mark.parametrize(("how", "code"), [("sys.exit", 3), ("os._exit", 5), ("os._exit", 0)])
def test_exiting_rank(launcher: RankLauncher, tmp_path: Path, how: str, code: int) -> None:
    outcome = start(launcher, tmp_path, "exit_in_one", how=how, code=code).wait()
    assert (outcome.kind, outcome.failed_rank, outcome.exit_code) == ("crash", 1, code), outcome.message
    expected = f"failed with SystemExit: {code}" if how == "sys.exit" else f"left with exit code {code} before"
    assert f"rank 1 of 4 {expected}" in outcome.message


def test_exit_with_0_is_a_return(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "exit_in_one", how="sys.exit", code=0, size=2).wait()
    assert outcome.failed_rank == 1, "rank 0 waits in a barrier that rank 1 never enters"
    assert "rank 1 of 2 returned without barrier (launching.py:" in outcome.message


def test_rank_that_skips_a_collective(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "return_in_one").wait()
    assert (outcome.kind, outcome.failed_rank, outcome.error) == ("crash", 1, None)
    assert re.search(
        r"^rank 1 of 4 returned without barrier \(launching.py:\d+ in return_in_one\), in which ranks 0, 2, 3 wait; "
        r"logs: .*/rank1.log and rank[023].log$",
        outcome.message,
    )
    assert outcome.traceback is not None and "by peer" in outcome.traceback, "gloo's words, of a rank that waited"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_killed_rank_is_the_cause(launcher: RankLauncher, tmp_path: Path, name: str) -> None:
    """The others fail at once with connection errors, and have lower rank numbers."""
    outcome = start(launcher, tmp_path, "signal_in_one", signal=int(signal.Signals[name])).wait()
    assert (outcome.kind, outcome.failed_rank, outcome.signal_name) == ("crash", 3, name), outcome.message
    assert outcome.exit_code is None
    log = tmp_path / "logs" / "rank3.log"
    assert outcome.message == f"rank 3 of 4 was killed by {name}; its log: {log}"
    assert ("Segmentation fault" in log.read_text()) == (name == "SIGSEGV"), "faulthandler writes to the log"
    assert_clean(launcher, tmp_path)


def test_timeout_names_the_slow_and_dumps_stacks(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "sleep_in_one", timeout=0.5).wait()
    assert (outcome.ok, outcome.kind, outcome.unfinished_ranks) == (False, "timeout", (1,))
    assert "did not finish within 0.5 s: rank 1 of 4 was still running" in outcome.message
    assert "in sleep_in_one" in (tmp_path / "logs" / "rank1.log").read_text()
    assert_clean(launcher, tmp_path)


def test_stopped_rank_times_out(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "signal_in_one", signal=int(signal.SIGSTOP), timeout=0.5).wait()
    assert outcome.kind == "timeout"
    assert 3 in outcome.unfinished_ranks
    assert_clean(launcher, tmp_path)


def test_stop_and_poll(launcher: RankLauncher, tmp_path: Path) -> None:
    running = start(launcher, tmp_path, "sleep", timeout=None)
    wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 4, "ranks to sleep")
    assert running.poll() is None
    outcome = running.stop()
    assert (outcome.ok, outcome.kind) == (False, "stopped")
    assert running.stop() is running.wait() is running.poll() is outcome
    assert_clean(launcher, tmp_path)


def test_stop_while_starting(launcher: RankLauncher, tmp_path: Path) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        running = start(launcher, tmp_path, "sleep", size=8)
        time.sleep(delay)
        assert running.stop().kind == "stopped"
        assert_clean(launcher, tmp_path)


def test_poll_sees_success(launcher: RankLauncher, tmp_path: Path) -> None:
    running = start(launcher, tmp_path, "sum_ranks", size=2)
    wait_until(lambda: running.poll() is not None, "the run to end")
    assert running.wait().ok


def test_two_runs_at_a_time(launcher: RankLauncher, tmp_path: Path) -> None:
    first = start(launcher, tmp_path / "a", "sleep", size=2, timeout=None)
    (tmp_path / "b").mkdir()
    assert start(launcher, tmp_path / "b", "sum_ranks", size=2).wait().ok
    assert first.poll() is None
    assert first.stop().kind == "stopped"


def test_children_of_ranks_are_killed(launcher: RankLauncher, tmp_path: Path) -> None:
    assert start(launcher, tmp_path, "leave_a_child", size=2).wait().ok
    for path in tmp_path.glob("*.up"):
        assert not lives(int(path.read_text()))


def test_argument_arrives_unchanged(launcher: RankLauncher, tmp_path: Path) -> None:
    """torch's agent would expand ${local_rank} in the arguments that it passes on."""
    folder = tmp_path / "${local_rank} $$ ä"
    folder.mkdir()
    assert start(launcher, folder, "sum_ranks", size=1).wait().ok
    assert (folder / "0.json").exists()


@pytest.mark.parametrize("wrong", [{"size": 0}, {"timeout": 0.0}, {"start_timeout": -1.0}])
def test_wrong_numbers_are_refused(launcher: RankLauncher, tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        start(launcher, tmp_path, "sum_ranks", **wrong)  # type: ignore[arg-type]
