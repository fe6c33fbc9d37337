"""All that one verdict rests on, gathered before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .case import Case
from .gather import RankOutput
from .oracle import Expectation
from .weights import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a verdict rests on."""

    case: Case
    tp: int
    dtype: str
    expectation: Expectation
    ranks: Mapping[int, RankOutput]
    checkpoint: Checkpoint

    @property
    def reduction(self) -> int:
        """The length of the longest sum: what the case says, or else the largest dimension of a parameter."""
        names = self.ranks[0].facts[self.dtype]["parameters"]
        sizes = [n for name in names for n in self.checkpoint.shape(self.case.prefix + name)]
        return self.case.reduction or max(sizes, default=1)

    def shards(self, name: str, variant: str = "locked") -> list[torch.Tensor]:
        """Every rank's tensor of that name, by rank."""
        return [self.ranks[rank].tensors[f"{self.dtype}.{variant}.{name}"] for rank in sorted(self.ranks)]
