"""Other threads of this process: whether they ran meanwhile, as Linux counts it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

# Threads of these run nothing that a module gave them: this harness, what shows progress, test runners, debuggers.
OWN_BUSINESS = ("tp_harness", "rich", "tqdm", "execnet", "xdist", "pytest_timeout", "debugpy", "pydevd", "ipykernel")


def turns() -> dict[threading.Thread, int]:
    """How often each other thread with Python code has given up the processor; one that slept all the time, never.

    The main thread is left out, as are threads with business of their own. Empty where the system does not count.
    """
    frames, left_out = sys._current_frames(), (threading.main_thread(), threading.current_thread())
    counts = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread in left_out or frame is None or _package(frame) in OWN_BUSINESS:
            continue
        try:
            counts[thread] = _switches(Path(f"/proc/self/task/{thread.native_id}/status").read_text())
        except OSError:  # it has ended, or this is no Linux
            continue
    return counts


def _switches(status: str) -> int:
    lines = (line.split() for line in status.splitlines() if "ctxt_switches" in line)
    return sum(int(count) for _, count in lines)


def _package(frame: FrameType) -> str:
    """The package of the function that a thread was started with."""
    root, name = "", ""
    while frame:
        name = str(frame.f_globals.get("__name__"))
        root = root if name == "threading" else name
        frame = frame.f_back  # type: ignore[assignment]
    return root.partition(".")[0]
