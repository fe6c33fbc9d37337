"""The program of one rank of backend neuron: `python -m tp_harness.backends.neuron_rank`, started by torchrun.

Its environment was computed before it started (neuron_env.py); torch_xla is imported here and gives the process its
one core out of NEURON_RT_VISIBLE_CORES.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist

from ..launch.rank import begin_step
from ..launch.torchrun_rank import be_rank
from ..rank import run_job
from ..xla.processes import ProcessMeeting


def rank_entry(argument: str, rank: int, size: int) -> None:
    """Run the job on this process's core.

    torch's default group becomes torch-xla's, which is what a user's module calls with tensors on the device. What
    ranks tell each other goes through gloo: torch-xla's own barrier does nothing, and its gather is an all-gather.

    Raises:
        RuntimeError: torch-xla sees another world than torchrun made.
    """
    import torch_xla.distributed.xla_backend  # noqa: F401, PLC0415  (registers "xla")

    from ..xla.core import CoreDevice, CoreGroup, core_name  # noqa: PLC0415

    dist.destroy_process_group()
    group = CoreGroup(size)  # asks torch-xla how large its world is, before anything is summed in it
    store = dist.FileStore(str(Path(os.environ["TMPDIR"]) / "store-xla"), size)  # type: ignore[attr-defined]
    dist.init_process_group("xla", store=store, rank=rank, world_size=size)
    meeting = ProcessMeeting(dist.new_group(backend="gloo"))
    device = CoreDevice(group.rank, size, meeting)
    run_job(Path(argument), group, core=core_name(rank), begin=begin_step, device=device)


if __name__ == "__main__":
    be_rank(rank_entry)
