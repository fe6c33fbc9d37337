"""What is taken from neuronx-distributed (NxD) beside its documented interface. Imports NxD when a function is called.

The versions are those whose public sources were read: NxD has never run here. tests/recorded/nxd_signatures.json holds
the signatures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from . import Library

NXD = Library(name="neuronx-distributed", file="neuronx_distributed_private.py", seen=("0.17", "0.18"))


@contextmanager
def as_traced(size: int) -> Iterator[None]:
    """NxD's parallel state while ModelBuilder makes a module: rank 0 of `size` ranks, without the others.

    Without it a module made of NxD's layers would assume one rank, and leave that state behind.

    Raises:
        MovedPartError: the installed NxD lacks what this takes from it.
    """
    from neuronx_distributed.parallel_layers import parallel_state  # noqa: PLC0415

    mock_distributed = NXD.part("neuronx_distributed.trace.mock_torchdist:mock_distributed")
    with mock_distributed(world_size=size):
        dist.init_process_group(backend="xla", rank=0, world_size=size)
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size, skip_collective_init=True)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
