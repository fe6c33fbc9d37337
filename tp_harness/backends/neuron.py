"""Ranks as processes under torchrun, one per NeuronCore; one program for all, its collectives over NeuronLink.

Every degree gets new processes: the Neuron runtime has one world size per process, reads its environment once, and
holds its cores until the process ends. This process never imports torch_xla.

With PJRT_DEVICE=CPU in the user's environment the same code runs without a device, to try it. Every process is then
a world of its own, and at tp > 1 its ranks raise an error.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..launch import LaunchOutcome
from ..launch.outcome import rank_log
from ..launch.torchrun import TorchrunRanks
from ..neuron.availability import neuron_reason
from ..neuron.core_allocation import job_environment
from ..neuron.devices import Machine, on_neuron, read_machine
from ..neuron.log_patterns import advice, read_log
from ..neuron.sdk_packages import read_python_packages

RANK_MODULE = "tp_harness.backends.neuron_rank"
START_SECONDS = 300.0  # 32 processes that import torch_xla


class NeuronBackend:
    """The default where there are Neuron devices."""

    name = "neuron"
    owns_terminal = False
    process_group = True
    weight_copies = 0

    @property
    def blind_spots(self) -> str:
        """The mistakes that it cannot see, one sentence."""
        if os.environ.get("PJRT_DEVICE") == "CPU":
            return "PJRT_DEVICE=CPU: no NeuronCore was touched; this tries the neuron backend's own code, at tp 1 alone"
        return "neuron sees these cores with this SDK; another compiler version may compile another program"

    def available(self) -> str | None:
        """None where there are devices and the packages to use them, or where PJRT_DEVICE=CPU needs neither."""
        return neuron_reason(read_machine(), read_python_packages(), os.environ)

    def open(self, degrees: tuple[int, ...] = ()) -> NeuronSession:
        """Read which devices there are, and check that every degree (ranks) has cores.

        Raises:
            UsageError: a degree that Trn1, this instance or its free cores cannot run; the message says what can.
        """
        session = NeuronSession(read_machine() if on_neuron(os.environ) else Machine())
        for tp in degrees:
            session.environment(tp)
        return session


class NeuronSession:
    """Starts jobs on the first cores that are free."""

    starts_anew = True

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._running: list[RunningOnCores] = []

    def environment(self, tp: int) -> dict[str, str]:
        """The environment variables of a job of `tp` ranks on the first cores that are free.

        Raises:
            UsageError: too few cores are free, or a variable of the user contradicts a verification.
        """
        return job_environment(os.environ, self.machine, tp)

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningOnCores:
        """Start `tp` processes on the job file, each on its own core, each step within `timeout` seconds.

        Raises:
            UsageError: as `environment`, where devices or variables changed since the session was opened.
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
    """A run whose outcome also holds what its ranks' logs say about Neuron."""

    def __init__(self, running: TorchrunRanks) -> None:
        self._running = running

    def poll(self) -> LaunchOutcome | None:
        """How it ended, or None while it runs."""
        outcome = self._running.poll()
        return outcome and with_advice(outcome, self._running.record.log_dir)

    def stop(self) -> LaunchOutcome:
        """End every rank now; returns how the run ended."""
        return self._running.stop()


def with_advice(outcome: LaunchOutcome, log_dir: Path) -> LaunchOutcome:
    """The outcome of a failed run, its message followed by advice on Neuron's errors in the ranks' logs."""
    if outcome.ok or outcome.kind == "stopped":
        return outcome
    ranks = sorted(range(outcome.size), key=lambda rank: (rank != outcome.failed_rank, rank))
    found = advice({rank: read_log(rank_log(log_dir, rank)) for rank in ranks}, hung=outcome.kind != "crash")
    return replace(outcome, message=f"{outcome.message}; {found}") if found else outcome
