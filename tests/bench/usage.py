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
        memory: sample PSS too, which costs time of its own: do not compare the times of such a run.

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
    """Note every living process's CPU time so far; returns the sum of PSS."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                cpu[process.pid, process.create_time()] = times.user + times.system
                total += process.memory_full_info().pss if memory else 0
    return total
