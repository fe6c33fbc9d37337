"""torchrun for `TorchrunRanks`: torch.distributed.run itself, with a rendezvous that opens no port.

Run as a program with one argument, JSON. torchrun's own rendezvous listens on every interface of the machine.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry

from ..libraries.torchelastic_private import name_host_at_once
from .agent import SingleNodeRendezvous
from .process import die_with_parent
from .rank import tell

BACKEND = "tp-harness"
TASK, AGENT_PID = "TP_HARNESS_TASK", "TP_HARNESS_AGENT"  # what the ranks find in their environment
_MONITOR_SECONDS = "0.05"


def main(text: str) -> int:
    """Start the ranks, wait for their end, report it to the main process; returns the exit code, 0 or 1."""
    task: dict[str, Any] = json.loads(text)
    die_with_parent(task["parent"])
    status_fd = os.open(task["status"], os.O_WRONLY)
    os.environ.update({TASK: text, AGENT_PID: str(os.getpid()), "GLOO_SOCKET_IFNAME": "lo"})
    name_host_at_once()
    rendezvous_handler_registry.register(BACKEND, _meet_alone)
    try:
        torchrun.run(torchrun.parse_args(arguments(task)))
        tell(status_fd, event="result", succeeded=True)
    except ChildFailedError as failed:
        for rank, failure in failed.failures.items():
            tell(status_fd, event="died", rank=int(rank), exit_code=failure.exitcode)
        tell(status_fd, event="result", succeeded=False)
        return 1
    except Exception as error:
        traceback.print_exc()
        tell(status_fd, event="result", succeeded=False, error=f"{type(error).__name__}: {error}"[:1000])
        return 1
    return 0


def arguments(task: dict[str, Any]) -> list[str]:
    """torchrun's command line for a task."""
    return [
        "--nnodes=1",
        f"--nproc-per-node={task['size']}",
        f"--rdzv-backend={BACKEND}",
        f"--rdzv-id={os.path.basename(task['attempt_dir'])}",
        "--max-restarts=0",
        f"--monitor-interval={_MONITOR_SECONDS}",
        f"--log-dir={task['attempt_dir']}",
        "--module",
        task["module"],
    ]


def _meet_alone(parameters: RendezvousParameters) -> RendezvousHandler:
    return SingleNodeRendezvous(parameters.run_id)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
