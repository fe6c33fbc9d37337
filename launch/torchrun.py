"""Ranks that are new programs under torchrun, for devices that read the environment when a process starts.

    running = TorchrunRanks.start("package.rank_module", "text", size=8, environment=env, work_dir=w, log_dir=l)
    outcome = running.poll()  # None while it goes on; then a LaunchOutcome, as `RankLauncher` gives it

Forked ranks would not do: glibc, OpenMP and the Neuron runtime have read their variables by then, and a device's
runtime has one world size per process. So every run is a fresh tree:

    main -> torchrun (`torchrun_agent`: torch.distributed.run, told to meet itself without a port) -> ranks

Each dies with its parent. Ranks tell their progress through a FIFO. Nothing here imports torch.

Not covered: systems other than Linux, where a rank may outlive a torchrun that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .outcome import LaunchOutcome, RunFacts, outcome_of
from .process import ENDED, process_state
from .progress import Progress

AGENT = "tp_harness.launch.torchrun_agent"
_PATIENCE = 10.0  # seconds for killed processes to be gone
_REAPING_SECONDS = 2.0  # for torchrun to notice that its ranks are gone


class TorchrunRanks:
    """One run, followed whenever it is polled. Made by `start`."""

    def __init__(self, record: RunFacts, folder: Path) -> None:
        self.record = record
        self._progress = Progress(record)
        self._folder = folder
        self._status = folder / "status"
        os.mkfifo(self._status)
        # Opened to read and write, so that it neither waits for the first rank nor ends with the last one.
        self._status_fd = os.open(self._status, os.O_RDWR | os.O_NONBLOCK)
        self._begin = time.monotonic()
        self._outcome: LaunchOutcome | None = None
        self._agent: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        module: str,
        argument: str,
        *,
        size: int,
        environment: Mapping[str, str],
        work_dir: Path,
        log_dir: Path,
        timeout: float,
        start_timeout: float = 120.0,
    ) -> TorchrunRanks:
        """Start `size` ranks and return without waiting for them.

        Args:
            module: run as a program on every rank; calls `torchrun_rank.be_rank(entry)`.
            argument: what the entry function is given.
            size: number of ranks.
            environment: all variables of the ranks.
            work_dir: an existing folder for files that live as long as the run.
            log_dir: folder for `rank{r}.log` and torchrun's `agent.log`; made if missing.
            timeout: seconds in which ranks must return, or begin another step together (`begin_step`).
            start_timeout: seconds in which all must be connected.

        Raises:
            OSError: a folder cannot be made, or the process cannot be started.
        """
        log_dir = log_dir.absolute()
        log_dir.mkdir(parents=True, exist_ok=True)
        for old_log in (log_dir / "agent.log", *log_dir.glob("rank*.log")):
            old_log.unlink(missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="launch-", dir=work_dir.absolute()))
        record = RunFacts(size=size, log_dir=log_dir, timeout=timeout, start_timeout=start_timeout)
        running = cls(record, folder)
        try:
            running._start(module, argument, environment)
        except BaseException:
            running.stop()
            raise
        return running

    def _start(self, module: str, argument: str, environment: Mapping[str, str]) -> None:
        record = self.record
        task = {
            "module": module,
            "argument": argument,
            "size": record.size,
            "attempt_dir": str(self._folder),
            "log_dir": str(record.log_dir),
            "group_seconds": (record.timeout or 0) + record.start_timeout,
            "status": str(self._status),
            "parent": os.getpid(),
        }
        with (record.log_dir / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", AGENT, json.dumps(task)],
                env={**environment, "TMPDIR": str(self._folder)},  # so that torch's files go with the folder
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the main process handles Ctrl-C
            )

    def poll(self) -> LaunchOutcome | None:
        """How the run ended, or None while it goes on; does not block."""
        if self._outcome is None and self._agent is not None:
            ended = self._agent.poll() is not None
            self._read_events()  # after the poll, so that none of an ended run is missed
            if ended:
                self._end()
            elif (end := self._progress.deadline(self._begin)) is not None and time.monotonic() > end:
                self._progress.expire()
                self._end()
        return self._outcome

    def stop(self) -> LaunchOutcome:
        """Kill all processes of the run; the outcome is of kind "stopped", or that of a run that had ended before."""
        if self._outcome is None:
            self.record.ending = "stopped"
            self._end()
        assert self._outcome is not None
        return self._outcome

    def _read_events(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._status_fd, 65536):
                self._progress.read(data)

    def _end(self) -> None:
        self._kill()
        self._read_events()
        os.close(self._status_fd)
        self._progress.read_reports(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        now = time.monotonic()
        start_seconds = (self._progress.connected_at or now) - self._begin
        self._outcome = outcome_of(
            self.record, retries=0, start_seconds=round(start_seconds, 4), seconds=round(now - self._begin, 4)
        )

    def _kill(self) -> None:
        """Kill the ranks, and torchrun if it does not then reap them and end; wait until all are gone."""
        self._kill_ranks()
        if self._agent is not None:
            with suppress(subprocess.TimeoutExpired):
                self._agent.wait(_REAPING_SECONDS if self.record.pids else 0)
            self._agent.kill()
            self._agent.wait()
        end = time.monotonic() + _PATIENCE
        while self._kill_ranks() and time.monotonic() < end:
            time.sleep(0.01)

    def _kill_ranks(self) -> bool:
        """SIGKILL every rank's process, stopped ones included; True if there was any, or one that is still ending."""
        there = {pid: _environment(pid) for pid in self.record.pids.values() if process_state(pid) not in ENDED}
        # A later process with the same id has another environment.
        ours = [pid for pid, environment in there.items() if f"TMPDIR={self._folder}\0".encode() in environment]
        for pid in ours:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(ours) or b"" in there.values()


def _environment(pid: int) -> bytes:
    """A process's environment; empty once its memory is freed, which is before it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:
        return b"another user's"
    except OSError:
        return b""
