"""Placements: how one full tensor becomes one shard per rank, and back.

Sharding is data beside the model. Every placement is a frozen value with two pure functions, `split` and
`join`, and `join(split(x)) == x` bit for bit. The words are torch.distributed.tensor's: Shard, Replicate,
Partial; two more say what attention needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UsageError


class PlacementError(UsageError):
    """A tensor that a placement cannot split over that many ranks."""


class ReplicaError(AssertionError):
    """Ranks hold different bits where the plan says they hold the same."""

    status = "MISMATCH"  # result.Status's word for it

    def __init__(
        self,
        ranks: tuple[int, int],
        index: tuple[int, ...],
        actual: float | str,
        expected: float | str,
        advice: str = "",
    ) -> None:
        self.ranks, self.index, self.actual, self.expected = ranks, index, actual, expected
        at = f" at {list(index)}" if index else ""
        differ = f"rank {ranks[0]} holds {actual}{at} where rank {ranks[1]} holds {expected}"
        super().__init__(f"{differ}; {advice}" if advice else differ)


class Placement(ABC):
    """What every placement can do, with tensors of any shape and dtype. `size` is the number of ranks in the group.

    A shard has the dtype of the full tensor, and its shape, but for the dimension that is cut. All placements raise
    what is said here.
    """

    @abstractmethod
    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """Rank `rank`'s shard, a view of `full` (any shape) where the layout permits.

        Raises:
            PlacementError: `full` lacks the dimension, or does not divide over `size` ranks.
        """

    @abstractmethod
    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full tensor of one shard per rank, in rank order and all of the same shape and dtype.

        Raises:
            ReplicaError: parts that several ranks hold differ in a bit.
        """

    def split(self, full: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        """One shard per rank, in rank order, each as `shard` gives it.

        Raises:
            PlacementError: as `shard`.
        """
        return tuple(self.shard(full, rank, size) for rank in range(size))


@dataclass(frozen=True)
class Replicate(Placement):
    """Every rank holds the full tensor."""

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """`full` itself, of any shape."""
        return full

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rank 0's tensor, after all were found to hold the same bits, as `Placement.join`."""
        for rank, shard in enumerate(shards):
            check_same_bits(shard, shards[0], ranks=(rank, 0))
        return shards[0]


@dataclass(frozen=True)
class Shard(Placement):
    """Equal contiguous slices along `dim`; `unit` consecutive elements stay together.

    `unit` is head_dim where a slice must hold whole heads, and 2 where gate/up pairs are interleaved.
    """

    dim: int
    unit: int = 1

    def __post_init__(self) -> None:
        _check_positive(unit=self.unit)
        if not isinstance(self.dim, int):
            raise PlacementError(f"dim is {self.dim!r:.60}; the number of a dimension is needed.")

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The rank-th slice, a view: dimension `dim` of the shape is divided by `size`."""
        step = _share(full, self.dim, size * self.unit, f"{size} ranks", self.unit) * self.unit
        return full.narrow(self.dim, rank * step, step)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The shards one after the other along `dim`, whose length in the shape is then their sum."""
        return torch.cat(list(shards), dim=self.dim)


@dataclass(frozen=True)
class StridedShard(Placement):
    """`stride` fused blocks along `dim`, each sharded on its own: rank r holds slice r of every block.

    Megatron's and neuronx-distributed's partition_stride, for [gate | up] halves fused in one matrix.
    """

    dim: int
    stride: int

    def __post_init__(self) -> None:
        _check_positive(stride=self.stride)

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A copy: the rank's slices of every block, joined; `dim` of the shape is divided by `size`."""
        step = _share(full, self.dim, size * self.stride, f"{size} ranks with stride {self.stride}", 1)
        starts = ((block * size + rank) * step for block in range(self.stride))
        return torch.cat([full.narrow(self.dim, start, step) for start in starts], dim=self.dim)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The slices of all ranks, block by block, in the full shape."""
        pieces = [shard.tensor_split(self.stride, dim=self.dim) for shard in shards]
        return torch.cat([piece[block] for block in range(self.stride) for piece in pieces], dim=self.dim)


@dataclass(frozen=True)
class KVHeads(Placement):
    """`num_heads` key or value heads of `unit` elements each along `dim`, shared out or replicated in blocks.

    A group no larger than num_heads shares them out; in a larger one, rank r holds head
    r // (size / num_heads), which size / num_heads neighbouring ranks replicate.
    """

    dim: int
    num_heads: int
    unit: int = 1

    def __post_init__(self) -> None:
        _check_positive(num_heads=self.num_heads, unit=self.unit)

    def replicas(self, size: int) -> int:
        """How many neighbouring ranks hold the same heads.

        Raises:
            PlacementError: neither of `num_heads` and `size` divides the other.
        """
        if self.num_heads % size and size % self.num_heads:
            raise PlacementError(
                f"{self.num_heads} KV heads do not divide over {size} ranks: one number must divide the other"
            )
        return max(1, size // self.num_heads)

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A view of `full`, cut along `dim` of the shape; neighbours share one where heads are replicated."""
        replicas = self.replicas(size)
        return Shard(self.dim, unit=self.unit).shard(full, rank // replicas, size // replicas)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full shape, with each head once, after its replicas were found to hold the same bits."""
        replicas = self.replicas(len(shards))
        for rank, shard in enumerate(shards):
            first = rank // replicas * replicas
            check_same_bits(shard, shards[first], ranks=(rank, first))
        return torch.cat(list(shards[::replicas]), dim=self.dim)


@dataclass(frozen=True)
class QKVHeads(Placement):
    """The fused [query | key | value] projection along dimension 0: query heads cut, KV heads as KVHeads."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        _check_positive(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A copy, [local query | local key | local value] along dimension 0, of full (rows,) or (rows, ...).

        Raises:
            PlacementError: `full` has other rows than the heads' own, or they do not divide over `size` ranks.
        """
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        rows = (heads + 2 * kv_heads) * self.head_dim
        if not full.ndim or full.shape[0] != rows:
            raise PlacementError(f"{self} needs {rows} rows; the tensor has shape {tuple(full.shape)}")
        query, key, value = self._parts(full, heads, kv_heads)
        kv = KVHeads(0, kv_heads, unit=self.head_dim)
        local_query = Shard(0, unit=self.head_dim).shard(query, rank, size)
        return torch.cat((local_query, kv.shard(key, rank, size), kv.shard(value, rank, size)))

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """[query | key | value] of all heads, (rows,) or (rows, ...); KV heads as `KVHeads.join`."""
        size = len(shards)
        kv = KVHeads(0, self.num_key_value_heads, unit=self.head_dim)
        local_kv = max(1, self.num_key_value_heads // size)
        parts = [self._parts(shard, self.num_attention_heads // size, local_kv) for shard in shards]
        queries, keys, values = zip(*parts, strict=True)
        return torch.cat((*queries, kv.join(keys), kv.join(values)))

    def _parts(self, fused: torch.Tensor, heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
        return fused.split([n * self.head_dim for n in (heads, kv_heads, kv_heads)], dim=0)


@dataclass(frozen=True)
class Partial(Placement):
    """Every rank holds one summand of the full tensor; `join` adds them in float64 and rounds once.

    `split` puts the full tensor on rank 0 and zeros elsewhere: one of many ways to write it as a sum.
    """

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """`full` on rank 0, elsewhere negative zeros of its shape (x + -0.0 is x, bit for bit, also for x = -0.0)."""
        return full if rank == 0 else torch.full_like(full, -0.0)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum over ranks, in the same shape and dtype; integers are added in int64."""
        if len(shards) == 1:
            return shards[0]
        wide = torch.float64 if shards[0].is_floating_point() else torch.int64
        total = shards[0].to(wide)
        for shard in shards[1:]:
            total = total + shard.to(wide)
        return total.to(shards[0].dtype)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise PlacementError(f"{name} is {number}; a placement needs a positive number")


def shape_only(shape: Sequence[int]) -> torch.Tensor:
    """A uint8 tensor of that shape to try a placement on: never written, so it takes no memory.

    Not on device "meta": torch.cat there imports the whole compiler, 1.5 s in every rank.
    """
    return torch.empty(tuple(shape), dtype=torch.uint8)


def _share(full: torch.Tensor, dim: int, parts: int, over: str, unit: int) -> int:
    """The length of one of `parts` equal parts along `dim`."""
    if not -full.ndim <= dim < full.ndim:
        raise PlacementError(f"a tensor of shape {tuple(full.shape)} has no dimension {dim} to shard")
    if full.shape[dim] % parts:
        units = f" in units of {unit}" if unit > 1 else ""
        raise PlacementError(f"dimension {dim} of shape {tuple(full.shape)} does not divide over {over}{units}")
    return full.shape[dim] // parts


def check_same_bits(actual: torch.Tensor, expected: torch.Tensor, ranks: tuple[int, int]) -> None:
    """Check that two ranks hold the same bits, of any shape and dtype.

    Raises:
        ReplicaError: they do not; with the first index that differs, or both shapes and dtypes.
    """
    if actual is expected or same_bits(actual, expected):
        return
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ReplicaError(ranks, (), *(f"{x.dtype} of shape {list(x.shape)}" for x in (actual, expected)))
    first = (_bits(actual) != _bits(expected)).nonzero()[0]
    index = tuple(int(i) for i in first[: actual.ndim])
    raise ReplicaError(ranks, index, actual[index].item(), expected[index].item())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True when shape, dtype and every bit agree: NaN equals the same NaN, 0.0 differs from -0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


_INT_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(x: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.bool:
        return x
    if x.is_complex():
        return torch.view_as_real(x).contiguous().view(_INT_OF_SIZE[x.element_size() // 2])
    return x.view(_INT_OF_SIZE[x.element_size()])
