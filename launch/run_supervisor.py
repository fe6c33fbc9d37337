"""The process that watches one run: it starts the agent, keeps the time, starts anew once, and cleans up."""

import json
import os
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from .outcome import RunFacts, outcome_of
from .process import Latch, adopt_orphans, fork_child, kill_family
from .progress import Progress
from .stacks import size_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `RankLauncher.start` asks for; see there."""

    argument: str
    size: int
    work_dir: Path
    log_dir: Path
    timeout: float | None
    start_timeout: float

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; `from_json` reads them back."""
        return asdict(self) | {"work_dir": str(self.work_dir), "log_dir": str(self.log_dir)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Request":
        """The request that `to_json` described."""
        return cls(**{**data, "work_dir": Path(data["work_dir"]), "log_dir": Path(data["log_dir"])})

    @property
    def group_timeout(self) -> timedelta | None:
        """The process group's timeout: longer than the run's, which is the one to be reported; None for no timeout."""
        return None if self.timeout is None else timedelta(seconds=self.timeout + self.start_timeout)


class Attempt:
    """One start of the agent and its ranks.

    Every process of the attempt holds the write end of the status pipe: its end of file means that all are
    gone.
    """

    def __init__(self, request: Request, entry: Callable[[str, int, int], None]) -> None:
        self.record = RunFacts(
            size=request.size,
            log_dir=request.log_dir,
            timeout=request.timeout,
            start_timeout=request.start_timeout,
        )
        self._request = request
        # Always a new folder: a store file left by a run that was killed would confuse this one.
        self._folder = Path(tempfile.mkdtemp(prefix="launch-", dir=request.work_dir))
        self._open = True  # the status pipe has writers
        self._status, status_fd = os.pipe()
        self._start_gate, self._end_gate = Latch(), Latch()
        self.progress = Progress(
            self.record,
            all_connected=lambda: self._start_gate.open(request.size),
            all_returned=lambda: self._end_gate.open(request.size),
        )
        self._agent = fork_child(partial(self._be_agent, entry, os.getpid(), status_fd))
        os.close(status_fd)

    def _be_agent(self, entry: Callable[[str, int, int], None], warden: int, status_fd: int) -> None:
        from .agent import run_agent  # noqa: PLC0415 - imports torch; loaded before the zygote was forked

        os.close(self._status)
        self._start_gate.become_waiter()
        self._end_gate.become_waiter()
        run_agent(
            entry=entry,
            argument=self._request.argument,
            size=self._request.size,
            attempt_dir=self._folder,
            log_dir=self._request.log_dir,
            group_timeout=self._request.group_timeout,
            warden=warden,
            status_fd=status_fd,
            start_gate=self._start_gate,
            end_gate=self._end_gate,
        )

    def watch(self, stop: socket.socket) -> None:
        """Follow the attempt to its end, which is one of the `Ending`s; afterwards no process of it is left.

        Args:
            stop: the run is stopped when the other end of this socket is closed.
        """
        begin = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            selector.register(stop, selectors.EVENT_READ)
            while self._open and not self.progress.over and self.record.ending == "ended":
                end = self.progress.deadline(begin)
                left = None if end is None else end - time.monotonic()
                ready = {key.fd for key, _ in selector.select(left)}
                if self._status in ready:
                    self._read_events()
                elif stop.fileno() in ready:  # readable only when the other end was closed
                    self.record.ending = "stopped"
                elif end is not None and time.monotonic() >= end:
                    self.progress.expire()
        self._finish()

    def _read_events(self) -> None:
        data = os.read(self._status, 65536)
        self._open = bool(data)
        self.progress.read(data)

    def _finish(self) -> None:
        kill_family(self._agent, self._all_gone)  # after success too: an entry may have left children
        os.close(self._status)
        self._start_gate.close()
        self._end_gate.close()
        self.progress.read_reports(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _all_gone(self, seconds: float) -> bool:
        if not self._open:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if selector.select(seconds):
                self._read_events()
        return not self._open


def run_warden(connection: socket.socket, entry: Callable[[str, int, int], None]) -> None:
    """Run as the warden of one run: read the request, run it, answer with its outcome.

    Args:
        connection: to the main process; closing it there stops the run.
        entry: what the ranks call.
    """
    adopt_orphans()
    begin = time.monotonic()
    line = _read_line(connection)
    if not line.endswith(b"\n"):
        return  # stopped before the whole request arrived
    request = Request.from_json(json.loads(line))
    retries = 0
    attempt = Attempt(request, entry)
    attempt.watch(connection)
    if not attempt.record.started and attempt.record.ending != "stopped":
        retries = 1
        attempt = Attempt(request, entry)
        attempt.watch(connection)
    agent_log = request.log_dir / "agent.log"
    if not size_of(agent_log):
        agent_log.unlink(missing_ok=True)
    outcome = outcome_of(
        attempt.record,
        retries=retries,
        start_seconds=round((attempt.progress.connected_at or time.monotonic()) - begin, 4),
        seconds=round(time.monotonic() - begin, 4),
    )
    with suppress(BrokenPipeError, ConnectionResetError):  # the main process may have gone
        connection.sendall(json.dumps(outcome.to_json()).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.readline()
