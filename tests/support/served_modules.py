"""Small sharded modules and a function, right and wrong, for build_module and build_function."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from tp_harness.parallel.placements import Placement, Shard

X = torch.arange(2 * 3 * 8, dtype=torch.float32).view(2, 3, 8) / 10


class Column(nn.Module):
    """Output features sharded; each rank returns its own."""

    output_placement: Placement = Shard(-1)

    def __init__(self, mark: str = "") -> None:
        super().__init__()
        size = dist.get_world_size() if dist.is_initialized() else 1
        self.weight = nn.Parameter(torch.randn(64 // size, 8))
        if mark:
            self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]  # as neuronx-distributed marks it
            self.weight.partition_dim, self.weight.partition_stride = 0, int(mark)  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


class ScaledColumn(Column):
    """Has extra state, as TransformerEngine's modules do, which is no tensor."""

    def get_extra_state(self) -> dict[str, float]:
        return {"amax": 1.0}

    def set_extra_state(self, state: dict[str, float]) -> None:
        assert state == {"amax": 1.0}


class UndeclaredColumn(Column):
    """Forgets to say that each rank returns its own features."""

    output_placement = None  # type: ignore[assignment]


class Row(nn.Module):
    """Input features sharded, summed over ranks."""

    def __init__(self, reduce: bool = True, misplan: bool = False, dim: int = 0) -> None:
        super().__init__()
        self.size, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.weight = nn.Parameter(torch.randn(8, 8 // self.size))
        self.reduce = reduce
        if misplan or dim:
            self.plan = {"weight": Shard(dim)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = nn.functional.linear(x.chunk(self.size, dim=-1)[self.rank], self.weight)
        if self.reduce:
            dist.all_reduce(part)
        return part


class Odd(nn.Module):
    """Cut in two dimensions at once: no shape says how."""

    def __init__(self) -> None:
        super().__init__()
        size = dist.get_world_size()
        self.table = nn.Parameter(torch.randn(8 // size, 8 // size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Tied(nn.Module):
    """Two names for one parameter, which a safetensors file cannot hold as one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.down.weight = self.up.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class RaisesOnRankOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == 1:
            raise ArithmeticError("no such luck")
        return x


def two_outputs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x * 2
