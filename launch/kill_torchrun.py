"""Make torchrun end soon after its ranks: a process that outlives them kills it if it does not end by itself.

With the c10d rendezvous torchrun asks host 0's store ten times a second, also about ranks that have ended. When the
connection is cut, it waits in C++ until TCP times out after a quarter of an hour, and handles no signal meanwhile.

Not covered: systems without pidfd (other than Linux).
"""

from __future__ import annotations

import os
import subprocess
import sys

PATIENCE = 3.0  # seconds for torchrun to end by itself; it needs a tenth of one
_USHER = """
import select, signal, sys
fd = int(sys.argv[1])
if not select.select([fd], [], [], float(sys.argv[2]))[0]:
    signal.pidfd_send_signal(fd, signal.SIGKILL)
"""


def end_parent_soon(patience: float = PATIENCE) -> None:
    """Have this process's parent killed if it has not ended within `patience` seconds; returns at once.

    For a rank of torchrun that is about to end, when torchrun may not notice.
    """
    if not hasattr(os, "pidfd_open"):
        return
    fd = os.pidfd_open(os.getppid())  # not the process id, which another process may have by then
    try:
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _USHER, str(fd), str(patience)],
            pass_fds=(fd,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(fd)
