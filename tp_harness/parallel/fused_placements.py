"""Placements of fused matrices: blocks that lie one after the other along a dimension, each cut by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .basic_placements import Shard
from .placement import Placement, PlacementError, along, check_dim, check_positive, shape_only, share


class Fused(Placement):
    """Fused along `dim`; a rank holds its shards of all of them, in their order."""

    dim: int

    @abstractmethod
    def blocks(self, length: int, size: int) -> tuple[tuple[int, Placement], ...]:
        """The length of each block of `length` elements along `dim`, and its placement on `size` ranks.

        Raises:
            PlacementError: the blocks have another length together.
        """

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A copy: the rank's shards of all blocks, joined along `dim` of the shape."""
        blocks = self.blocks(along(full, self.dim), size)
        whole = full.split([length for length, _ in blocks], dim=self.dim)
        own = [placement.shard(block, rank, size) for block, (_, placement) in zip(whole, blocks, strict=True)]
        return torch.cat(own, dim=self.dim)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The blocks of all ranks, each joined as its placement does, in the full shape."""
        size, ndim = len(shards), shards[0].ndim
        blocks = self.blocks(self.length(shards), size)
        forms = [self._form(length, ndim) for length, _ in blocks]
        pieces = []
        for rank, shard in enumerate(shards):
            own = zip(forms, blocks, strict=True)
            lengths = [placement.shard(form, rank, size).shape[self.dim] for form, (_, placement) in own]
            pieces.append(shard.split(lengths, dim=self.dim))
        joined = [
            placement.fitted(form.shape).join([own[i] for own in pieces])
            for i, (form, (_, placement)) in enumerate(zip(forms, blocks, strict=True))
        ]
        return torch.cat(joined, dim=self.dim)

    @abstractmethod
    def length(self, shards: Sequence[torch.Tensor]) -> int:
        """The length along `dim` of the full tensor that has these shards, of any shape."""

    def padding(self, shape: Sequence[int], rank: int, size: int) -> torch.Tensor | None:
        """As `Placement.padding`: that of all blocks."""
        blocks = self.blocks(shape[self.dim], size)
        forms = [self._form(length, len(shape)) for length, _ in blocks]
        found = [placement.padding(form.shape, rank, size) for form, (_, placement) in zip(forms, blocks, strict=True)]
        if all(own is None for own in found):
            return None
        shards = (placement.shard(form, rank, size) for form, (_, placement) in zip(forms, blocks, strict=True))
        none = [torch.zeros_like(shard, dtype=torch.bool) for shard in shards]
        return torch.cat([no if own is None else own for own, no in zip(found, none, strict=True)], dim=self.dim)

    def _form(self, length: int, ndim: int) -> torch.Tensor:
        """A tensor of that many dimensions, of which only `dim` has a length other than 1."""
        return shape_only([length if i == self.dim % ndim else 1 for i in range(ndim)])


@dataclass(frozen=True)
class FusedShard(Fused):
    """Fused blocks of these `sizes` along `dim`, each placed by itself.

    Mamba2's [z | x | B | C | dt] and [query | key | value] with heads of unequal size are such.

    Args:
        dim: the dimension along which they follow one another.
        sizes: the full length of each.
        placements: of each, along `dim` too; `Shard(dim)` for all where none is given.
    """

    dim: int
    sizes: tuple[int, ...]
    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        check_dim(self.dim)
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "placements", tuple(self.placements))
        for i, size in enumerate(self.sizes):
            check_positive(**{f"size {i}": size})
        if self.placements and len(self.placements) != len(self.sizes):
            raise PlacementError(
                f"FusedShard has {len(self.sizes)} sizes and {len(self.placements)} placements; one for each is needed."
            )
        for placement in self.placements:
            if not isinstance(placement, Placement):
                raise PlacementError(f"FusedShard places a block as {placement!r:.60}; a placement is needed.")
            if getattr(placement, "dim", self.dim) != self.dim:
                raise PlacementError(f"{placement} cuts another dimension than {self.dim}, along which the blocks lie.")

    @property
    def inert(self) -> bool:  # type: ignore[override]
        """Whether that of all blocks is."""
        return all(placement.inert for placement in self.placements)

    def blocks(self, length: int, size: int) -> tuple[tuple[int, Placement], ...]:
        """As `Fused.blocks`.

        Raises:
            PlacementError: the blocks have another length together.
        """
        if length != sum(self.sizes):
            raise PlacementError(
                f"its blocks have {sum(self.sizes)} elements together, and dimension {self.dim} has {length}"
            )
        placements = self.placements or (Shard(self.dim),) * len(self.sizes)
        return tuple(zip(self.sizes, placements, strict=True))

    def length(self, shards: Sequence[torch.Tensor]) -> int:
        """The sum of `sizes`, whatever the shape of the shards."""
        return sum(self.sizes)


@dataclass(frozen=True)
class StridedShard(Fused):
    """`stride` fused blocks along `dim`, each sharded on its own: rank r holds slice r of every block.

    Megatron's and neuronx-distributed's partition_stride, for [gate | up] halves fused in one matrix.
    """

    dim: int
    stride: int

    def __post_init__(self) -> None:
        check_positive(stride=self.stride)

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A copy: the rank's slices of every block, joined; `dim` of the shape is divided by `size`."""
        share(full, self.dim, size * self.stride, f"{size} ranks with stride {self.stride}")
        return super().shard(full, rank, size)

    def blocks(self, length: int, size: int) -> tuple[tuple[int, Placement], ...]:
        """As `Fused.blocks`: of equal length."""
        return ((length // self.stride, Shard(self.dim)),) * self.stride

    def length(self, shards: Sequence[torch.Tensor]) -> int:
        """The sum of the shards' lengths along `dim` of their shape."""
        return sum(shard.shape[self.dim] for shard in shards)
