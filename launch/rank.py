"""What one rank's process does around the entry function."""

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ..errors import told
from .dump import write_stacks_on_request
from .outcome import Report, rank_log, report_path
from .process import default_signals, die_with_parent, redirect_output

Entry = Callable[[str, int, int], None]
_SETTLE_SECONDS = 1.0  # for the others to return, before a rank that has closes its connections
_MOST_TRACEBACK, _MOST_STEP = 20_000, 300  # characters
_told: tuple[int, int] | None = None  # in a rank: where it tells its progress, and its number


class Holds(Protocol):
    """What blocks a rank, such as a `process.Latch`."""

    def wait(self, seconds: float | None = None) -> None:
        """Block until the rank may go on, or for so many seconds (None: for ever)."""


class ThreadError(RuntimeError):
    """Rank `rank` of `size`, which is a thread of the entry function, failed with `error`."""

    def __init__(self, rank: int, size: int, error: Exception) -> None:
        super().__init__(f"rank {rank} of {size} failed with {told(error)}")
        self.rank, self.error = rank, error


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """The arguments that all ranks of one attempt get.

    Args:
        entry: called as `entry(argument, rank, size)` when all ranks are connected.
        argument: passed on as it is.
        size: number of ranks.
        attempt_dir: folder of this attempt, removed when it is over.
        log_dir: folder for `rank{r}.log`.
        group_timeout: of the process group's collectives; None for a year.
        agent: process id of the agent, the ranks' parent.
        status_fd: pipe on which ranks tell the warden their progress, one short JSON line at a time.
        start_gate: opened when all are connected.
        end_gate: opened when all have returned.
    """

    entry: Entry
    argument: str
    size: int
    attempt_dir: Path
    log_dir: Path
    group_timeout: timedelta | None
    agent: int
    status_fd: int
    start_gate: Holds
    end_gate: Holds


def run_rank(task: RankTask, rank: int) -> None:
    """Run as rank `rank`: join the group, wait for all, call the entry function, leave the group.

    Raises:
        Exception: whatever the entry function raised, after it was written to the log and reported.
    """
    global _told  # noqa: PLW0603 - one process is one rank
    die_with_parent(task.agent)
    default_signals()  # handlers inherited from torch's agent would not run in a rank inside a collective
    redirect_output(str(rank_log(task.log_dir, rank)))
    faulthandler.enable()
    write_stacks_on_request()
    torch.set_num_threads(1)  # also drops an OpenMP team that did not survive the fork
    try:
        tell(task.status_fd, event="alive", rank=rank, pid=os.getpid())
        _join_group(task, rank)
        tell(task.status_fd, event="connected", rank=rank)
        task.start_gate.wait()
        _told = task.status_fd, rank
        _call_entry(task, rank)
        tell(task.status_fd, event="returned", rank=rank)
        # A socket closed while a peer still sends is reset, and what that peer has not read is lost. But
        # peers in a collective that this rank never enters should fail soon, and not at the timeout.
        task.end_gate.wait(_SETTLE_SECONDS)
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException as error:
        moment = time.monotonic_ns()  # taken first: the order of failures tells the cause
        _report(report_path(task.attempt_dir, rank), error, moment)
        raise


def begin_step(name: str) -> None:
    """Report that this rank begins a step of its work, such as one case; does nothing in a process that is no rank.

    The run's timeout then holds for each step: it starts anew whenever all ranks have begun another one.

    Args:
        name: the step's name in messages.
    """
    if _told is not None:
        status_fd, rank = _told
        tell(status_fd, event="step", rank=rank, name=name[:_MOST_STEP])


def be_thread(number: int) -> None:
    """Report that this thread is rank `number`, in a process that has several; does nothing in one that is no rank."""
    if _told is not None:
        tell(_told[0], event="thread", number=number, ident=threading.get_ident())


def tell(status_fd: int, **event: Any) -> None:
    """Write an event to the warden's pipe as one line of JSON; atomic, because it is shorter than PIPE_BUF."""
    os.write(status_fd, json.dumps(event).encode() + b"\n")


def _join_group(task: RankTask, rank: int) -> None:
    store = dist.FileStore(str(task.attempt_dir / "store"), task.size)  # type: ignore[attr-defined]
    timeout = task.group_timeout or timedelta(days=365)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=task.size, timeout=timeout)


def _call_entry(task: RankTask, rank: int) -> None:
    try:
        task.entry(task.argument, rank, task.size)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise


def _report(path: Path, error: BaseException, moment: int) -> None:
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:  # the launcher's own frames say nothing
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    print(text, file=sys.stderr, flush=True)
    thread, cause = (error.rank, error.error) if isinstance(error, ThreadError) else (None, error)
    report = Report(time_ns=moment, error=told(cause), traceback=text[-_MOST_TRACEBACK:], thread=thread)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(report)))
    part.rename(path)  # so that a rank killed while it writes leaves no incomplete report
