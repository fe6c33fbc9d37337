"""Ranks that hang: who is waited for, where every rank was, and what becomes of the other cases."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from command import Harness
from launching import expire_only_when, waits
from living import HERE
from tp_harness.launch import LaunchOutcome, RankLauncher
from tp_harness.launch.rank import begin_step
from tp_harness.launch.stacks import Stack, is_stopped, render, suspects

START = 60.0  # seconds; never the measure of a pass


def entry(argument: str, rank: int, size: int) -> None:
    ORDERS[argument](rank)


def stop_one(rank: int) -> None:
    dist.barrier()
    print(HERE, flush=True)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()


def keep_one_out(rank: int) -> None:
    print(HERE, flush=True)
    if rank == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(4))


def separate(rank: int) -> None:
    """Two collectives that never meet."""
    print(HERE, flush=True)
    if rank == 0:
        dist.recv(torch.ones(1), src=1)
    dist.barrier()


def take_steps(rank: int) -> None:
    for step in range(11):
        begin_step(f"step{step}")
        dist.barrier()
        time.sleep(0.4)


def stay_in_a_step(rank: int) -> None:
    begin_step("the first")
    dist.barrier()
    begin_step("the [second]")
    if rank == 0:
        begin_step("the third")
    print(HERE, flush=True)
    time.sleep(3600)


ORDERS: dict[str, Callable[[int], None]] = {
    function.__name__: function for function in (stop_one, keep_one_out, separate, take_steps, stay_in_a_step)
}


@pytest.fixture(scope="module")
def launcher() -> Iterator[RankLauncher]:
    with pytest.MonkeyPatch.context() as patch:
        expire_only_when(patch, waits)
        launcher = RankLauncher.fork(entry)
    with launcher:
        yield launcher


def outcome(launcher: RankLauncher, folder: Path, order: str, timeout: float, size: int = 4) -> LaunchOutcome:
    running = launcher.start(
        order, size=size, work_dir=folder / "work", log_dir=folder / "logs", timeout=timeout, start_timeout=START
    )
    try:
        return running.wait()
    finally:
        assert not list((folder / "work").iterdir())


def test_a_stopped_rank_is_named_and_shows_where_it_was(launcher: RankLauncher, tmp_path: Path) -> None:
    ended = outcome(launcher, tmp_path, "stop_one", 0.5)
    assert (ended.kind, ended.failed_rank, ended.log_path) == ("timeout", 2, tmp_path / "logs" / "rank2.log")
    assert "ranks 0, 1, 2, 3 of 4 were still running, with rank 2 stopped by a signal; " in ended.message
    assert ended.traceback is not None
    others, stopped = ended.traceback.split("\n\n")
    assert others.startswith("ranks 0, 1, 3, innermost call first:\n")
    assert stopped.startswith("rank 2 (stopped by a signal), innermost call first:\n")
    assert "in barrier" in others
    assert "in stop_one" in stopped
    assert "_call_entry" not in ended.traceback, "frames of the launcher only distract"


def test_a_rank_that_stays_out_of_a_collective_is_named(launcher: RankLauncher, tmp_path: Path) -> None:
    ended = outcome(launcher, tmp_path, "keep_one_out", 0.5)
    assert (ended.failed_rank, ended.unfinished_ranks) == (1, (0, 1, 2, 3))
    place = "all_reduce (test_hangs.py:LINE in keep_one_out)"
    said = f"and rank 1 is not in the collective that the others wait in: {place}; "
    assert said in re.sub(r"py:\d+", "py:LINE", ended.message)
    assert ended.traceback is not None
    assert ended.traceback.startswith("ranks 0, 2, 3, innermost call first:\n")
    assert "in all_reduce" in ended.traceback.partition("rank 1, ")[0]
    assert "in all_reduce" not in ended.traceback.partition("rank 1, ")[2]


def test_no_rank_is_blamed_when_all_wait(launcher: RankLauncher, tmp_path: Path) -> None:
    ended = outcome(launcher, tmp_path, "separate", 0.5, size=2)
    assert (ended.kind, ended.failed_rank) == ("timeout", None)
    said = "not in the same call: rank 0 in recv (test_hangs.py:LINE in separate), rank 1 in barrier (test_hangs.py:"
    assert said in re.sub(r"hangs.py:\d+ in s", "hangs.py:LINE in s", ended.message)
    assert ended.traceback is not None and "in recv" in ended.traceback and "in barrier" in ended.traceback


def test_each_step_has_the_timeout_for_itself(tmp_path: Path) -> None:
    with RankLauncher.fork(entry) as launcher:
        ended = outcome(launcher, tmp_path, "take_steps", 4)
    assert ended.ok, ended.message
    assert ended.seconds > 4


def test_the_step_that_hangs_is_named(launcher: RankLauncher, tmp_path: Path) -> None:
    """It is the last one that all have begun, and rank 0's step ahead of the others renews nothing."""
    ended = outcome(launcher, tmp_path, "stay_in_a_step", 0.5, size=2)
    assert ended.message.startswith("the ranks did not finish the [second] within 0.5 s: ")


def test_begin_step_outside_a_rank_does_nothing() -> None:
    begin_step("anything")


def test_is_stopped() -> None:
    child = os.fork()
    if not child:
        time.sleep(3600)
        os._exit(0)
    try:
        assert not is_stopped(child)
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        assert is_stopped(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not is_stopped(child)


WAITING = Stack(frames=('  File "/x/torch/distributed/distributed_c10d.py", line 1 in all_reduce',))
COMPUTING = Stack(frames=('  File "/x/model.py", line 7 in forward',))
STOPPED = Stack(frames=WAITING.frames, stopped=True)


@pytest.mark.parametrize(
    ("stacks", "expected"),
    [
        ((WAITING, WAITING), ()),
        ((COMPUTING, COMPUTING), ()),
        ((WAITING, COMPUTING, WAITING, Stack()), (1, 3)),
        ((COMPUTING, STOPPED, WAITING), (1,)),
        ((), ()),
    ],
)
def test_suspects(stacks: tuple[Stack, ...], expected: tuple[int, ...]) -> None:
    assert suspects(dict(enumerate(stacks))) == expected


def test_render_joins_ranks_in_the_same_place() -> None:
    text = render({0: COMPUTING, 1: WAITING, 2: COMPUTING, 3: Stack(stopped=True)})
    assert text == (
        "ranks 0, 2, innermost call first:\n" + COMPUTING.frames[0] + "\n\n"
        "rank 1, innermost call first:\n" + WAITING.frames[0] + "\n\n"
        "rank 3 (stopped by a signal), innermost call first:\n  no stack was written\n"
    )


HANG = """
import os, signal, time
from tp_harness.models.gpt_oss.modules.mlp import NeuronGPTOSSMLPBlock
from tp_harness.ranks import rank
def forward(self, x):
    if self.group.rank == 1:
        {hang}
    return self.group.all_reduce(x)
NeuronGPTOSSMLPBlock.forward = forward
"""
SIGSTOP = "os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize(
    "hang", [SIGSTOP, pytest.param("time.sleep(3600)", marks=pytest.mark.slow)], ids=["SIGSTOP", "sleep"]
)
def test_a_case_that_hangs_and_the_others_that_do_not(tmp_path: Path, hang: str) -> None:
    harness = Harness(tmp_path)
    components = [word for name in ("rmsnorm", "mlp", "unembedding") for word in ("--component", name)]
    # No control: it may be drawn for the MLP, and hang as well.
    options = [*components, "--tp", "2", "--draws", "1", "--dtype", "float32", "--timeout", "6", "--no-fault-control"]
    assert harness.code(*options, patch=HANG.format(hang=hang)) == 3
    assert [r["status"] for r in harness.record()["results"]] == ["PASS", "TIMEOUT", "PASS"]
    result = harness.record()["results"][1]
    assert result["reason"].startswith("the ranks did not finish mlp.0.d0 within 6 s: ranks 0, 1 of 2 were still")
    assert "rank 1" in result["reason"].partition(" running")[2]
    assert result["traceback"].startswith("rank 0, innermost call first:\n")
    assert "rank 1" in result["traceback"] and "in all_reduce" in result["traceback"]
    assert (Path(result["log_dir"]) / "rank1.log").exists()


CRASH_AT_THE_END = """
import os
from tp_harness.ranks import rank
run = rank.run_job
def run_and_crash(path, group, **options):
    run(path, group, **options)
    if group.rank == 1:
        os._exit(7)
from tp_harness.backends import gloo
gloo.run_job = run_and_crash
"""


def test_a_rank_that_fails_after_its_last_output_is_not_overlooked(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    options = ["--component", "rmsnorm", "--component", "rope", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*options, patch=CRASH_AT_THE_END) == 3
    results = harness.record()["results"]  # not even the control's ranks end well: nothing was decided
    assert [r["status"] for r in results] == ["CRASH", "CRASH"]
    for r in results:
        assert r["reason"].startswith("passed, but no control could run, so it proves nothing: fault ")
        assert ": its ranks ended: rank 1 of 2 left with exit code 7" in r["reason"] and r["gates"]


def test_without_a_control_it_is_the_last_case_that_failed(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    options = ["--component", "rmsnorm", "--component", "rope", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*options, "--no-fault-control", patch=CRASH_AT_THE_END) == 3
    assert [r["status"] for r in harness.record()["results"]] == ["PASS", "CRASH"]
    assert "rank 1 of 2 left with exit code 7" in harness.record()["results"][1]["reason"]


NO_START = """
import os
from tp_harness.launch import rank
def join(task, number):
    os._exit(7)
rank._join_group = join
"""


def test_ranks_that_cannot_start_fail_every_case_of_the_degree_at_once(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    options = ["--component", "rmsnorm", "--component", "rope", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*options, patch=NO_START) == 3
    record = harness.record()
    assert [r["status"] for r in record["results"]] == ["CRASH", "CRASH"]
    assert all("the ranks could not be started, twice" in r["reason"] for r in record["results"])
    assert [path.name for path in (harness.out / record["run_id"] / "logs").iterdir()] == ["tp2"]


AHEAD = """
import os, time
from tp_harness.ranks import rank
write = rank.write_output
def fail_once(path, kept, report):
    if path.name.startswith("rmsnorm.") and report.rank == 1 and not os.path.exists(os.environ["ASLEEP"]):
        Path(os.environ["ASLEEP"]).touch()
        ahead = path.parent / "rope.0.d0.tp2.rank0.safetensors"
        while not ahead.exists():
            time.sleep(0.01)
        raise ArithmeticError("rank 1 cannot write")
    write(path, kept, report)
rank.write_output = fail_once
"""


def test_outputs_of_a_rank_that_was_ahead_do_not_stand_for_those_of_the_next_start(tmp_path: Path) -> None:
    """Rank 0 has written the second case's output when rank 1 fails in the first."""
    harness = Harness(tmp_path)
    options = ["--component", "rmsnorm", "--component", "rope", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*options, patch=AHEAD) == 3
    assert [r["status"] for r in harness.record()["results"]] == ["CRASH", "PASS"]
