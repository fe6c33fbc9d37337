"""The program of the ranks in test_neuron_backend.py that compare their graphs: no collective, no device."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from tp_harness.launch.torchrun_rank import be_rank

from tp_harness.ranks.device import GraphFinding
from tp_harness.xla.processes import ProcessMeeting


def entry(argument: str, rank: int, size: int) -> None:
    """Run one function that is the same on all ranks, and one that has the rank's number in it."""
    from tp_harness.xla.core import CoreDevice

    device = CoreDevice(rank, size, ProcessMeeting(dist.new_group(backend="gloo")))
    x = device.put(torch.arange(4.0) + rank)
    same, program = device.run(lambda: {"y": x * 2})
    try:
        device.run(lambda: {"y": x[rank : rank + 2]})
        finding = ""
    except GraphFinding as found:
        finding = str(found)
    seen = {"same": same["y"].tolist(), "fingerprint": program.fingerprint, "finding": finding}
    Path(argument, f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    be_rank(entry)
