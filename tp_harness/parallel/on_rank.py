"""An output that one rank returns alone, as logits that are gathered on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .placements import Placement, PlacementError


@dataclass(frozen=True)
class OnRank(Placement):
    """One rank has the full tensor, and the others have nothing in its place; -1 is the last rank."""

    rank: int = 0

    def owner(self, size: int) -> int:
        """The number of the rank that has it, among `size`.

        Raises:
            PlacementError: there is no such rank.
        """
        if not -size <= self.rank < size:
            raise PlacementError(f"there is no rank {self.rank} among {size}")
        return self.rank % size

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """`full` itself, of any shape, on the rank that has it; elsewhere no element, (0,)."""
        return full if rank == self.owner(size) else full.new_empty(0)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor of the rank that has it, in its shape."""
        return shards[self.owner(len(shards))]
