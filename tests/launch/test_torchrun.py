"""Ranks under torchrun as programs of their own: fresh, told apart when they fail, and gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from launching import expire_only_when, waits
from living import lives
from tp_harness.launch import LaunchOutcome, torchrun
from tp_harness.launch.outcome import RunFacts
from tp_harness.launch.torchrun import TorchrunRanks
from tp_harness.launch.torchrun_agent import arguments

PATIENCE = 120.0  # seconds until a test gives up; never the measure of a pass


def start(folder: Path, do: str, *, timeout: float = PATIENCE, start_timeout: float = PATIENCE) -> TorchrunRanks:
    (folder / "work").mkdir(exist_ok=True)
    return TorchrunRanks.start(
        "torchrun_ranks",
        json.dumps({"do": do, "folder": str(folder)}),
        size=2,
        environment=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[1] / "support"), "OWN": "mine", "OMP_NUM_THREADS": "1"},
        work_dir=folder / "work",
        log_dir=folder / "logs",
        timeout=timeout,
        start_timeout=start_timeout,
    )


def wait(running: TorchrunRanks, until: Callable[[], bool] = lambda: False) -> LaunchOutcome | None:
    end = time.monotonic() + PATIENCE
    while (outcome := running.poll()) is None and not until():
        assert time.monotonic() < end
        time.sleep(0.02)
    return outcome


def assert_nothing_left(running: TorchrunRanks, folder: Path) -> None:
    """No process and no file; and none stays unreaped, be it by torchrun or, where that was killed, by init."""
    pids = running.record.pids.values()
    assert not [pid for pid in pids if lives(pid)]
    assert not list((folder / "work").iterdir())
    end = time.monotonic() + PATIENCE
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < end, f"dead and unreaped: {left}"
        time.sleep(0.02)


def test_ranks_are_fresh_programs_with_the_environment_given_and_open_no_port(tmp_path: Path) -> None:
    running = start(tmp_path, "sum")
    outcome = wait(running)
    assert outcome is not None
    assert (outcome.ok, outcome.message) == (True, "all 2 ranks finished"), outcome
    assert running.stop() == outcome
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["total"] for rank in ranks] == [1.0, 1.0]
    assert [rank["env"]["RANK"] for rank in ranks] == ["0", "1"]
    assert all(rank["env"]["OWN"] == "mine" and rank["env"]["LOCAL_WORLD_SIZE"] == "2" for rank in ranks)
    assert all(rank["env"]["MASTER_ADDR"] == "127.0.0.1" and rank["env"]["TORCHELASTIC_RUN_ID"] for rank in ranks)
    assert [(rank["own_ports"], rank["torchrun_ports"]) for rank in ranks] == [(["127.0.0.1"], [])] * 2
    assert "rank 1 of 2 does sum" in (tmp_path / "logs" / "rank1.log").read_text()
    assert_nothing_left(running, tmp_path)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise", "rank 1 of 2 failed with ValueError: no shards today"),
        pytest.param("kill", "rank 1 of 2 was killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param("exit", "rank 1 of 2 failed with SystemExit: 7", marks=pytest.mark.slow),
    ],
)
def test_the_rank_that_failed_first_is_named(do: str, message: str, tmp_path: Path) -> None:
    running = start(tmp_path, do)
    outcome = wait(running)
    assert outcome is not None
    assert (outcome.kind, outcome.failed_rank) == ("crash", 1)
    assert outcome.message.startswith(message)
    assert outcome.log_path == tmp_path / "logs" / "rank1.log"
    assert ("ValueError: no shards today" in (outcome.traceback or "")) == (do == "raise")
    assert_nothing_left(running, tmp_path)


def test_a_hang_ends_with_the_stacks_and_the_rank_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_only_when(monkeypatch, waits)
    running = start(tmp_path, "sleep", timeout=0.5)
    outcome = wait(running)
    assert outcome is not None
    assert outcome.kind == "timeout"
    assert "did not finish the only step within 0.5 s: ranks 0, 1 of 2 were still running" in outcome.message
    assert "rank 1 is not in the collective that the others wait in" in outcome.message
    assert "torchrun_ranks.py" in (outcome.traceback or "")
    assert_nothing_left(running, tmp_path)


@pytest.mark.slow
def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    running = start(tmp_path, "sleep")
    wait(running, until=lambda: running.record.started)
    assert running.record.started
    pids = list(running.record.pids.values())
    assert all(lives(pid) for pid in pids)
    assert running.stop().kind == "stopped"
    assert_nothing_left(running, tmp_path)


def test_ranks_that_do_not_come_are_told(tmp_path: Path) -> None:
    outcome = wait(start(tmp_path, "late", start_timeout=0.05))
    assert outcome is not None
    assert (outcome.ok, outcome.kind) == (False, "start")
    assert "only 0 of 2 ranks were connected within 0.05 s; missing: ranks 0, 1" in outcome.message


def test_it_is_torchrun_with_a_rendezvous_of_its_own() -> None:
    given = arguments({"size": 8, "attempt_dir": "/x/launch-1", "module": "m"})
    assert given[:4] == ["--nnodes=1", "--nproc-per-node=8", "--rdzv-backend=tp-harness", "--rdzv-id=launch-1"]
    assert given[-2:] == ["--module", "m"]


def test_a_rank_that_is_dying_is_waited_for_and_another_process_of_its_number_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunFacts(size=1, log_dir=tmp_path, timeout=1.0, start_timeout=1.0)
    running = TorchrunRanks(record, tmp_path)
    sleeper = subprocess.Popen(["sleep", "3600"])
    record.pids[0] = sleeper.pid
    try:
        monkeypatch.setattr(torchrun, "_environment", lambda pid: b"")  # its memory is gone
        assert running._kill_ranks()
        monkeypatch.setattr(torchrun, "_environment", lambda pid: b"TMPDIR=/elsewhere\0")
        assert not running._kill_ranks()
        assert sleeper.poll() is None, "neither is killed"
        monkeypatch.setattr(torchrun, "_environment", lambda pid: f"TMPDIR={tmp_path}\0".encode())
        assert running._kill_ranks()
        assert sleeper.wait(PATIENCE) == -signal.SIGKILL
        assert not running._kill_ranks()
    finally:
        sleeper.kill()
        sleeper.wait()
        running.stop()
