"""The launcher: ranks really run, failures are told with their cause, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from tp_harness.launch import LaunchOutcome, RankLauncher, RunningRanks
from tp_harness.launch import agent as agent_module
from tp_harness.launch import rank as rank_module
from tp_harness.launch.outcome import Death, Report, RunRecord, explain
from tp_harness.launch.process import thread_count

PATIENCE = 60.0  # seconds until a test gives up; never the measure of a pass


def entry(argument: str, rank: int, size: int) -> None:
    """What the ranks do: the function below that the argument names."""
    order = json.loads(argument)
    print(f"rank {rank} of {size} does {order['do']}")
    ORDERS[order["do"]](order, rank, size)


def sum_ranks(order: dict[str, str], rank: int, size: int) -> None:
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME")
    seen = {
        "total": total.item(),
        "backend": dist.get_backend(),
        "threads": torch.get_num_threads(),
        "env": {name: os.environ.get(name) for name in names},
        "hosts": sorted({c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"}),
    }
    Path(order["folder"], f"{rank}.json").write_text(json.dumps(seen))


def raise_in_one(order: dict[str, str], rank: int, size: int) -> None:
    if rank == size - 1:
        raise ValueError(f"no {'x' * 3} from rank {rank}")
    dist.barrier()


def exit_in_one(order: dict[str, str], rank: int, size: int) -> None:
    if rank == 1:
        leave = os._exit if order["how"] == "os._exit" else sys.exit
        leave(int(order["code"]))
    if order["how"] == "os._exit":
        time.sleep(3600)  # the agent must notice by itself, also an exit with 0
    dist.barrier()


def return_in_one(order: dict[str, str], rank: int, size: int) -> None:
    if rank != 1:
        dist.barrier()


def signal_in_one(order: dict[str, str], rank: int, size: int) -> None:
    dist.barrier()
    if rank == size - 1:
        os.kill(os.getpid(), int(order["signal"]))
    dist.barrier()


def sleep(order: dict[str, str], rank: int, size: int) -> None:
    Path(order["folder"], f"{rank}.up").touch()
    time.sleep(3600)


def sleep_in_one(order: dict[str, str], rank: int, size: int) -> None:
    if rank == 1:
        time.sleep(3600)


def leave_a_child(order: dict[str, str], rank: int, size: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(order["folder"], f"{rank}.up").write_text(str(child.pid))


def multiply(order: dict[str, str], rank: int, size: int) -> None:
    matrix = torch.full((512, 512), 0.5)
    assert (matrix @ matrix)[0, 0].item() == 128.0


ORDERS: dict[str, Callable[[dict[str, str], int, int], None]] = {
    function.__name__: function
    for function in (
        sum_ranks,
        raise_in_one,
        exit_in_one,
        return_in_one,
        signal_in_one,
        sleep,
        sleep_in_one,
        leave_a_child,
        multiply,
    )
}


@pytest.fixture(scope="module")
def launcher() -> Iterator[RankLauncher]:
    with RankLauncher.fork(entry) as launcher:
        yield launcher
    assert not [child for child in psutil.Process().children(recursive=True)]


def start(
    launcher: RankLauncher,
    folder: Path,
    do: str,
    *,
    size: int = 4,
    timeout: float | None = PATIENCE,
    start_timeout: float = PATIENCE,
    **order: object,
) -> RunningRanks:
    argument = json.dumps({"do": do, "folder": str(folder)} | {key: str(value) for key, value in order.items()})
    return launcher.start(
        argument,
        size=size,
        work_dir=folder / "work",
        log_dir=folder / "logs",
        timeout=timeout,
        start_timeout=start_timeout,
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def assert_clean(folder: Path) -> None:
    """Only the zygote is left of our children, and the work folder is empty."""
    assert not list((folder / "work").iterdir())
    for zygote in psutil.Process().children():
        wait_until(lambda zygote=zygote: not zygote.children(), "processes of the run to end")


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
    assert_clean(tmp_path)


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
    assert_clean(tmp_path)


@pytest.mark.parametrize(("how", "code"), [("sys.exit", 3), ("os._exit", 5), ("os._exit", 0)])
def test_exiting_rank(launcher: RankLauncher, tmp_path: Path, how: str, code: int) -> None:
    outcome = start(launcher, tmp_path, "exit_in_one", how=how, code=code).wait()
    assert (outcome.kind, outcome.failed_rank, outcome.exit_code) == ("crash", 1, code), outcome.message
    expected = f"failed with SystemExit: {code}" if how == "sys.exit" else f"left with exit code {code} before"
    assert f"rank 1 of 4 {expected}" in outcome.message


def test_exit_with_0_is_a_return(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "exit_in_one", how="sys.exit", code=0, size=2).wait()
    assert outcome.failed_rank == 0, "rank 0 waits in a barrier that rank 1 never enters"
    assert "(rank 1 had returned before)" in outcome.message


def test_rank_that_skips_a_collective(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "return_in_one").wait()
    assert outcome.kind == "crash"
    assert outcome.failed_rank != 1
    assert "by peer" in outcome.message, "gloo's words for a connection that was closed or reset"
    assert "(rank 1 had returned before)" in outcome.message


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_killed_rank_is_the_cause(launcher: RankLauncher, tmp_path: Path, name: str) -> None:
    """The others fail at once with connection errors, and have lower rank numbers."""
    outcome = start(launcher, tmp_path, "signal_in_one", signal=int(signal.Signals[name])).wait()
    assert (outcome.kind, outcome.failed_rank, outcome.signal_name) == ("crash", 3, name), outcome.message
    assert outcome.exit_code is None
    log = tmp_path / "logs" / "rank3.log"
    assert outcome.message == f"rank 3 of 4 was killed by {name}; its log: {log}"
    assert ("Segmentation fault" in log.read_text()) == (name == "SIGSEGV"), "faulthandler writes to the log"
    assert_clean(tmp_path)


def test_timeout_names_the_slow_and_dumps_stacks(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "sleep_in_one", timeout=3).wait()
    assert (outcome.ok, outcome.kind, outcome.unfinished_ranks) == (False, "timeout", (1,))
    assert "did not finish within 3 s: rank 1 of 4 was still running" in outcome.message
    assert "in sleep_in_one" in (tmp_path / "logs" / "rank1.log").read_text()
    assert_clean(tmp_path)


def test_stopped_rank_times_out(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "signal_in_one", signal=int(signal.SIGSTOP), timeout=0.5).wait()
    assert outcome.kind == "timeout"
    assert 3 in outcome.unfinished_ranks
    assert_clean(tmp_path)


def test_stop_and_poll(launcher: RankLauncher, tmp_path: Path) -> None:
    running = start(launcher, tmp_path, "sleep", timeout=None)
    wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 4, "ranks to sleep")
    assert running.poll() is None
    outcome = running.stop()
    assert (outcome.ok, outcome.kind) == (False, "stopped")
    assert running.stop() is running.wait() is running.poll() is outcome
    assert_clean(tmp_path)


def test_stop_while_starting(launcher: RankLauncher, tmp_path: Path) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        running = start(launcher, tmp_path, "sleep", size=8)
        time.sleep(delay)
        assert running.stop().kind == "stopped"
        assert_clean(tmp_path)


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
        assert not psutil.pid_exists(int(path.read_text()))


def test_argument_arrives_unchanged(launcher: RankLauncher, tmp_path: Path) -> None:
    """torch's agent would expand ${local_rank} in the arguments that it passes on."""
    folder = tmp_path / "${local_rank} $$ ä"
    folder.mkdir()
    assert start(launcher, folder, "sum_ranks", size=1).wait().ok
    assert (folder / "0.json").exists()


def test_start_that_takes_too_long_is_tried_twice(launcher: RankLauncher, tmp_path: Path) -> None:
    outcome = start(launcher, tmp_path, "sum_ranks", start_timeout=0.001).wait()
    assert (outcome.kind, outcome.start_retries) == ("start", 1)
    assert "only 0 of 4 ranks were connected within 0.001 s, twice; missing: ranks 0, 1, 2, 3" in outcome.message
    assert not (tmp_path / "0.json").exists()
    assert_clean(tmp_path)


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
        assert_clean(tmp_path)


def test_start_that_hangs_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(task: rank_module.RankTask, rank: int) -> None:
        time.sleep(3600)

    monkeypatch.setattr(rank_module, "_join_group", hang)
    with RankLauncher.fork(entry) as launcher:
        outcome = start(launcher, tmp_path, "sum_ranks", size=1, start_timeout=3).wait()
        assert (outcome.kind, outcome.start_retries) == ("start", 1)
        assert "only 0 of 1 ranks were connected within 3 s, twice; missing: rank 0" in outcome.message
        assert "in hang" in (tmp_path / "logs" / "rank0.log").read_text()
        assert_clean(tmp_path)


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


def test_killed_zygote_is_reported(tmp_path: Path) -> None:
    with RankLauncher.fork(entry) as launcher:
        running = start(launcher, tmp_path, "sleep", size=2)
        wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 2, "ranks to sleep")
        family = psutil.Process(launcher._zygote).children(recursive=True)
        os.kill(launcher._zygote, signal.SIGKILL)
        outcome = running.wait()
        assert (outcome.kind, "ended unexpectedly" in outcome.message) == ("crash", True)
        wait_until(lambda: not any(process.is_running() for process in family), "all to end")
        with pytest.raises(RuntimeError, match="closed"):
            start(launcher, tmp_path, "sum_ranks")


def test_close_ends_all_and_leaves_no_zombie(tmp_path: Path) -> None:
    launcher = RankLauncher.fork(entry)
    running = start(launcher, tmp_path, "sleep", size=2, timeout=None)
    zygote = psutil.Process(launcher._zygote)
    launcher.close()
    assert not zygote.is_running()
    assert running.wait().kind == "stopped"
    launcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        start(launcher, tmp_path, "sum_ranks")


@pytest.mark.parametrize("wrong", [{"size": 0}, {"timeout": 0.0}, {"start_timeout": -1.0}])
def test_wrong_numbers_are_refused(launcher: RankLauncher, tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        start(launcher, tmp_path, "sum_ranks", **wrong)  # type: ignore[arg-type]


def listening_ports() -> set[int]:
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("sem.", "torch_", "psm_"))}


def abandoned(names: set[str]) -> set[str]:
    """Those that no living process has mapped: others on this machine use shared memory as well."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        with contextlib.suppress(OSError):
            used |= {line.rpartition("/dev/shm/")[2] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return names - used


SCRIPT = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_launch import entry, start, RankLauncher
if {handle}:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
with RankLauncher.fork(entry) as launcher:
    start(launcher, Path({folder!r}), "sleep", size=8, timeout=None).wait()
"""


@pytest.mark.parametrize(
    ("name", "handle"), [("SIGINT", True), ("SIGTERM", True), ("SIGTERM", False), ("SIGKILL", False)]
)
def test_nothing_outlives_the_main_process(tmp_path: Path, name: str, handle: bool) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    shared_before = shared_memory()
    script = SCRIPT.format(tests=str(Path(__file__).parent), handle=handle, folder=str(tmp_path))
    environment = os.environ | {"TMPDIR": str(temporary)}
    main = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 8 or main.poll() is not None, "ranks to sleep")
        family = psutil.Process(main.pid).children(recursive=True)
        assert len(family) == 8 + 3, "ranks, zygote, warden, agent"
        assert len({os.getpgid(process.pid) for process in family} | {os.getpgid(main.pid)}) > 1
        ports = {c.laddr.port for p in family for c in p.net_connections() if c.status == "LISTEN"}
        assert len(ports) == 8
        main.send_signal(signal.Signals[name])
        _, errors = main.communicate(timeout=PATIENCE)  # standard error ends when no process holds it
    finally:
        main.kill()
        main.wait()
    wait_until(lambda: not any(process.is_running() for process in family), f"all to end after {name}")
    # Waited for, because other programs may use the same port or name for a moment.
    wait_until(lambda: not ports & listening_ports(), "the ports of the ranks to be free")
    wait_until(lambda: not abandoned(shared_memory() - shared_before), "shared memory to be gone")
    assert not list(temporary.iterdir())
    if handle:
        assert not list((tmp_path / "work").iterdir())
    assert (b"KeyboardInterrupt" in errors) == (name == "SIGINT")


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
