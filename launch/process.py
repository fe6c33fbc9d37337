"""Forking, dying and killing: the operating-system part of the launcher.

Not covered: Windows (no fork). Off Linux `die_with_parent` and `adopt_orphans` ask for nothing; there the end
of the main process is noticed only through its closed socket. A grandchild that makes its own session is not
killed.
"""

import ctypes
import faulthandler
import logging
import os
import selectors
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
ENDED = ("Z", "X", "gone")  # the states, as `process_state` gives them, of a process that has ended
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)
_LINUX = sys.platform.startswith("linux")
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None  # loaded here, because a forked child should only call it


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the thread that forked it ends.

    Args:
        parent: process id of the expected parent. When it has ended already, this process ends at once, because the
            kernel acts only on deaths after the request.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends, so that they can be reaped here."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def thread_count() -> int | None:
    """Number of threads of this process, native ones included; None where the system does not tell."""
    return len(os.listdir("/proc/self/task")) if _LINUX else None


def process_state(pid: int) -> str:
    """The kernel's letter for a process's state, such as "R", "T" (stopped), "Z" (not reaped); "gone"; "" off Linux."""
    if not _LINUX:
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def fork_child(run: Callable[[], None]) -> int:
    """Fork a child that calls `run` and then ends without running anything that belongs to its parent.

    The child exits with 0, or with 1 and a traceback on standard error if `run` raised.

    Args:
        run: what the child does.

    Returns:
        The child's process id.

    Raises:
        OSError: the system refused to fork.
    """
    # A signal must not run one of the parent's handlers in the child, nor raise before the child's try.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    with warnings.catch_warnings():
        # Python 3.12 warns of any native thread, also of OpenBLAS's, which handles forks itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return child
    status = 1
    try:
        default_signals()
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def detach_from_parent() -> None:
    """Leave the parent's session, timers and standard input and output; standard error stays.

    The `sys.std*` objects are replaced, also where logging uses them, because a test runner's substitutes have no
    file descriptor, or a wrong one.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    faulthandler.cancel_dump_traceback_later()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.stream = sys.stderr  # without setStream, which would flush the parent's text


def default_signals() -> None:
    """Restore the default action of the signals that end a process, and unblock them."""
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_ENDING_SIGNALS, signal.SIGUSR1, signal.SIGUSR2))


def redirect_output(path: str) -> None:
    """Append standard output and standard error of this process, C code included, to the file `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class Latch:
    """Blocks processes until the one that made it lets a number of them pass."""

    def __init__(self) -> None:
        self._exit, self._entrance = os.pipe()

    def open(self, count: int) -> None:
        """Let `count` processes pass; each one only once."""
        os.write(self._entrance, bytes(count))

    def become_waiter(self) -> None:
        """Let this forked child, and its children, only `wait` from now on."""
        os.close(self._entrance)

    def wait(self, seconds: float | None = None) -> None:
        """Block until the latch is open, or for so many seconds (None: for ever).

        Raises:
            EOFError: every process that could open it has ended.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._exit, selectors.EVENT_READ)
            if selector.select(seconds) and not os.read(self._exit, 1):
                raise EOFError("the process that could open the gate has ended")

    def close(self) -> None:
        """Close the file descriptors."""
        os.close(self._exit)
        os.close(self._entrance)


def kill_family(leader: int, is_gone: Callable[[float], bool], patience: float = 5.0) -> None:
    """SIGKILL the process group of `leader` until `is_gone` returns True, and reap this process's children.

    Args:
        leader: process id of a child of ours that leads a process group, or is about to.
        is_gone: waits up to the given number of seconds for all members to end; True when they have.
        patience: seconds after which to give up on processes that the kernel does not kill.
    """
    end = time.monotonic() + patience
    while True:
        # No other process can have the id: the leader is our child and not yet reaped.
        for kill in (os.killpg, os.kill):  # the second for a leader that has not become one yet
            with suppress(ProcessLookupError, PermissionError):  # no such group; macOS: only a zombie is left
                kill(leader, signal.SIGKILL)
        if is_gone(0.05) or time.monotonic() > end:
            break
    reap_all(end)


def reap_all(end: float) -> None:
    """Wait for every child, adopted ones included, until the monotonic time `end` (seconds)."""
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            if time.monotonic() > end:
                return
            time.sleep(0.002)


def signal_name(number: int) -> str:
    """Name of a signal, such as "SIGKILL"; "signal 99" for an unknown number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
