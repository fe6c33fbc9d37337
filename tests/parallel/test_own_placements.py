"""A placement of a user's own may cut two dimensions; one that loses something is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ladder import own_ladder
from torch import nn

from tp_harness.case.case import Case
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Placement
from tp_harness.results.result import Status


@dataclass(frozen=True)
class Grid(Placement):
    """Rows over two groups of ranks, columns inside each."""

    dim: int = 1
    order: int = 1

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        groups = min(2, size)
        inside = size // groups
        return full.chunk(groups, 0)[rank // inside].chunk(inside, self.dim)[rank % inside]

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        groups = min(2, len(shards))
        inside = len(shards) // groups
        rows = [torch.cat(list(shards[g * inside : (g + 1) * inside]), self.dim) for g in range(groups)]
        return torch.cat(rows[:: self.order], 0)


class Product(nn.Module):
    """x A over ranks that each hold a block of A."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.groups = min(2, self.group.size)
        self.inside = self.group.size // self.groups
        self.a = nn.Parameter(torch.empty(8 // self.groups, 12 // self.inside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row, column = divmod(self.group.rank, self.inside)
        part = x.chunk(self.groups, -1)[row] @ self.a
        whole = torch.zeros(*x.shape[:-1], 12, dtype=x.dtype)
        whole.chunk(self.inside, -1)[column].copy_(part)
        return self.group.all_reduce(whole)


@pytest.mark.parametrize(
    ("placement", "status"), [(Grid(), Status.PASS), (Grid(order=-1), Status.MISMATCH)], ids=["grid", "joins-backwards"]
)
def test_a_placement_of_two_dimensions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: Grid, status: Status
) -> None:
    case = Case(
        name="own",
        reference=Product,
        sharded=Product,
        plan={"a": placement},
        inputs=lambda generator: (torch.randn(4, 8, generator=generator),),
    )
    result = own_ladder(tmp_path, monkeypatch, case, dtypes=("float32",)).run("own", 4)
    assert result.status is status
    assert status is Status.PASS or "does not join to the same tensor" in result.reason
