"""The group of torch-xla's ranks: all cores as one replica group, or shared out into several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr

from ..parallel.group import Group

G = TypeVar("G", bound="XLAGroup")


class XLAGroup(Group):
    """Collectives that are traced into the program, with explicit replica groups.

    `pin_layout=False` throughout: pinned, an all_gather becomes an all_reduce with the rank's number in it.

    Raises:
        RuntimeError: torch-xla sees another number of ranks. Under torchrun with PJRT_DEVICE=CPU every process is a
            world of its own, where all_reduce silently is the identity.
    """

    timed = False
    device_type = "xla"
    cpu_seconds = staticmethod(time.thread_time)

    def __init__(self, size: int) -> None:
        if xr.world_size() != size:
            raise RuntimeError(
                f"{size} ranks were started, but torch-xla sees {xr.world_size()}: sums would be partial"
            )
        super().__init__(xr.global_ordinal(), size)
        self.groups = [list(range(size))]

    def subgroup(self: G, parts: Sequence[Sequence[int]], axis: str = "") -> G:
        """As `Group.subgroup`; every rank's program has all parts, so that it is the same program."""
        group = super().subgroup(parts, axis)
        group.groups = [list(part) for part in parts]
        return group

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return xm.all_reduce(xm.REDUCE_SUM, x, groups=self.groups, pin_layout=False)

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return xm.all_gather(x, dim % x.ndim, groups=self.groups, pin_layout=False)

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return xm.reduce_scatter(xm.REDUCE_SUM, x, 1.0, dim % x.ndim, self.size, groups=self.groups, pin_layout=False)

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        """Gather, and take the source's part: torch-neuronx 2.7 to 2.9 gave zeros (aws-neuron-sdk#1240)."""
        return self._all_gather(x[None], 0)[src]

    def _all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        return xm.all_to_all(x, split_dim, concat_dim, self.size, groups=self.groups, pin_layout=False)
