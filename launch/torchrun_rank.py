"""What a program started by `TorchrunRanks` calls to be a rank."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from .rank import Entry, RankTask, run_rank
from .torchrun_agent import AGENT_PID, TASK


class Barrier:
    """Blocks every rank until all are here, by a collective."""

    def wait(self, seconds: float | None = None) -> None:
        """Block until all ranks are here, or until the process group's timeout; `seconds` has no effect."""
        dist.barrier()


@dataclass(frozen=True)
class FilesGate:
    """Blocks every rank until all have left a file in the folder; no collective, which a missing rank would block."""

    folder: Path
    rank: int
    size: int

    def wait(self, seconds: float | None = None) -> None:
        """Leave this rank's file; block until all are there, or for so many seconds (None: for ever)."""
        (self.folder / f"returned{self.rank}").touch()
        end = time.monotonic() + (float("inf") if seconds is None else seconds)
        while time.monotonic() < end and len(list(self.folder.glob("returned*"))) < self.size:
            time.sleep(0.01)


def be_rank(entry: Entry) -> None:
    """Run the entry function as the rank that torchrun says this process is; returns when it has.

    Raises:
        Exception: whatever the entry function raised, after it was written to the log and reported.
    """
    task, rank = json.loads(os.environ[TASK]), int(os.environ["RANK"])
    folder = Path(task["attempt_dir"])
    run_rank(
        RankTask(
            entry=entry,
            argument=task["argument"],
            size=task["size"],
            attempt_dir=folder,
            log_dir=Path(task["log_dir"]),
            group_timeout=timedelta(seconds=task["group_seconds"]),
            agent=int(os.environ[AGENT_PID]),
            status_fd=os.open(task["status"], os.O_WRONLY),
            start_gate=Barrier(),
            end_gate=FilesGate(folder, rank, task["size"]),
        ),
        rank,
    )
