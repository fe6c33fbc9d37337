"""Runs of the launcher for its tests: what the ranks do, named by the argument, and how a run is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
import torch.distributed as dist
from living import HERE
from tp_harness.launch import RankLauncher, RunningRanks, stacks
from tp_harness.launch.outcome import RunFacts, rank_log
from tp_harness.launch.process import process_state
from tp_harness.launch.progress import Progress

if TYPE_CHECKING:
    import pytest  # which the programs that start ranks need not load

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
    print(HERE, flush=True)
    if rank == size - 1:
        os.kill(os.getpid(), int(order["signal"]))
    dist.barrier()


def sleep(order: dict[str, str], rank: int, size: int) -> None:
    Path(order["folder"], f"{rank}.up").touch()
    time.sleep(3600)


def sleep_in_one(order: dict[str, str], rank: int, size: int) -> None:
    if rank == 1:
        print(HERE, flush=True)
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


def expire_only_when(monkeypatch: pytest.MonkeyPatch, there: Callable[[RunFacts], bool]) -> None:
    """Let no rank's time run out before they are where a test wants them, however long the machine stalls.

    To be called before the launcher is forked.
    """
    deadline, expire = Progress.deadline, Progress.expire

    def later(progress: Progress, begin: float) -> float | None:
        """The deadline, but not before they were seen there twice: what they told before is read in between."""
        end, looks = deadline(progress, begin), vars(progress).get("looks", 0)
        vars(progress)["looks"] = looks + 1 if there(progress.record) else 0
        vars(progress)["expires"] = looks > 1
        return end if end is None or looks > 1 else max(end, time.monotonic() + 0.02)

    def only_then(progress: Progress) -> None:
        if vars(progress)["expires"]:
            expire(progress)

    monkeypatch.setattr(Progress, "deadline", later)
    monkeypatch.setattr(Progress, "expire", only_then)
    monkeypatch.setattr(stacks, "_PATIENCE", PATIENCE)


def waits(record: RunFacts) -> bool:
    """Each rank has returned, or has written that it is `HERE` and does not run."""
    running = [rank for rank in record.pids if rank not in record.returned]
    logs = {rank: rank_log(record.log_dir, rank) for rank in running}
    here = all(logs[rank].exists() and HERE in logs[rank].read_text().splitlines() for rank in running)
    return bool(running) and here and all(process_state(record.pids[rank]) in "ST" for rank in running)


def assert_clean(launcher: RankLauncher, folder: Path) -> None:
    """Only the zygote is left, and the work folder is empty."""
    assert not list((folder / "work").iterdir())
    zygote = psutil.Process(launcher._zygote)
    wait_until(lambda: not zygote.children(), "processes of the run to end")
