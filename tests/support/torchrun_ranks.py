"""The program of the ranks in test_torchrun.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from living import HERE
from tp_harness.launch import rank as rank_module
from tp_harness.launch.rank import begin_step
from tp_harness.launch.torchrun_agent import TASK
from tp_harness.launch.torchrun_rank import be_rank

SEEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OWN", "TORCHELASTIC_RUN_ID")


def listening(pid: int) -> list[str]:
    """The addresses at which a process listens."""
    return sorted({c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"})


def entry(argument: str, rank: int, size: int) -> None:
    order = json.loads(argument)
    print(f"rank {rank} of {size} does {order['do']}")
    begin_step("the only step")
    if order["do"] == "sum":
        total = torch.tensor([float(rank)])
        dist.all_reduce(total)
        seen = {
            "total": total.item(),
            "env": {name: os.environ.get(name) for name in SEEN},
            "own_ports": listening(os.getpid()),
            "torchrun_ports": listening(os.getppid()),
        }
        Path(order["folder"], f"{rank}.json").write_text(json.dumps(seen))
    elif rank == 1 and order["do"] == "raise":
        raise ValueError("no shards today")
    elif rank == 1 and order["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rank == 1 and order["do"] == "exit":
        sys.exit(7)
    elif order["do"] == "sleep":
        print(HERE, flush=True)
        if rank == 1:
            time.sleep(3600)
    if order["do"] != "sum":
        dist.barrier()


def be_late(task: rank_module.RankTask, rank: int) -> None:
    time.sleep(3600)


if __name__ == "__main__":
    if json.loads(json.loads(os.environ[TASK])["argument"])["do"] == "late":
        rank_module._join_group = be_late
    be_rank(entry)
