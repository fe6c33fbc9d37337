"""What is taken from torch's elastic agent, the one behind torchrun, beside its documented interface."""

from __future__ import annotations

import socket
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from . import Library

ELASTIC = Library(name="torch", file="torchelastic_private.py", seen=("2.9.0", "2.13.0"))


class OpenAgent(LocalElasticAgent):
    """LocalElasticAgent whose two steps may be overridden: `start_workers` once, `monitor_workers` at each interval."""

    def start_workers(self, group: WorkerGroup) -> dict[int, Any]:
        """Start the ranks; returns process ids by local rank."""
        ids: dict[int, Any] = ELASTIC.part(
            "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._start_workers", super()
        )(group)
        return ids

    def monitor_workers(self, group: WorkerGroup) -> RunResult:
        """The state of the ranks: running, succeeded or failed."""
        result: RunResult = ELASTIC.part(
            "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._monitor_workers", super()
        )(group)
        return result

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        return self.start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        return self.monitor_workers(worker_group)


def name_host_at_once() -> None:
    """Spare torch's agent the search for the host's full name at every event: without a network it takes seconds."""
    socket.getfqdn = lambda name="": "localhost"
