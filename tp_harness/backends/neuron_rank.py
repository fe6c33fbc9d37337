"""The program of one rank of backend neuron: `python -m tp_harness.backends.neuron_rank`, started by torchrun.

Its environment was computed before it started (neuron/environment.py); torch_xla is imported here and gives the process
its one core out of NEURON_RT_VISIBLE_CORES.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ..launch.rank import begin_step
from ..launch.torchrun_rank import be_rank
from ..ranks.rank import run_job
from ..xla.processes import join_cores

UNLIMITED = timedelta(days=365)  # it is the launcher that keeps the time


def rank_entry(argument: str, rank: int, size: int) -> None:
    """Run the job on this process's core.

    Raises:
        RuntimeError: torch-xla sees another world than torchrun made.
    """
    store = dist.FileStore(str(Path(os.environ["TMPDIR"]) / "store-xla"), size)  # type: ignore[attr-defined]
    group, device, _ = join_cores(rank, size, store, UNLIMITED)
    run_job(Path(argument), group, core=device.name, begin=begin_step, device=device)


if __name__ == "__main__":
    be_rank(rank_entry)
