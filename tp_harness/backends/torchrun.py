"""The ranks that torchrun has already started: rank 0 leads, the others follow.

Used by launch/tp_test.py. Rank 0 runs the same flow as `tp-harness verify`; where that starts ranks, it sends the
others the path of the job file, runs it too, and continues when all are done.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ..launch import LaunchOutcome
from ..launch.local_ranks import Siblings
from ..neuron.log_patterns import explained
from ..parallel.group import Group
from ..ranks.device import Device
from ..ranks.rank import run_job
from .base import Backend


@dataclass(frozen=True, kw_only=True)
class Member:
    """This process as a rank.

    Args:
        group: its tensor-parallel group.
        core: the name of the place where it runs, for reports.
        device: where modules run; None for the CPU.
        orders: the group of rank 0's messages, without a timeout: the others wait however long rank 0 judges.
        end: the group of the barrier at the end of a job, whose timeout finds a rank that never comes. None for the
            default group. Both groups are of CPU tensors.
        siblings: the processes of all ranks, this one included.
    """

    group: Group
    core: str
    device: Device | None = None
    orders: dist.ProcessGroup | None
    end: dist.ProcessGroup | None = None
    siblings: Siblings

    def take_part(self, job: Path, begin: Callable[[str], None] = lambda key: None) -> None:
        """Run the job as one of its ranks; return when every rank has. `begin` is called with each step's name.

        Raises:
            RuntimeError: gloo lost a rank, or waited for one longer than its timeout.
        """
        run_job(job, self.group, core=self.core, device=self.device, begin=begin)
        dist.barrier(group=self.end)

    def tell(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Broadcast rank 0's `message`, for which the others pass None, as JSON without pickling; returns it."""
        text = json.dumps(message).encode() if message is not None else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0, group=self.orders)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if text:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(content, src=0, group=self.orders)
        received: dict[str, Any] = json.loads(content.numpy().tobytes())
        return received

    def follow(self) -> int:
        """Run jobs, on every rank but 0, until rank 0 sends an exit code; returns that code."""
        while True:
            message = self.tell(None)
            if "exit" in message:
                return int(message["exit"])
            self.take_part(Path(message["job"]))


class TorchrunBackend:
    """A backend with the name and `blind_spots` of `kind`, whose ranks torchrun has started."""

    owns_terminal = False
    process_group = True
    weight_copies = 0

    def __init__(self, kind: Backend, member: Member) -> None:
        self.name, self.blind_spots = kind.name, kind.blind_spots
        self.member = member
        self.ended_by = ""  # the signal that torchrun sends when a rank has failed

    def note_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal by noting its name: the next collective finds the lost rank."""
        self.ended_by = signal.Signals(number).name

    def available(self) -> str | None:
        """None: the ranks run already."""
        return None

    def open(self, degrees: tuple[int, ...] = ()) -> TorchrunSession:
        """Make the session of rank 0, which leads the other ranks."""
        return TorchrunSession(self)


class TorchrunSession:
    """The session of rank 0. A job has ended when `start` returns."""

    starts_anew = False

    def __init__(self, backend: TorchrunBackend) -> None:
        self._backend, self._lost = backend, ""
        self._task = ""  # the step that runs, or ran last

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> FinishedJob:
        """Run the job on all `tp` ranks; torchrun has their output, so `log_dir` remains empty.

        `timeout`, in seconds, is that of the group of `Member.end`; here messages name it.

        Raises:
            KeyboardInterrupt: torchrun has sent a signal before the job began.
        """
        started, member = time.perf_counter(), self._backend.member
        if self._lost:
            message = f"not run, because torchrun starts no rank anew: {self._lost}"
            return FinishedJob(LaunchOutcome(ok=False, kind="start", message=message, size=tp))
        if self._backend.ended_by:
            raise KeyboardInterrupt(f"ended by {self._backend.ended_by}")
        try:
            member.tell({"job": str(job)})
            member.take_part(job, self._begin)
        except RuntimeError as error:  # gloo's word for a peer that is gone, and a device's for what went wrong there
            lost = member.siblings.lost()
            late = "imed out" in str(error)  # in gloo's words
            what = f"{lost or 'a rank was lost'} in {self._task}" + (f", waited for {timeout:g} s" if late else "")
            says = f"torchrun's output says {'' if lost else 'which and '}why"
            self._lost = f"{what}: {explained(error)}; {says}"
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

    def _begin(self, key: str) -> None:
        self._task = key

    def __enter__(self) -> TorchrunSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End nothing: the other ranks wait for the exit code."""


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
