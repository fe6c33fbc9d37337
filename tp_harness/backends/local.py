"""Ranks as threads of this process that take turns: for breakpoints, for repeatable runs, and for many short ones.

They compute the same bits as those of the gloo backend. A breakpoint in a sharded module stops every rank, and
`self.group.rank` says which one it is in.

Not covered: modules that call torch.distributed themselves; there is no process group here, only `current_group()`.
"""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..errors import told
from ..launch import LaunchOutcome
from ..launch.outcome import RunFacts, outcome_of, rank_log
from ..ranks.rank import run_job
from .local_group import Abandoned, LocalGroup, Turns

JOIN_SECONDS = 5.0  # for ranks to notice that a run is over; one that computes notices at its next collective


class LocalBackend:
    """The backend for debugging; "auto" never chooses it, because its ranks share one process's memory and crashes."""

    name = "local"
    blind_spots = "local cannot see what gloo cannot, nor races: its ranks take turns in one process"
    owns_terminal = True
    process_group = False
    weight_copies = 0

    def available(self) -> str | None:
        """None: every machine can run threads."""
        return None

    def open(self, degrees: tuple[int, ...] = ()) -> LocalSession:
        """Make a session, without preparation; every degree can be run."""
        return LocalSession()


class LocalSession:
    """Starts runs; leaving it ends those that still run."""

    starts_anew = True

    def __init__(self) -> None:
        self._runs: list[LocalRun] = []

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> LocalRun:
        """Start `tp` threads on the job file, each step within `timeout` seconds; they share this process's output."""
        self._runs.append(LocalRun(job, tp, log_dir, timeout))
        return self._runs[-1]

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for run in self._runs:
            run.stop()


class LocalRun:
    """The threads of one start."""

    def __init__(self, job: Path, size: int, log_dir: Path, timeout: float) -> None:
        self._job, self._size, self._log_dir, self._timeout = job, size, log_dir, timeout
        self._turns = Turns(size)
        self._outcome: LaunchOutcome | None = None
        self._steps: dict[int, list[str]] = {rank: [] for rank in range(size)}
        self._started = self._step_began = time.monotonic()
        log_dir.mkdir(parents=True, exist_ok=True)
        for rank in range(size):
            rank_log(log_dir, rank).write_text("A thread of the main process, where its output went.\n")
        self._threads = [threading.Thread(target=self._be_rank, args=(r,), daemon=True) for r in range(size)]
        for thread in self._threads:
            thread.start()

    def poll(self) -> LaunchOutcome | None:
        """How it ended, or None while it runs."""
        if self._outcome is None and self._turns.over.is_set():
            self._outcome = self._end()
        elif self._outcome is None and time.monotonic() - self._step_began > self._timeout:
            self._outcome = self._time_out()
        return self._outcome

    def stop(self) -> LaunchOutcome:
        """End the run. A rank that computes ends at its next collective, one that sleeps when this process ends."""
        outcome = self.poll()
        self._turns.abandon()
        for thread in self._threads:
            thread.join(JOIN_SECONDS if outcome is None or outcome.ok else 0.0)
        return outcome or LaunchOutcome(
            ok=False, kind="stopped", message="the ranks were stopped on request", size=self._size
        )

    def _be_rank(self, rank: int) -> None:
        torch.set_num_threads(1)  # as gloo's ranks: sums inside an operation run in another order with more
        try:
            self._turns.wait(rank)
            run_job(
                self._job,
                LocalGroup(rank, self._turns),
                core=f"thread {rank}",
                begin=lambda step: self._begin(rank, step),
            )
            self._turns.leave(rank)
        except Abandoned:
            return
        except BaseException as error:  # whatever a module raises, the others must end
            self._turns.fail(rank, told(error), "".join(traceback.format_exception(error)))

    def _begin(self, rank: int, step: str) -> None:
        """Note that a rank begins a step; the timeout, which holds for each step, restarts with the last rank."""
        self._steps[rank].append(step)
        if len(self._steps[rank]) == min(map(len, self._steps.values())):
            self._step_began = time.monotonic()

    def _end(self) -> LaunchOutcome:
        failure = self._turns.failure
        if failure:
            self._log(failure[0], failure[1].traceback)
        return self._explain(
            ending="ended",
            reports=dict([failure]) if failure else {},
            succeeded=not failure and len(self._turns.returned) == self._size,
        )

    def _time_out(self) -> LaunchOutcome:
        """The outcome of a timeout: all ranks wait for the one whose turn it is, so its stack is the cause."""
        rank = self._turns.running
        stack = self._turns.stack(rank)
        self._log(rank, stack)
        self._turns.abandon()
        step = f" {self._steps[rank][-1]}" if self._steps[rank] else ""
        message = (
            f"the ranks did not finish{step} within {self._timeout:g} s: it was the turn of rank {rank} of "
            f"{self._size}, which neither returned nor entered a collective; its stack: {rank_log(self._log_dir, rank)}"
        )
        return replace(self._explain(ending="timeout"), message=message, failed_rank=rank, traceback=stack)

    def _explain(self, **facts: Any) -> LaunchOutcome:
        record = RunFacts(
            size=self._size,
            log_dir=self._log_dir,
            timeout=self._timeout,
            start_timeout=self._timeout,
            connected=set(range(self._size)),
            returned=set(self._turns.returned),
            steps=self._steps,
            **facts,
        )
        return outcome_of(record, retries=0, start_seconds=0.0, seconds=time.monotonic() - self._started)

    def _log(self, rank: int, text: str) -> None:
        with rank_log(self._log_dir, rank).open("a", encoding="utf-8") as log:
            log.write(text)
