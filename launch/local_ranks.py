"""Which of the ranks that one torchrun has started on this host have ended, or were stopped by a signal. No torch.

torchrun does not say which rank was lost, waits half a minute for one that is stopped (SIGSTOP), and does not notice
when that is rank 0, for which the others wait.

Not covered: systems without /proc, where no rank seems ended or stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .process import ENDED, process_state
from .stacks import name_ranks

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Siblings:
    """The ranks' process ids, by rank."""

    pids: Sequence[int]

    def stopped(self) -> tuple[int, ...]:
        """Ranks that a signal has stopped; not those that a debugger has stopped."""
        return tuple(rank for rank, pid in enumerate(self.pids) if process_state(pid) == "T")

    def ended(self) -> tuple[int, ...]:
        """Ranks whose process has ended, reaped or not."""
        return tuple(rank for rank, pid in enumerate(self.pids) if process_state(pid) in ENDED)

    def lost(self, patience: float = 1.0) -> str:
        """The ranks found stopped, or else ended, such as "rank 3 has ended"; "" if there are none.

        Args:
            patience: seconds to look for them, because a dying process closes its connections before it has ended.
        """
        end = time.monotonic() + patience
        while True:
            if ranks := self.stopped():
                return f"{name_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} stopped by a signal"
            if ranks := self.ended():
                return f"{name_ranks(ranks)} {'has' if len(ranks) == 1 else 'have'} ended"
            if time.monotonic() > end:
                return ""
            time.sleep(0.005)

    def kill_stopped(self) -> None:
        """SIGKILL the stopped ranks, which no other signal ends."""
        for rank in self.stopped():
            with suppress(ProcessLookupError):
                os.kill(self.pids[rank], signal.SIGKILL)

    def when_stopped(self, rank: int, seconds: float, act: Callable[[], None]) -> threading.Thread:
        """In a thread: call `act` once `rank` has been stopped for `seconds` without a break; never if it has ended.

        Time in which this process itself was stopped hardly counts: Ctrl-Z and `fg` stop and continue all of them.
        """

        def watch() -> None:
            stopped, last = 0.0, time.monotonic()
            while stopped < seconds:
                time.sleep(_LOOK_SECONDS)
                if rank in self.ended():
                    return
                now = time.monotonic()
                passed, last = min(now - last, 2 * _LOOK_SECONDS), now
                stopped = stopped + passed if rank in self.stopped() else 0.0
            act()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread
