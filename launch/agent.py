"""torch's elastic agent, the one behind torchrun, for one machine, without ports and without threads.

Differences from torchrun: ranks are forked functions, the rendezvous needs no server, there are no restarts,
and the first failure is told apart from those it causes. MASTER_PORT is 0: nothing listens there, because the
default group exists already.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from ..libraries.torchelastic_private import OpenAgent, name_host_at_once
from .process import Latch, die_with_parent, redirect_output, thread_count
from .rank import Entry, RankTask, run_rank, tell

MONITOR_SECONDS = 0.02
_SETTLE_SECONDS = 0.25
_HOST = "127.0.0.1"
# What an outer torchrun or a user's shell may have set: servers and watchdog threads in the agent, and ranks
# that connect on first use, out of reach of the start timeout.
_FOREIGN_VARIABLES = (
    "TORCH_GLOO_LAZY_INIT",
    "TORCHELASTIC_ENABLE_FILE_TIMER",
    "TORCHELASTIC_TIMER_FILE",
    "TORCHELASTIC_HEALTH_CHECK_PORT",
)


class SingleNodeRendezvous(RendezvousHandler):
    """A rendezvous of one agent alone, with a store in its own memory."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def get_backend(self) -> str:
        """The name of this rendezvous in torch's events."""
        return "tp-harness"

    def next_rendezvous(self) -> RendezvousInfo:
        """The facts of node 0 of 1, at once."""
        store = dist.HashStore()  # type: ignore[attr-defined]
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_HOST, 0))

    def is_closed(self) -> bool:
        """False: a rendezvous without other nodes is never closed."""
        return False

    def set_closed(self) -> None:
        """Do nothing; see `is_closed`."""

    def num_nodes_waiting(self) -> int:
        """0: there are no other nodes."""
        return 0

    def get_run_id(self) -> str:
        """The run's name, which ranks have in TORCHELASTIC_RUN_ID."""
        return self._run_id

    def shutdown(self) -> bool:
        """True: there is nothing to close."""
        return True


class PlainLogs(LogsSpecs):
    """Leaves both streams to the rank (one file for both: torch's redirects would overwrite each other)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(log_dir=str(folder))
        self._folder = folder

    @property
    def root_log_dir(self) -> str:
        """Folder of torch's error files."""
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The path of each rank's error file; its standard output and error stay as they are."""
        files = {rank: str(self._folder / f"error{rank}.json") for rank in envs}
        for rank, env in envs.items():
            env["TORCHELASTIC_ERROR_FILE"] = files[rank]
        console = dict.fromkeys(envs, "")
        return LogsDest(stdouts=console, stderrs=dict(console), error_files=files)


class WatchfulAgent(OpenAgent):
    """LocalElasticAgent that notes how a rank died before it kills the others, and does so without delay.

    torch's own agent reports any one of the ranks that failed within one interval, waits 30 s for stopped
    ones, and waits for ever for a rank that left early with exit code 0.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, status_fd: int) -> None:
        super().__init__(spec=spec, logs_specs=logs_specs, start_method="fork")
        self._status_fd = status_fd
        self._alive_ns = 0

    def start_workers(self, group: WorkerGroup) -> dict[int, Any]:
        """Start the ranks; returns process ids by local rank.

        Raises:
            RuntimeError: this process has several threads, so that a forked rank could inherit a held lock.
        """
        threads = thread_count()
        if threads not in (None, 1):
            raise RuntimeError(f"the agent has {threads} threads; a rank could inherit a lock one of them holds")
        self._alive_ns = time.monotonic_ns()
        return super().start_workers(group)

    def monitor_workers(self, group: WorkerGroup) -> RunResult:
        """The state of the ranks: running, succeeded or failed; kills all of them once one has failed."""
        now = time.monotonic_ns()
        pids = {worker.global_rank: int(worker.id) for worker in group.workers}
        # No rank ends before torch has seen all of them return, so whatever has ended here has failed.
        codes = _exit_codes(pids)
        if not codes:
            self._alive_ns = now
            result = super().monitor_workers(group)
            codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
            self._tell_deaths(codes)
            return result
        # A killed process closes its sockets before it has ended, so that its peers may end first.
        end = time.monotonic() + _SETTLE_SECONDS
        while len(codes) < len(pids) and time.monotonic() < end:
            time.sleep(MONITOR_SECONDS)
            codes = _exit_codes(pids)
        self._tell_deaths(codes)
        for rank, pid in pids.items():
            if rank not in codes:
                os.kill(pid, signal.SIGKILL)
        return RunResult(state=WorkerState.FAILED)

    def _tell_deaths(self, exit_codes: dict[int, int]) -> None:
        for rank, code in exit_codes.items():
            tell(self._status_fd, event="died", rank=rank, exit_code=code, alive_ns=self._alive_ns)


def run_agent(
    *,
    entry: Entry,
    argument: str,
    size: int,
    attempt_dir: Path,
    log_dir: Path,
    group_timeout: timedelta | None,
    warden: int,
    status_fd: int,
    start_gate: Latch,
    end_gate: Latch,
) -> None:
    """Run the agent process of one attempt: start the ranks, wait for their end, report it to the warden.

    Args:
        warden: process id of the parent. The others are described in `RankTask`.
    """
    os.setsid()
    die_with_parent(warden)
    redirect_output(str(log_dir / "agent.log"))
    _prepare_environment(attempt_dir)
    task = RankTask(
        entry=entry,
        argument=argument,
        size=size,
        attempt_dir=attempt_dir,
        log_dir=log_dir,
        group_timeout=group_timeout,
        agent=os.getpid(),
        status_fd=status_fd,
        start_gate=start_gate,
        end_gate=end_gate,
    )

    def rank_main() -> None:  # a closure: torch expands ${...} in arguments that are strings
        run_rank(task, int(os.environ["RANK"]))

    spec = WorkerSpec(
        role="rank",
        local_world_size=size,
        rdzv_handler=SingleNodeRendezvous(run_id=attempt_dir.name),
        entrypoint=rank_main,
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
    )
    try:
        result = WatchfulAgent(spec, PlainLogs(attempt_dir), status_fd).run()
        tell(status_fd, event="result", succeeded=result.state == WorkerState.SUCCEEDED)
    except Exception as error:
        traceback.print_exc()  # before the warden is told, who then ends this process
        tell(status_fd, event="result", succeeded=False, error=f"{type(error).__name__}: {error}"[:1000])


def _prepare_environment(attempt_dir: Path) -> None:
    for name in _FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = tempfile.tempdir = str(attempt_dir)  # so that torch's files go with the folder
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks are numbered without asking a store
    name_host_at_once()


def _exit_codes(pids: dict[int, int]) -> dict[int, int]:
    return {rank: code for rank, pid in pids.items() if (code := _exit_code(pid)) is not None}


def _exit_code(pid: int) -> int | None:
    """A child's exit code as subprocess gives it, without reaping the child; None while it runs."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # torch has reaped it and continued, which it does only after an exit with 0
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
