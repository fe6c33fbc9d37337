"""What the ranks of one attempt report of their progress, and their deadline.

Ranks and the agent write short JSON lines to a pipe (`rank.tell`); who reads it keeps a `Progress`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .outcome import Death, Report, RunFacts, rank_log, report_path
from .stacks import collect_stacks


class Progress:
    """Collects a `RunFacts` while the ranks run.

    Args:
        record: what is known, to which this adds.
        all_connected: called when every rank has joined the process group.
        all_returned: called when every rank has returned from the entry function.
    """

    def __init__(
        self,
        record: RunFacts,
        all_connected: Callable[[], None] = lambda: None,
        all_returned: Callable[[], None] = lambda: None,
    ) -> None:
        self.record = record
        self._all_connected, self._all_returned = all_connected, all_returned
        self.connected_at: float | None = None
        self.over = False  # the agent has reported its result, and its ranks have ended
        self._step_at = 0.0  # when the last step that all have begun was
        self._unread = b""

    def read(self, data: bytes) -> None:
        """Record the events in bytes that arrived on the pipe; an unfinished line waits for its rest."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._note(json.loads(line))

    def deadline(self, begin: float) -> float | None:
        """The monotonic time, in seconds, by which the next step is due; None for never.

        Args:
            begin: monotonic time, in seconds, at which the attempt began.
        """
        record = self.record
        if self.connected_at is None:
            return begin + record.start_timeout
        return None if record.timeout is None else self._step_at + record.timeout

    def expire(self) -> None:
        """Record which deadline has passed, and the ranks' stacks; kills the ranks if any is stopped."""
        record = self.record
        record.ending = "timeout" if record.started else "start timeout"
        pids = {rank: pid for rank, pid in record.pids.items() if rank not in record.returned}
        record.stacks = collect_stacks(pids, {rank: rank_log(record.log_dir, rank) for rank in pids})

    def read_reports(self, folder: Path) -> None:
        """Add what ranks that raised have left in the attempt's folder."""
        for rank in range(self.record.size):
            path = report_path(folder, rank)
            if path.exists():
                self.record.reports[rank] = Report(**json.loads(path.read_text()))

    def _note(self, event: dict[str, Any]) -> None:
        record = self.record
        if record.ending != "ended" and event["event"] != "result":
            return  # events while the attempt is being ended are ignored, so that they open no latch
        match event["event"]:
            case "alive":
                record.pids[event["rank"]] = event["pid"]
            case "connected":
                record.connected.add(event["rank"])
                if record.started:
                    self.connected_at = self._step_at = time.monotonic()
                    self._all_connected()
            case "step":
                common = record.common_steps
                record.steps.setdefault(event["rank"], []).append(event["name"])
                if record.common_steps > common:
                    self._step_at = time.monotonic()
            case "thread":
                record.threads.append((event["number"], event["ident"]))
            case "returned":
                record.returned.add(event["rank"])
                if len(record.returned) == record.size:
                    self._all_returned()
            case "died":
                alive_ns = event.get("alive_ns", time.monotonic_ns())  # torchrun's agent does not know
                record.deaths[event["rank"]] = Death(alive_ns=alive_ns, exit_code=event["exit_code"])
            case "result":
                record.succeeded, record.agent_error = event["succeeded"], event.get("error")
                self.over = True
