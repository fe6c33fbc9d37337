"""Starts of the launcher's ranks that fail, hang or happen beside threads, and are tried a second time."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from launching import assert_clean, entry, expire_only_when, start, waits
from living import HERE
from tp_harness.launch import RankLauncher
from tp_harness.launch import agent as agent_module
from tp_harness.launch import rank as rank_module
from tp_harness.launch.process import thread_count


def hang(task: rank_module.RankTask, rank: int) -> None:
    print(HERE, flush=True)
    time.sleep(3600)


def test_start_that_takes_too_long_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_module, "_join_group", hang)
    with RankLauncher.fork(entry) as launcher:
        outcome = start(launcher, tmp_path, "sum_ranks", start_timeout=0.001).wait()
        assert_clean(launcher, tmp_path)
    assert (outcome.kind, outcome.start_retries) == ("start", 1)
    assert "only 0 of 4 ranks were connected within 0.001 s, twice; missing: ranks 0, 1, 2, 3" in outcome.message
    assert not (tmp_path / "0.json").exists()


def test_start_that_fails_once_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join = rank_module._join_group

    def fail_once(task: rank_module.RankTask, rank: int) -> None:
        if rank == 2 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            os._exit(7)
        join(task, rank)

    monkeypatch.setattr(rank_module, "_join_group", fail_once)
    with RankLauncher.fork(entry) as launcher:
        outcome = start(launcher, tmp_path, "sum_ranks").wait()
        assert outcome.ok, outcome.message
        assert outcome.start_retries == 1
        assert_clean(launcher, tmp_path)


def test_start_that_hangs_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_module, "_join_group", hang)
    expire_only_when(monkeypatch, waits)
    with RankLauncher.fork(entry) as launcher:
        outcome = start(launcher, tmp_path, "sum_ranks", size=1, start_timeout=0.5).wait()
        assert (outcome.kind, outcome.start_retries) == ("start", 1)
        assert "only 0 of 1 ranks were connected within 0.5 s, twice; missing: rank 0" in outcome.message
        assert "in hang" in (tmp_path / "logs" / "rank0.log").read_text()
        assert_clean(launcher, tmp_path)


def test_torch_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes write an exception to the temporary folder, and remove it only when all goes well."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with RankLauncher.fork(entry) as launcher:
        assert start(launcher, tmp_path, "raise_in_one").wait().kind == "crash"
    assert not list((tmp_path / "tmp").iterdir())


def test_agent_refuses_to_fork_with_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() == len(psutil.Process().threads())
    monkeypatch.setattr(agent_module, "thread_count", lambda: 2)
    with RankLauncher.fork(entry) as launcher:
        outcome = start(launcher, tmp_path, "sum_ranks").wait()
    assert outcome.kind == "start"
    assert "the agent has 2 threads" in outcome.message
    assert "the agent has 2 threads" in (tmp_path / "logs" / "agent.log").read_text()


def test_fork_of_a_busy_parent(tmp_path: Path) -> None:
    """Other threads and an OpenMP team exist; the ranks compute nevertheless."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    matrix = torch.full((512, 512), 0.5)
    assert (matrix @ matrix + matrix).sum() > 0
    try:
        with RankLauncher.fork(entry) as launcher:
            outcome = start(launcher, tmp_path, "multiply", size=8).wait()
    finally:
        done.set()
    assert outcome.ok, outcome.message


def test_fork_from_a_thread_that_ends(tmp_path: Path) -> None:
    launchers: list[RankLauncher] = []
    thread = threading.Thread(target=lambda: launchers.append(RankLauncher.fork(entry)))
    thread.start()
    thread.join()
    with launchers[0] as launcher:
        assert start(launcher, tmp_path, "sum_ranks", size=2).wait().ok
