"""The ranks that torchrun has already started: rank 0 leads, the others follow.

Used by launch/tp_test.py. Rank 0 runs the same flow as `tp-harness verify`; where that starts ranks, it tells the
others which job file to run, runs it too, and goes on when all are done.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from ..group import TorchGroup
from ..launch import LaunchOutcome
from ..rank import run_job
from .gloo import GlooBackend


class TorchrunBackend(GlooBackend):
    """gloo ranks, started by somebody else."""

    # For orders: followers wait for the next one however long the leader judges, and not for --timeout.
    orders: ClassVar[dist.ProcessGroup | None] = None
    ended_by: ClassVar[str] = ""  # the signal that torchrun has sent, as it does when a rank has failed

    @classmethod
    def note_signal(cls, number: int, _frame: FrameType | None) -> None:
        """A signal handler that changes nothing at once: a lost rank is noticed in the next collective anyway."""
        cls.ended_by = signal.Signals(number).name

    def open(self, degrees: tuple[int, ...] = ()) -> TorchrunSession:  # type: ignore[override]  # both are sessions
        """Lead the other ranks."""
        return TorchrunSession()


class TorchrunSession:
    """Rank 0's side. A job has ended when `start` returns."""

    def __init__(self) -> None:
        self._lost = ""

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> FinishedJob:
        """Run the job on all ranks; their output stays with torchrun, so `log_dir` remains empty."""
        started = time.perf_counter()
        if self._lost:
            message = f"not run, because torchrun starts no rank anew: {self._lost}"
            return FinishedJob(LaunchOutcome(ok=False, kind="start", message=message, size=tp))
        if TorchrunBackend.ended_by:
            raise KeyboardInterrupt(f"ended by {TorchrunBackend.ended_by}")
        try:
            tell({"job": str(job)})
            take_part(job)
        except RuntimeError as error:  # gloo's word for a peer that is gone
            late = "imed out" in str(error)  # in gloo's words
            what = f"a rank did not come within {timeout:g} s" if late else "a rank was lost"
            self._lost = f"{what}: {str(error).splitlines()[0]}; torchrun's output says which and why"
            outcome = LaunchOutcome(
                ok=False,
                kind="timeout" if late else "crash",
                message=self._lost,
                size=tp,
                traceback=traceback.format_exc(),
            )
            return FinishedJob(outcome)
        seconds = time.perf_counter() - started
        return FinishedJob(LaunchOutcome(ok=True, kind="ok", message="all ranks finished", size=tp, seconds=seconds))

    def __enter__(self) -> TorchrunSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to end: the followers wait for the exit code."""


class FinishedJob:
    """A job that has ended."""

    def __init__(self, outcome: LaunchOutcome) -> None:
        self._outcome = outcome

    def poll(self) -> LaunchOutcome:
        """How it ended."""
        return self._outcome

    def stop(self) -> LaunchOutcome:
        """How it ended."""
        return self._outcome


def follow() -> int:
    """Every other rank's side: run jobs until rank 0 says with which code to exit."""
    while True:
        message = tell(None)
        if "exit" in message:
            return int(message["exit"])
        take_part(Path(message["job"]))


def take_part(job: Path) -> None:
    """Run the job as one of its ranks; return when every rank has."""
    group = TorchGroup()
    run_job(job, group, core=f"cpu process {group.rank}")
    dist.barrier()


def tell(message: dict[str, Any] | None) -> dict[str, Any]:
    """Rank 0's message, on all ranks. JSON in a tensor: nothing is pickled."""
    text = json.dumps(message).encode() if message is not None else b""
    length = torch.tensor([len(text)])
    dist.broadcast(length, src=0, group=TorchrunBackend.orders)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if text:
        content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(content, src=0, group=TorchrunBackend.orders)
    received: dict[str, Any] = json.loads(content.numpy().tobytes())
    return received
