"""Other threads of this process: whether they ran meanwhile, as Linux counts it."""

from __future__ import annotations

import threading
from pathlib import Path

# Threads of these run nothing that a module gave them: this harness, what shows progress, test runners, debuggers.
OWN_BUSINESS = ("tp_harness", "rich", "tqdm", "execnet", "xdist", "pytest_timeout", "debugpy", "pydevd", "ipykernel")


def turns() -> dict[threading.Thread, int]:
    """How often each other thread has given up the processor; one that sleeps all the time, never.

    The main thread is left out, as are threads with business of their own. Empty where the system does not count.
    """
    left_out = (threading.main_thread(), threading.current_thread())
    counts = {}
    for thread in threading.enumerate():
        if thread in left_out or _package(thread) in OWN_BUSINESS:
            continue
        try:
            counts[thread] = _switches(Path(f"/proc/self/task/{thread.native_id}/status").read_text())
        except OSError:  # it has ended, or this is no Linux
            continue
    return counts


def _switches(status: str) -> int:
    lines = (line.split() for line in status.splitlines() if "ctxt_switches" in line)
    return sum(int(count) for _, count in lines)


def _package(thread: threading.Thread) -> str:
    """The package of the function that a thread was started with, or of the thread's class."""
    function = getattr(thread, "_target", None) or type(thread)  # `sys._current_frames` can hang until Python 3.12
    return str(getattr(function, "__module__", "")).partition(".")[0]
