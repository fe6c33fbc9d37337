"""Ranks that are processes, one per device: how they exchange values, and how they join one torch-xla world.

torch_xla is imported in `join_cores` only: the environment has to be set by then.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..results.result import to_json

if TYPE_CHECKING:
    from .core import CoreDevice, CoreGroup


class ProcessMeeting:
    """The exchange among the ranks of a process group of CPU tensors: each gives a value and gets all of them.

    Values are made of JSON values or of result types, which arrive as JSON; nothing is pickled.

    Ranks take no turns, unlike threads: on a NeuronCore, loading a program with collectives blocks until every rank
    loads it, so that a rank that waited for another's turn to end would wait for ever. Neuron's compile cache, which
    is keyed by the program and locked while one rank compiles, sees to it that the program is compiled once.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.turn: AbstractContextManager[None] = nullcontext()
        self._group = group

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Give `value` as `rank`; returns every rank's value as JSON values, in the order of ranks."""
        text = json.dumps(to_json(value)).encode()
        size = dist.get_world_size(self._group)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(text)]), group=self._group)
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(size)]
        dist.all_gather(texts, padded, group=self._group)
        return [json.loads(gathered.numpy().tobytes()) for gathered in texts]


def join_cores(
    rank: int,
    size: int,
    store: dist.Store,  # type: ignore[name-defined]
    timeout: timedelta,
) -> tuple[CoreGroup, CoreDevice, dist.ProcessGroup]:
    """Make this process rank `rank` of `size`, on its own core.

    torch's default group becomes torch-xla's, which a user's module calls with tensors on the device. Messages between
    ranks go through gloo: torch-xla's own barrier does nothing, and its gather is an all-gather.

    Args:
        rank, size: as in the process group of CPU tensors that this process has, which ends here.
        store: where the new groups meet, not used by an earlier one.
        timeout: for ranks that wait for another one.

    Returns:
        The group whose collectives modules call, the device they run on, and a gloo group of the same ranks.

    Raises:
        RuntimeError: torch-xla sees another number of ranks than `size`.
    """
    import torch_xla.distributed.xla_backend  # noqa: F401, PLC0415  (registers "xla")

    from .core import CoreDevice, CoreGroup  # noqa: PLC0415

    dist.destroy_process_group()
    group = CoreGroup(size)  # asks torch-xla how large its world is, before anything is summed in it
    dist.init_process_group("xla", store=store, rank=rank, world_size=size)
    beside = dist.new_group(backend="gloo", timeout=timeout)
    return group, CoreDevice(group.rank, size, ProcessMeeting(beside)), beside
