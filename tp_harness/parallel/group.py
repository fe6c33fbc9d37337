"""The tensor-parallel group a sharded module talks to.

Modules see only this: rank, size, and five collectives. Every call is recorded, because a schedule that
differs from the plan, or between ranks, is a mistake that outputs may hide (gloo accepts a swapped order).
A group of one rank is the identity and records nothing: neuronx skips those too (a size-1 replica group has
been seen to reduce over the world).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ..results.collective import Collective, Exchange
from .ambient import holding

G = TypeVar("G", bound="Group")


class Group:
    """A group of one rank, and the recording base of all others.

    Subclasses define the five underscored methods; they may overwrite the tensor they are given. `timed` is False
    where a call only adds to a program that runs later, so that its time says nothing. `cpu_seconds` is the rank's own
    CPU clock. `device_type` is torch's name of where its tensors are. `members` are the ranks of a subgroup, numbered
    as in the group of all ranks, () for that group itself; `axis` is the axis of a mesh that they are along.
    """

    timed = True
    cpu_seconds: Callable[[], float] = staticmethod(time.process_time)
    device_type = "cpu"
    members: tuple[int, ...] = ()
    axis = ""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is outside a group of size {size}")
        self.rank, self.size = rank, size
        self.calls: list[Collective] = []
        self.meshes: dict[Any, Any] = {}  # those made of this group, by axes: parallel/mesh.py

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's `x`, on all ranks, of the same shape and dtype. `x` may be overwritten."""
        return self._call("all_reduce", x, lambda: self._all_reduce(x))

    def all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Every rank's `x`, all of the same shape and dtype, joined along `dim` in rank order, on all ranks."""
        return self._call("all_gather", x, lambda: self._all_gather(x, dim))

    def reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's slice along `dim` of the sum of every rank's `x`, all of the same shape and dtype."""
        return self._call("reduce_scatter", x, lambda: self._reduce_scatter(x, dim))

    def broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        """Rank `src`'s `x`, on all ranks; every rank gives one of its shape and dtype, which may be overwritten."""
        peer = self.members[src] if self.members else src
        return self._call("broadcast", x, lambda: self._broadcast(x, src), peer=peer)

    def all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        """Part r of every rank's `x` on rank r: what all ranks sent to this one, joined along `concat_dim`.

        Every `x` has the same shape and dtype, and is cut along `split_dim` into one equal part for each rank.

        Raises:
            ValueError: `split_dim` does not divide over the ranks.
        """
        if x.shape[split_dim] % self.size:
            raise ValueError(
                f"all_to_all cuts dimension {split_dim} of shape {list(x.shape)} into {self.size} equal parts, and "
                f"{x.shape[split_dim]} does not divide by {self.size}: pad it"
            )
        share = (x.numel() // self.size,) * self.size
        split, concat = split_dim % x.ndim, concat_dim % x.ndim
        return self._call("all_to_all", x, lambda: self._all_to_all(x, split, concat), sends=share, receives=share)

    def subgroup(self: G, parts: Sequence[Sequence[int]], axis: str = "") -> G:
        """This rank's group among `parts`, with collectives of its own, which are recorded with those of this group.

        All ranks must call it, with the same arguments.

        Args:
            parts: which ranks of this group make each subgroup; every rank is in one, and all are of one size.
            axis: the name of the axis of a mesh, for what is recorded.
        """
        group = copy.copy(self)  # which shares the list of calls
        group.members = next(tuple(part) for part in parts if self.rank in part)
        group.rank, group.size, group.axis = group.members.index(self.rank), len(group.members), axis
        return group

    def take_calls(self) -> tuple[Collective, ...]:
        """The calls since the last time, those of subgroups included, which starts a new recording."""
        calls = tuple(self.calls)
        self.calls.clear()
        return calls

    def meet(self) -> None:
        """Return once every rank is here, so that all begin together; not recorded."""
        if self.size > 1 and self.timed:
            self._all_reduce(torch.zeros(1))

    def _call(self, kind: str, x: torch.Tensor, run: Callable[[], torch.Tensor], **details: Any) -> torch.Tensor:
        if self.size == 1:
            return x
        operation = "sum" if kind in ("all_reduce", "reduce_scatter") else ""
        exchange = Exchange(members=self.members, axis=self.axis, operation=operation, **details)
        call = collective(kind, self.size, tuple(x.shape), x.dtype, exchange)
        self.calls.append(call)  # before it runs, so that a call that never returns is recorded
        began = time.perf_counter()
        result = run()
        if self.timed:
            self.calls[-1] = replace(call, seconds=round(time.perf_counter() - began, 7))
        return result

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        raise NotImplementedError

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        raise NotImplementedError

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        raise NotImplementedError

    def _all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        raise NotImplementedError


class TorchGroup(Group):
    """A torch.distributed process group (None: the default group); `timeout` is that of its subgroups' collectives."""

    def __init__(
        self, process_group: torch.distributed.ProcessGroup | None = None, timeout: timedelta | None = None
    ) -> None:
        dist = torch.distributed
        super().__init__(dist.get_rank(process_group), dist.get_world_size(process_group))
        self.process_group, self.timeout = process_group, timeout

    def subgroup(self, parts: Sequence[Sequence[int]], axis: str = "") -> TorchGroup:
        """As `Group.subgroup`, with a process group that its members make without the other ranks."""
        group = super().subgroup(parts, axis)
        group.process_group = torch.distributed.new_group(
            list(group.members), timeout=self.timeout, use_local_synchronization=True
        )
        return group

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        torch.distributed.all_reduce(x, group=self.process_group)
        return x

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        shards = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(shards, x.contiguous(), group=self.process_group)
        return torch.cat(shards, dim=dim)

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        shards = [shard.contiguous() for shard in x.chunk(self.size, dim=dim)]
        mine = torch.empty_like(shards[0])
        torch.distributed.reduce_scatter(mine, shards, group=self.process_group)
        return mine

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        x = x.contiguous()
        torch.distributed.broadcast(x, group=self.process_group, group_src=src)
        return x

    def _all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        parts = torch.stack(x.chunk(self.size, dim=split_dim))
        received = torch.empty_like(parts)
        torch.distributed.all_to_all_single(received, parts, group=self.process_group)
        return torch.cat(received.unbind(), dim=concat_dim)


def collective(
    kind: str, group_size: int, shape: tuple[int, ...], dtype: torch.dtype, exchange: Exchange | None = None
) -> Collective:
    """The record of a call with an input of that shape (elements) and dtype."""
    numel = torch.Size(shape).numel()
    return Collective(
        kind=kind,
        group_size=group_size,
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        bytes=numel * dtype.itemsize,
        exchange=exchange,
    )


_ambient: ContextVar[Group | None] = ContextVar("tp_group", default=None)


def current_group() -> Group:
    """The ambient group: the innermost `use_group`, else torch's default process group, else one rank."""
    group = _ambient.get()
    if group is not None:
        return group
    return TorchGroup() if torch.distributed.is_initialized() else Group()


@contextmanager
def use_group(group: Group) -> Iterator[Group]:
    """Make `group` the ambient group of this thread for the duration."""
    with holding(_ambient, group):
        yield group
