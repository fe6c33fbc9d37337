"""What a backend is: a place where the ranks of a job run."""

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
        """How it ended, or None while it goes on; does not block."""

    def stop(self) -> LaunchOutcome:
        """End it now, leaving nothing behind."""


class Session(Protocol):
    """A backend made ready; leaving its `with` block ends every rank it started, and may happen more than once.

    `starts_anew`: ranks that ended badly can be started again.
    """

    starts_anew: bool

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningJob:
        """Start `tp` ranks that run the job file; each leaves its outputs in the job's folder."""

    def __enter__(self) -> Session:
        """The session itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End every rank."""


def run_to_end(
    session: Session, job: Job, *, log_dir: Path, timeout: float, poll_seconds: float = POLL_SECONDS
) -> LaunchOutcome:
    """Start the ranks of a job and wait until they have ended, each step within `timeout` seconds."""
    running = session.start(job.write(), tp=job.tp, log_dir=log_dir, timeout=timeout)
    try:
        while (outcome := running.poll()) is None:
            time.sleep(poll_seconds)
    finally:
        running.stop()
    return outcome


class Backend(Protocol):
    """A registry entry.

    `blind_spots` says what this backend cannot see; it is printed with its verdicts. `owns_terminal`: its ranks may
    talk to the user, as a debugger does, so nothing else is drawn there meanwhile. `process_group`: torch.distributed
    has a default group in them. `weight_copies`: of their weights that ranks hold beside the mapped file.
    """

    name: str
    owns_terminal: bool
    process_group: bool
    weight_copies: int

    @property
    def blind_spots(self) -> str:
        """One sentence."""

    def available(self) -> str | None:
        """None, or the reason why this machine cannot run it."""

    def open(self, degrees: tuple[int, ...] = ()) -> Session:
        """Make ready to start ranks at these degrees. Called before anything is computed: a fork wants no threads.

        Raises:
            UsageError: a degree that this backend cannot run here.
        """
