"""The interface of a backend, which runs the ranks of a job."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..launch import LaunchOutcome
from ..ranks.job import Job

POLL_SECONDS = 0.01


class RunningJob(Protocol):
    """A job whose ranks have been started."""

    def poll(self) -> LaunchOutcome | None:
        """How it ended, or None while it runs; does not block."""

    def stop(self) -> LaunchOutcome:
        """End every rank now; returns how the job ended."""


class Session(Protocol):
    """A backend that is ready to start ranks; leaving its `with` block, perhaps more than once, ends all of them.

    `starts_anew`: ranks that failed can be started again.
    """

    starts_anew: bool

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningJob:
        """Start `tp` ranks that run the job file and write their outputs into its folder.

        Args:
            job: the job file.
            tp: number of ranks.
            log_dir: folder of the ranks' logs.
            timeout: seconds that each step may take.
        """

    def __enter__(self) -> Session:
        """The session itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End every rank."""


def run_to_end(
    session: Session, job: Job, *, log_dir: Path, timeout: float, poll_seconds: float = POLL_SECONDS
) -> LaunchOutcome:
    """Start the ranks of a job and wait until they have ended, each step within `timeout` seconds.

    `poll_seconds` pass between two looks at them.
    """
    running = session.start(job.write(), tp=job.tp, log_dir=log_dir, timeout=timeout)
    try:
        while (outcome := running.poll()) is None:
            time.sleep(poll_seconds)
    finally:
        running.stop()
    return outcome


class Backend(Protocol):
    """An entry of the registry `BACKENDS`.

    `blind_spots`: the mistakes that this backend cannot see, printed with its verdicts. `owns_terminal`: its ranks may
    use the terminal, as a debugger does, so nothing else is drawn there. `process_group`: torch.distributed has a
    default group in its ranks. `weight_copies`: how many copies of its weights a rank holds beside the mapped file.
    """

    name: str
    owns_terminal: bool
    process_group: bool
    weight_copies: int

    @property
    def blind_spots(self) -> str:
        """The mistakes that it cannot see, one sentence."""

    def available(self) -> str | None:
        """The reason why this machine cannot run it; None where it can."""

    def open(self, degrees: tuple[int, ...] = ()) -> Session:
        """Make a session for these degrees (ranks); called before anything is computed, as threads make forks unsafe.

        Raises:
            UsageError: a degree that this backend cannot run here.
        """
