"""The program of one rank of backend neuron: `python -m tp_harness.backends.neuron_rank`, started by torchrun.

Its environment was computed before it started (neuron/environment.py); torch_xla, imported here, takes one core for the
process out of NEURON_RT_VISIBLE_CORES.
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

UNLIMITED = timedelta(days=365)  # the launcher has the timeout


def rank_entry(argument: str, rank: int, size: int) -> None:
    """Run the job file `argument` as `rank` of `size`, on this process's core.

    Raises:
        RuntimeError: torch-xla sees another number of ranks than torchrun started.
    """
    store = dist.FileStore(str(Path(os.environ["TMPDIR"]) / "store-xla"), size)  # type: ignore[attr-defined]
    group, device, _ = join_cores(rank, size, store, UNLIMITED)
    run_job(Path(argument), group, core=device.name, begin=begin_step, device=device)


if __name__ == "__main__":
    be_rank(rank_entry)
