"""The placements that torch.distributed.tensor has, in its words: Replicate, Shard and Partial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .placement import Placement, PlacementError, along, check_dim, check_positive, share
from .same_bits import check_same_bits

EVEN = "even"  # of `pad_to`: the next length that divides over the ranks


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
    """Contiguous slices along `dim`, equal unless `uneven`; `unit` consecutive elements stay together.

    Args:
        dim: the dimension that is cut.
        unit: head_dim where a slice must hold whole heads, and 2 where gate/up pairs are interleaved.
        pad_to: the full tensor is first padded at the end of `dim` with zeros: to this length, or with "even" to the
            next one that divides over the ranks.
        uneven: slices of ceil(length / ranks), so that the last ranks have less or nothing, as those of torch.chunk
            and of a DTensor.
        inert: False says that the module relies on the zeros of the padding; else it is run with other numbers, too,
            and must give the same.
    """

    dim: int
    unit: int = 1
    pad_to: int | str | None = None
    uneven: bool = False
    inert: bool = True

    def __post_init__(self) -> None:
        check_positive(unit=self.unit)
        check_dim(self.dim)
        if self.pad_to not in (None, EVEN):
            if not isinstance(self.pad_to, int) or isinstance(self.pad_to, bool):
                raise PlacementError(f'pad_to is {self.pad_to!r:.60}; a length or "even" is needed.')
            check_positive(pad_to=self.pad_to)
        if self.uneven and self.pad_to is not None:
            raise PlacementError("a Shard is padded or uneven, not both: leave out `pad_to` or `uneven`.")

    def __repr__(self) -> str:
        pad = "" if self.pad_to is None else f", pad_to={self.pad_to!r}"
        rest = ", uneven=True" * self.uneven + ", inert=False" * (not self.inert)
        return f"Shard(dim={self.dim}, unit={self.unit}{pad}{rest})"

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The rank-th slice: of the shape of `full`, but for dimension `dim`.

        A view, but for the slice of a padded tensor that holds padding.
        """
        first, last = self.bounds(full, rank, size)
        begin, end = (min(bound, full.shape[self.dim]) for bound in (first, last))
        own = full.narrow(self.dim, begin, end - begin)
        if last - first == end - begin:
            return own
        zeros = list(own.shape)
        zeros[self.dim] = last - first - (end - begin)
        return torch.cat((own, full.new_zeros(zeros)), dim=self.dim)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The shards one after the other along `dim`, whose length in the shape is then their sum."""
        return torch.cat(list(shards), dim=self.dim)

    def fitted(self, shape: Sequence[int]) -> Shard:
        """As `Placement.fitted`."""
        if self.pad_to is None or not -len(shape) <= self.dim < len(shape):
            return self
        return FittedShard(self.dim, self.unit, self.pad_to, inert=self.inert, length=shape[self.dim])

    def padding(self, shape: Sequence[int], rank: int, size: int) -> torch.Tensor | None:
        """As `Placement.padding`: true from the end of the full tensor on, along `dim`."""
        if self.pad_to is None:
            return None
        rows = [n if i == self.dim % len(shape) else 1 for i, n in enumerate(shape)]
        return self.shard(torch.ones(rows, dtype=torch.bool), rank, size).logical_not()

    def bounds(self, full: torch.Tensor, rank: int, size: int) -> tuple[int, int]:
        """Where the rank's slice begins and ends along `dim` of `full`, of any shape, padding counted.

        Raises:
            PlacementError: as `shard`.
        """
        length, over = along(full, self.dim), f"{size} ranks"
        if self.uneven:
            units = share(full, self.dim, self.unit, "whole units", self.unit)
            step = -(-units // size) * self.unit
            return min(length, rank * step), min(length, (rank + 1) * step)
        if self.pad_to is None:
            step = share(full, self.dim, size * self.unit, over, self.unit) * self.unit
        elif isinstance(self.pad_to, int):
            step = self._padded(length, self.pad_to, size)
        else:
            step = -(-length // (size * self.unit)) * self.unit
        return rank * step, (rank + 1) * step

    def _padded(self, length: int, pad_to: int, size: int) -> int:
        """A rank's length of `pad_to`."""
        units = f" in units of {self.unit}" if self.unit > 1 else ""
        if pad_to % (size * self.unit):
            raise PlacementError(f"pad_to={pad_to} does not divide over {size} ranks{units}")
        if pad_to < length:
            raise PlacementError(f"dimension {self.dim} has {length} elements, more than pad_to={pad_to}")
        return pad_to // size


@dataclass(frozen=True, repr=False)
class FittedShard(Shard):
    """A padded Shard of tensors whose `dim` has this `length` without the padding."""

    length: int = 0

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The shards one after the other along `dim`, without padding: of the full shape."""
        return super().join(shards).narrow(self.dim, 0, self.length)


@dataclass(frozen=True)
class Partial(Placement):
    """Every rank holds one summand of the full tensor; `join` adds them in float64 and rounds once.

    `split` puts the full tensor on rank 0 and zeros elsewhere: one of many ways to write it as a sum.
    """

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """`full` on rank 0, elsewhere negative zeros of its shape (x + -0.0 is x, bit for bit, also for x = -0.0)."""
        return full if rank == 0 else torch.full_like(full, complex(-0.0, -0.0) if full.is_complex() else -0.0)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum over ranks, in the same shape and dtype; integers are added in int64."""
        if len(shards) == 1:
            return shards[0]
        if shards[0].is_complex():
            return torch.view_as_complex(self.join([torch.view_as_real(shard.resolve_conj()) for shard in shards]))
        wide = torch.float64 if shards[0].is_floating_point() else torch.int64
        total = shards[0].to(wide)
        for shard in shards[1:]:
            total = total + shard.to(wide)
        return total.to(shards[0].dtype)
