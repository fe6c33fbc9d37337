"""Ranks as processes under torchrun, one per NeuronCore; one program for all, its collectives over NeuronLink.

Every degree is a fresh tree of processes: the Neuron runtime has one world size per process, reads its environment
once, and holds its cores until the process ends. This process never imports torch_xla.

With PJRT_DEVICE=CPU in the user's environment the same code runs without a device, to try it. Every process is a
world of its own then, which its ranks notice at tp > 1.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..doctor.backends import neuron_reason
from ..doctor.packages import read_python_packages
from ..errors import UsageError
from ..launch import LaunchOutcome
from ..launch.outcome import rank_log
from ..launch.torchrun import TorchrunRanks
from ..neuron_devices import Machine, on_neuron, read_machine
from ..neuron_env import TRN1_CORES, check_block, core_range, neuron_environment, visible_cores
from ..symptoms import advice, read_log

RANK_MODULE = "tp_harness.backends.neuron_rank"
START_SECONDS = 300.0  # 32 processes that import torch_xla


class NeuronBackend:
    """The default where there are Neuron devices."""

    name = "neuron"
    owns_terminal = False

    @property
    def blind_spots(self) -> str:
        """What it cannot see."""
        if os.environ.get("PJRT_DEVICE") == "CPU":
            return "PJRT_DEVICE=CPU: no NeuronCore was touched; this tries the neuron backend's own code, at tp 1 alone"
        return "neuron sees these cores with this SDK; another compiler version may compile another program"

    def available(self) -> str | None:
        """None where there are devices and the packages to use them, or where PJRT_DEVICE=CPU asks for neither."""
        return neuron_reason(read_machine(), read_python_packages(), os.environ)

    def open(self, degrees: tuple[int, ...] = ()) -> NeuronSession:
        """Look at the devices.

        Raises:
            UsageError: a degree that Trn1, this instance or its free cores do not have; the message says what would.
        """
        session = NeuronSession(read_machine() if on_neuron(os.environ) else Machine())
        for tp in degrees:
            session.environment(tp)
        return session


class NeuronSession:
    """Starts jobs on the first cores that are free."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._running: list[RunningOnCores] = []

    def environment(self, tp: int) -> dict[str, str]:
        """That of a job of `tp` ranks on the first cores that are free.

        Raises:
            UsageError: there are none, or the user's environment contradicts a verification.
        """
        check_block(0, tp, len(self.machine.cores) or TRN1_CORES)
        first = free_block(self.machine, os.environ.get("NEURON_RT_VISIBLE_CORES", ""), tp)
        highest = max(self.machine.cores, default=TRN1_CORES - 1)  # a container's cores may not begin at 0
        return neuron_environment(os.environ, first_core=first, degree=tp, cores=highest + 1)

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningOnCores:
        """Start `tp` processes on the job file, each with a core of its own.

        Raises:
            UsageError: as `environment` does, if it changed since the session was opened.
        """
        running = TorchrunRanks.start(
            RANK_MODULE,
            str(job),
            size=tp,
            environment=self.environment(tp),
            work_dir=job.parent,
            log_dir=log_dir,
            timeout=timeout,
            start_timeout=START_SECONDS,
        )
        self._running.append(RunningOnCores(running))
        return self._running[-1]

    def __enter__(self) -> NeuronSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for running in self._running:
            running.stop()


class RunningOnCores:
    """A run whose ending is told with what its ranks' logs say about Neuron."""

    def __init__(self, running: TorchrunRanks) -> None:
        self._running = running

    def poll(self) -> LaunchOutcome | None:
        """How it ended, or None."""
        outcome = self._running.poll()
        return outcome and with_advice(outcome, self._running.record.log_dir)

    def stop(self) -> LaunchOutcome:
        """End it now."""
        return self._running.stop()


def free_block(machine: Machine, visible: str, degree: int) -> int:
    """The first core of the first aligned block of `degree` cores that may be used and that nobody holds.

    Args:
        machine: its cores and who holds them; without any device, a whole trn1.32xlarge is assumed.
        visible: NEURON_RT_VISIBLE_CORES as the user set it, "" for all.
        degree: how many cores.

    Raises:
        UsageError: there is no such block; the message says whether it is held, and by whom.
    """
    cores: Collection[int] = machine.cores or range(TRN1_CORES)
    allowed = set(cores) & set(visible_cores(visible)) if visible.strip() else set(cores)
    blocks = [range(start, start + degree) for start in range(0, max(cores) + 1, degree)]
    possible = [block for block in blocks if allowed.issuperset(block)]
    if not possible:
        raise UsageError(
            f"tp {degree} needs {degree} NeuronCores from a multiple of {degree} on; NEURON_RT_VISIBLE_CORES is "
            f"{visible!r} on a machine with cores {core_range(min(cores), len(cores))}."
        )
    for block in possible:
        if not machine.busy.keys() & set(block):
            return block.start
    core, holders = next((core, machine.busy[core]) for core in possible[0] if core in machine.busy)
    raise UsageError(
        f"every block of {degree} NeuronCores has one in use: core {core} is held by process {holders[0].pid} "
        f"({holders[0].command}); end it, or wait."
    )


def with_advice(outcome: LaunchOutcome, log_dir: Path) -> LaunchOutcome:
    """The outcome, with what the logs say about Neuron at the end of its message."""
    if outcome.ok or outcome.kind == "stopped":
        return outcome
    ranks = sorted(range(outcome.size), key=lambda rank: (rank != outcome.failed_rank, rank))
    found = advice({rank: read_log(rank_log(log_dir, rank)) for rank in ranks}, hung=outcome.kind != "crash")
    return replace(outcome, message=f"{outcome.message}; {found}") if found else outcome
