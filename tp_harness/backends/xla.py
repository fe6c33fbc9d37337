"""Ranks as virtual cores: threads of one process, one program compiled by XLA for all, its collectives between them.

Models are traced and compiled as for Trn1, on a CPU. Every degree gets a process of its own, because torch-xla fixes
the number of ranks when it is imported; this process never imports it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ..launch import LaunchOutcome, RankLauncher, RunningRanks
from ..launch.rank import ThreadError, be_thread, begin_step
from ..launch.stacks import Stack, render, suspects
from ..ranks.job import read_job
from ..ranks.rank import run_job
from ..xla.virtual_cores import run_on_cores
from .gloo import save_memory
from .virtual_stacks import virtual_stacks, whereabouts

if TYPE_CHECKING:
    from ..xla.device import XLADevice
    from ..xla.group import XLAGroup

HOW = "`make test-xla` makes .venv-xla, where it is: .venv-xla/bin/tp-harness verify --backend xla"
_STUCK = re.compile(r"^.*(?:may be stuck|[Tt]hread is unable to join rendezvous).*$", re.MULTILINE)


class XLABackend:
    """torch-xla with PJRT_DEVICE=CPU."""

    name = "xla"
    blind_spots = (
        "xla runs XLA's CPU compiler and the collectives of one process: it cannot see neuronx-cc, the arithmetic of "
        "a NeuronCore, nor a collective that only several processes can get wrong"
    )
    owns_terminal = False
    process_group = True
    weight_copies = 3  # on the device, and cast by the program

    def available(self) -> str | None:
        """None where torch-xla is installed, which is not imported for that."""
        if importlib.util.find_spec("torch_xla") is None:
            return f"torch-xla is not installed in {sys.prefix}; {HOW}"
        return None

    def open(self, degrees: tuple[int, ...] = ()) -> XLASession:
        """Fork the process that forks one process per degree; every degree can be run."""
        return XLASession()


class XLASession:
    """A session with a launcher of single processes, each of which holds all ranks of a degree."""

    starts_anew = True

    def __init__(self) -> None:
        self._launcher = RankLauncher.fork(cores_entry)

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningCores:
        """Start a process of `tp` virtual cores on the job file, each step within `timeout` seconds; log: rank0.log."""
        running = self._launcher.start(str(job), size=1, work_dir=job.parent, log_dir=log_dir, timeout=timeout)
        return RunningCores(running, tp, log_dir / "rank0.log")

    def __enter__(self) -> XLASession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._launcher.close()


class RunningCores:
    """A running process, whose outcome is rewritten as that of its ranks."""

    def __init__(self, running: RunningRanks, tp: int, log: Path) -> None:
        self._running, self._tp, self._log = running, tp, log

    def poll(self) -> LaunchOutcome | None:
        """How it ended, or None while it runs."""
        outcome = self._running.poll()
        return outcome and of_ranks(outcome, self._tp, self._log)

    def stop(self) -> LaunchOutcome:
        """End the process now; returns how the run ended."""
        return of_ranks(self._running.stop(), self._tp, self._log)


def cores_entry(argument: str, _rank: int, _size: int) -> None:
    """Run the job file `argument` in this process, on as many virtual cores as its degree.

    Raises:
        ThreadError: a rank failed; its own exception is the cause.
    """
    save_memory()
    torch.distributed.destroy_process_group()  # the launcher's, which is of this one process
    path = Path(argument)
    tp = read_job(path)[0].tp

    def be_rank(group: XLAGroup, device: XLADevice) -> None:
        run_job(
            path,
            group,
            core=f"virtual core {group.rank}, a thread",
            begin=begin_step if group.rank == 0 else lambda key: None,
            device=device,
        )

    failure = run_on_cores(tp, be_rank, be_thread)
    if failure:
        raise ThreadError(failure.rank, tp, failure.error) from failure.error


def of_ranks(outcome: LaunchOutcome, tp: int, log: Path) -> LaunchOutcome:
    """The outcome of the process that held `tp` ranks, rewritten as that of the ranks; `log` is the process's."""
    outcome = replace(outcome, size=tp, failed_rank=None, unfinished_ranks=())
    if outcome.kind == "ok":
        return replace(outcome, message=f"all {tp} ranks finished")
    if outcome.thread is not None:
        message = f"rank {outcome.thread} of {tp} failed with {outcome.error}; log of all ranks: {log}"
        return replace(outcome, failed_rank=outcome.thread, message=message)
    if outcome.kind not in ("timeout", "crash"):
        return outcome
    text = log.read_text(errors="replace") if log.exists() else ""
    stacks = virtual_stacks(text, outcome.threads)
    awaited = suspects(stacks)
    message = _lateness(outcome, stacks, tp) if outcome.kind == "timeout" else _death(outcome, text, stacks, tp)
    return replace(
        outcome,
        message=f"{message}; log of all {tp} ranks: {log}",
        traceback=render(stacks) or outcome.traceback,
        failed_rank=awaited[0] if awaited else None,
        unfinished_ranks=tuple(stacks),
    )


def _lateness(outcome: LaunchOutcome, stacks: dict[int, Stack], tp: int) -> str:
    """A sentence on what did not finish, and where its ranks were."""
    if not stacks:
        unknown = "the process that holds all ranks was stopped by a signal, or did not say where they were"
        return f"{outcome.late}: {unknown}"
    return f"{outcome.late}: {whereabouts(stacks, tp)}"


def _death(outcome: LaunchOutcome, log: str, stacks: dict[int, Stack], tp: int) -> str:
    stuck = _STUCK.search(log)
    if stuck:
        where = f": {whereabouts(stacks, tp)}" if stacks else ""
        return (
            "XLA aborted the process, because ranks waited in a collective for others that never came "
            f"({stuck[0]}){where}"
        )
    how = outcome.signal_name or f"exit code {outcome.exit_code}"
    return f"the process that holds all ranks ended with {how}"
