"""Placements of attention heads: fewer key and value heads than ranks are replicated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .basic_placements import Shard
from .fused_placements import Fused
from .placement import Placement, PlacementError, check_positive
from .same_bits import check_same_bits


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
        check_positive(num_heads=self.num_heads, unit=self.unit)

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
class QKVHeads(Fused):
    """The fused [query | key | value] projection along dimension 0: query heads cut, KV heads as KVHeads."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    dim: ClassVar[int] = 0  # type: ignore[misc]  # always, and no argument

    def __post_init__(self) -> None:
        check_positive(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A copy, [local query | local key | local value] along dimension 0, of full (rows,) or (rows, ...).

        Raises:
            PlacementError: `full` has other rows than the heads' own, or they do not divide over `size` ranks.
        """
        rows = self.length(())
        if not full.ndim or full.shape[0] != rows:
            raise PlacementError(f"{self} needs {rows} rows; the tensor has shape {tuple(full.shape)}")
        return super().shard(full, rank, size)

    def blocks(self, length: int, size: int) -> tuple[tuple[int, Placement], ...]:
        """As `Fused.blocks`: queries, keys and values."""
        kv = KVHeads(0, self.num_key_value_heads, unit=self.head_dim)
        of_kv = (self.num_key_value_heads * self.head_dim, kv)
        return (self.num_attention_heads * self.head_dim, Shard(0, unit=self.head_dim)), of_kv, of_kv

    def length(self, shards: Sequence[torch.Tensor]) -> int:
        """The rows of all heads, (rows,) or (rows, ...)."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
