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

from .outcome import Death, Report, RunRecord, explain, rank_log, report_path
from .process import Gate, adopt_orphans, fork_child, kill_family
from .stacks import collect_stacks, size_of


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
        """Of the process group: longer than ours, which is the one that should speak."""
        return None if self.timeout is None else timedelta(seconds=self.timeout + self.start_timeout)


class Attempt:
    """One start of the agent and its ranks.

    Every process of the attempt holds the write end of the status pipe: its end of file means that all are
    gone.
    """

    def __init__(self, request: Request, entry: Callable[[str, int, int], None]) -> None:
        self.record = RunRecord(
            size=request.size,
            log_dir=request.log_dir,
            timeout=request.timeout,
            start_timeout=request.start_timeout,
        )
        self.connected_at: float | None = None
        self._step_at = 0.0  # when the last step that all have begun was
        self._request = request
        # Always a new folder: a store file left by a run that was killed would confuse this one.
        self._folder = Path(tempfile.mkdtemp(prefix="launch-", dir=request.work_dir))
        self._unread = b""
        self._open = True  # the status pipe has writers
        self._over = False  # the agent has reported its result, and its ranks have ended
        self._status, status_fd = os.pipe()
        self._start_gate, self._end_gate = Gate(), Gate()
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
        start_end = time.monotonic() + self._request.start_timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            selector.register(stop, selectors.EVENT_READ)
            while self._open and not self._over and self.record.ending == "ended":
                end = self._end_time(start_end)
                left = None if end is None else end - time.monotonic()
                ready = {key.fd for key, _ in selector.select(left)}
                if self._status in ready:
                    self._read_events()
                elif stop.fileno() in ready:  # nothing but its end can arrive
                    self.record.ending = "stopped"
                elif end is not None and time.monotonic() >= end:
                    self.record.ending = "timeout" if self.record.started else "start timeout"
        self._finish()

    def _end_time(self, start_end: float) -> float | None:
        if self.connected_at is None:
            return start_end
        return None if self._request.timeout is None else self._step_at + self._request.timeout

    def _read_events(self) -> None:
        data = os.read(self._status, 65536)
        self._open = bool(data)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._note(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        record = self.record
        if record.ending != "ended" and event["event"] != "result":
            return  # what happens while we already end it changes nothing; above all it opens no gate
        match event["event"]:
            case "alive":
                record.pids[event["rank"]] = event["pid"]
            case "connected":
                record.connected.add(event["rank"])
                if record.started:
                    self.connected_at = self._step_at = time.monotonic()
                    self._start_gate.open(record.size)
            case "step":
                common = record.common_steps
                record.steps.setdefault(event["rank"], []).append(event["name"])
                if record.common_steps > common:
                    self._step_at = time.monotonic()
            case "returned":
                record.returned.add(event["rank"])
                if len(record.returned) == record.size:
                    self._end_gate.open(record.size)
            case "died":
                record.deaths[event["rank"]] = Death(alive_ns=event["alive_ns"], exit_code=event["exit_code"])
            case "result":
                record.succeeded, record.agent_error = event["succeeded"], event.get("error")
                self._over = True

    def _finish(self) -> None:
        if self.record.ending in ("timeout", "start timeout"):
            self._show_stacks()
        kill_family(self._agent, self._all_gone)  # after success too: an entry may have left children
        os.close(self._status)
        self._start_gate.close()
        self._end_gate.close()
        for rank in range(self.record.size):
            path = report_path(self._folder, rank)
            if path.exists():
                self.record.reports[rank] = Report(**json.loads(path.read_text()))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _show_stacks(self) -> None:
        pids = {rank: pid for rank, pid in self.record.pids.items() if rank not in self.record.returned}
        self.record.stacks = collect_stacks(pids, {rank: rank_log(self.record.log_dir, rank) for rank in pids})

    def _all_gone(self, seconds: float) -> bool:
        if not self._open:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if selector.select(seconds):
                self._read_events()
        return not self._open


def run_warden(connection: socket.socket, entry: Callable[[str, int, int], None]) -> None:
    """Be the warden of one run: read the request, run it, answer with its outcome.

    Args:
        connection: to the main process; closing it there stops the run.
        entry: what the ranks call.
    """
    adopt_orphans()
    begin = time.monotonic()
    line = _read_line(connection)
    if not line.endswith(b"\n"):
        return  # stopped before it was asked for in full
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
    outcome = explain(
        attempt.record,
        retries=retries,
        start_seconds=round((attempt.connected_at or time.monotonic()) - begin, 4),
        seconds=round(time.monotonic() - begin, 4),
    )
    with suppress(BrokenPipeError, ConnectionResetError):  # perhaps nobody waits for it
        connection.sendall(json.dumps(outcome.to_json()).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.readline()
