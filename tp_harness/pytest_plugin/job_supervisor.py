"""Stands between a test and the processes of its job: `python -m tp_harness.pytest_plugin.job_supervisor COMMAND...`.

Ends with the command's code, but only when no process of its family is left. Its standard input is a pipe from the
worker: when that ends, because the test is over or the worker was killed, the family is ended. It holds the
descriptors of the cores' locks meanwhile, so no other test gets a core that a dying rank may still have open.

Not covered: a supervisor that is killed by SIGKILL; off Linux, members of the family that left its process group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..launch.process import adopt_orphans, reap_all

GRACE_SECONDS = 3.0  # for torchrun to end its ranks after SIGTERM
POLL_SECONDS = 0.05


def main() -> None:
    """Supervise the command in sys.argv."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: os.dup2(os.open(os.devnull, os.O_RDONLY), 0))  # reads as an end
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not _input_ended(POLL_SECONDS):
        pass
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    code = child.poll()
    end_family(child.pid)
    sys.exit(1 if code is None else code if code >= 0 else 128 - code)


def _input_ended(seconds: float) -> bool:
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and not os.read(0, 1)


def end_family(leader: int) -> None:
    """SIGKILL every child, and those that become ours when their parent ends, until there is none.

    Args:
        leader: pid of the leader of a process group to end as well, for systems that do not list children.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    while children := _children():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        reap_all(time.monotonic() + POLL_SECONDS)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    main()
