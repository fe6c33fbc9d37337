"""The main process's side of the launcher: fork a zygote once, then ask it for runs."""

import gc
import importlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from .outcome import Kind, LaunchOutcome
from .process import detach_from_parent, die_with_parent, fork_child
from .run_supervisor import Request, run_warden

_STOP_SECONDS = 15.0


class RunningRanks:
    """A run that `RankLauncher.start` began. Usable as a context manager that stops it."""

    def __init__(self, connection: socket.socket, size: int) -> None:
        self._connection = connection
        self._size = size
        self._received = b""
        self._outcome: LaunchOutcome | None = None

    @property
    def ended(self) -> bool:
        """Whether the outcome has been received."""
        return self._outcome is not None

    def wait(self) -> LaunchOutcome:
        """Block until all ranks have ended or their time is over; no process of the run is left then.

        Returns:
            How it ended. Waiting again returns the same.

        Raises:
            KeyboardInterrupt: Ctrl-C; the ranks go on until `stop` or `RankLauncher.close` is called.
        """
        while (outcome := self._receive(None)) is None:
            pass
        return outcome

    def poll(self) -> LaunchOutcome | None:
        """How the run ended, or None if it goes on; does not block."""
        while self._outcome is None:
            try:
                self._receive(0)
            except BlockingIOError:
                return None
        return self._outcome

    def stop(self) -> LaunchOutcome:
        """Kill all processes of the run and return when they are gone; does nothing if it has ended.

        Returns:
            An outcome of kind "stopped", or the outcome of a run that had ended before.
        """
        if self._outcome is None:
            with suppress(OSError):  # the other end may have gone already
                self._connection.shutdown(socket.SHUT_WR)
            try:
                while self._receive(_STOP_SECONDS) is None:
                    pass
            except TimeoutError:
                self._fail("stopped", "the ranks were stopped, but some could not be killed in time")
        return self.wait()

    def __enter__(self) -> "RunningRanks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _receive(self, timeout: float | None) -> LaunchOutcome | None:
        if self._outcome is None:
            self._connection.settimeout(timeout)
            try:
                data = self._connection.recv(65536)
            except ConnectionResetError:
                data = b""
            self._received += data
            if self._received.endswith(b"\n"):
                self._end(LaunchOutcome.from_json(json.loads(self._received)))
            elif not data:
                self._fail("crash", "the launcher's own process ended unexpectedly, and the ranks with it")
        return self._outcome

    def _fail(self, kind: Kind, message: str) -> None:
        self._end(LaunchOutcome(ok=False, kind=kind, message=message, size=self._size))

    def _end(self, outcome: LaunchOutcome) -> None:
        self._outcome = outcome
        self._connection.close()


class RankLauncher:
    """Starts runs of gloo ranks, each in about the time of N forks. Made by `RankLauncher.fork`.

    All processes it starts end with it: on `close`, at the end of a `with` block, and when the main process
    ends in whatever way (on Linux, SIGKILL included).
    """

    def __init__(self, zygote: int, control: socket.socket) -> None:
        self._zygote = zygote
        self._control = control
        self._runs: list[RunningRanks] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @classmethod
    def fork(cls, entry: Callable[[str, int, int], None]) -> "RankLauncher":
        """Fork the process from which all ranks will descend.

        Call it early: whatever this process has loaded is shared with the ranks, and a fork is safest before
        other threads exist. Imports torch if it was not.

        Args:
            entry: called in every rank as `entry(argument, rank, size)`, inside an initialised default gloo
                group, with one thread. Its return value is ignored; its exceptions become a `LaunchOutcome`.

        Raises:
            OSError: the system refused to fork.
        """
        importlib.import_module("tp_harness.launch.agent")
        ours, theirs = socket.socketpair()
        # The kernel sends the death signal when the forking thread ends, which may be before the process does.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        zygote = fork_child(partial(_be_zygote, ours, theirs, parent, entry))
        theirs.close()
        return cls(zygote, ours)

    def start(
        self,
        argument: str,
        *,
        size: int,
        work_dir: Path,
        log_dir: Path,
        timeout: float | None,
        start_timeout: float = 60.0,
    ) -> RunningRanks:
        """Start `size` ranks and return without waiting for them. Several runs may go on at a time.

        Args:
            argument: passed to the entry function as it is.
            size: number of ranks, at least 1.
            work_dir: folder for files that live as long as the run; made if missing, left as it was.
            log_dir: folder for `rank{r}.log`, standard output and error of rank r; made if missing. Logs of
                an earlier run in it are removed. `agent.log` appears if the agent had something to say.
            timeout: seconds, from when all ranks are connected or have begun another step (`begin_step`), in
                which they must return or begin the next; None for ever.
            start_timeout: seconds in which all ranks must be connected; if they are not, or if one dies
                before, everything is started once more. The entry function has not run by then.

        Raises:
            ValueError: size, timeout or start_timeout is not positive.
            OSError: a folder cannot be made.
            RuntimeError: the launcher was closed, or its process has gone.
        """
        if size < 1:
            raise ValueError(f"size is {size}; at least one rank is needed")
        if (timeout is not None and timeout <= 0) or start_timeout <= 0:
            raise ValueError(f"timeout={timeout} and start_timeout={start_timeout} must be positive (seconds)")
        request = Request(
            argument=argument,
            size=size,
            work_dir=work_dir.absolute(),
            log_dir=log_dir.absolute(),
            timeout=timeout,
            start_timeout=start_timeout,
        )
        request.work_dir.mkdir(parents=True, exist_ok=True)
        request.log_dir.mkdir(parents=True, exist_ok=True)
        for old_log in (request.log_dir / "agent.log", *request.log_dir.glob("rank*.log")):
            old_log.unlink(missing_ok=True)
        return self._send(request)

    def _send(self, request: Request) -> RunningRanks:
        ours, theirs = socket.socketpair()
        running = RunningRanks(ours, request.size)
        with self._lock, theirs:
            self._runs = [run for run in self._runs if not run.ended] + [running]  # known before it exists
            try:
                socket.send_fds(self._control, [b"r"], [theirs.fileno()])
                ours.sendall(json.dumps(request.to_json()).encode() + b"\n")
            except OSError as error:
                raise RuntimeError("the launcher was closed, or its process was killed") from error
        return running

    def close(self) -> None:
        """Kill all ranks of all runs, end the zygote and wait for it; may be called again."""
        if os.getpid() != self._owner:  # a fork of the main process owns none of this
            self._control.close()
            return
        while self._runs:
            self._runs[-1].stop()
            self._runs.pop()
        if self._control.fileno() == -1:
            return
        self._control.close()
        with suppress(ProcessLookupError, ChildProcessError):  # a program may have waited for all of its children
            os.kill(self._zygote, signal.SIGKILL)  # its runs have ended
            os.waitpid(self._zygote, 0)

    def __enter__(self) -> "RankLauncher":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _be_zygote(
    main_end: socket.socket,
    control: socket.socket,
    parent: int | None,
    entry: Callable[[str, int, int], None],
) -> None:
    main_end.close()
    if parent is not None:
        die_with_parent(parent)
    detach_from_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens are reaped by the kernel
    gc.freeze()  # a collection in a rank would write to every inherited object: 36 MB copied per rank, and 2 s at 32
    zygote = os.getpid()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not request:
            return
        connection = socket.socket(fileno=descriptors[0])
        fork_child(partial(_be_warden, zygote, control, connection, entry))
        connection.close()


def _be_warden(
    zygote: int,
    control: socket.socket,
    connection: socket.socket,
    entry: Callable[[str, int, int], None],
) -> None:
    control.close()
    die_with_parent(zygote)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run_warden(connection, entry)
