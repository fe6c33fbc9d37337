"""Wall time, CPU time and memory of a command with all its descendants, sampled while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

INTERVAL = 0.1  # seconds between samples; a process's last interval of CPU time is not seen


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of one command: seconds of wall and CPU time, and the largest sum of PSS in bytes seen at one moment."""

    wall: float
    cpu: float
    peak_pss: int


def run(command: Sequence[str], *, memory: bool = False) -> Usage:
    """Run a command to its end.

    Args:
        command: program and arguments.
        memory: sample PSS too, with every process stopped meanwhile: the times of such a run mean nothing.

    Raises:
        RuntimeError: the command failed; its output is in the message.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cpu: dict[tuple[int, float], float] = {}
    peak = 0
    while process.poll() is None:
        peak = max(peak, _sample(process.pid, cpu, memory))
        time.sleep(INTERVAL)
    wall = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{output}")
    return Usage(wall=wall, cpu=sum(cpu.values()), peak_pss=peak)


def _sample(pid: int, cpu: dict[tuple[int, float], float], memory: bool) -> int:
    """Note every living process's CPU time so far; returns the sum of PSS, or 0 if that was not asked for."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu[process.pid, process.create_time()] = times.user + times.system
    return _frozen_pss(family) if memory else 0


def _frozen_pss(family: list[psutil.Process]) -> int:
    """The sum of PSS while nothing runs: a page would else be counted in full before others map it, and again after."""
    total = 0
    try:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    finally:
        for process in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    return total
