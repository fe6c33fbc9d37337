"""Parameters and buffers of every dtype that torch stores: float8, complex, packed integers; right and wrong."""

from __future__ import annotations

from typing import Any

import pytest
from command import verified

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Shard

IN, OUT, BLOCK, HEADS, DIM = 64, 24, 16, 8, 4

def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))

class Scaled(nn.Module):
    '''A row-parallel matrix in float8 with a scale in float8 for each block, and one packed as two integers a byte.'''

    kind = torch.float8_e4m3fn

    def __init__(self, rank=0, ranks=1):
        super().__init__()
        own = slice(rank * IN // ranks, (rank + 1) * IN // ranks)
        self.weight = nn.Parameter(drawn(OUT, IN)[:, own].to(self.kind), requires_grad=False)
        scales = (2.0 ** torch.arange(-2, 2)).to(torch.float8_e8m0fnu)
        self.register_buffer("scale", scales)
        packed = torch.randint(0, 256, (OUT, IN // 2), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
        self.packed = nn.Parameter(packed[:, own.start // 2 : own.stop // 2].clone(), requires_grad=False)
        self.register_buffer("order", torch.arange(IN, dtype=torch.int64).to(torch.uint16)[own])
        self.gain = nn.Parameter(torch.ones(OUT))

    def block_of(self, columns):
        return self.order.to(torch.int64) // BLOCK

    def forward(self, x):
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)[self.block_of(x.shape[-1])]
        low, high = (self.packed & 15).to(x.dtype), (self.packed >> 4).to(x.dtype)
        integers = torch.stack((low, high), -1).flatten(-2) - 8
        return self.sum(x @ (weight + integers / 8).T) * self.gain

    def sum(self, x):
        return x

class Sharded(Scaled):
    def __init__(self):
        super().__init__(dist.get_rank(), dist.get_world_size())

    def sum(self, x):
        dist.all_reduce(x)
        return x

class FirstBlocks(Sharded):
    '''Every rank takes the scales of the first columns.'''

    def block_of(self, columns):
        return torch.arange(columns) // BLOCK

class HighFirst(Sharded):
    '''The integers of a byte in the other order.'''

    def forward(self, x):
        self.packed.data = (self.packed >> 4) | (self.packed << 4)
        return super().forward(x)

def scaled(sharded, reference=Scaled):
    plan = {"weight": Shard(1), "packed": Shard(1), "order": Shard(0)}
    return Case(
        name="scaled", reference=reference, sharded=sharded, plan=plan, input_placements=(Shard(-1),),
        inputs=lambda g: (torch.randn(2, 8, IN, generator=g),),
    )

class Wide(Scaled):
    kind = torch.float8_e5m2

class WideSharded(Sharded):
    kind = torch.float8_e5m2

FLOAT8, FLOAT8_WIDE, FIRST, HIGH = scaled(Sharded), scaled(WideSharded, Wide), scaled(FirstBlocks), scaled(HighFirst)

class Rotated(nn.Module):
    '''Heads turned by complex numbers, which are a persistent buffer with a number for each head.'''

    kind = torch.complex64

    def __init__(self, rank=0, ranks=1):
        super().__init__()
        self.heads = HEADS // ranks
        self.project = nn.Linear(IN, self.heads * DIM)
        angles = torch.arange(8)[:, None, None] * (1 + torch.arange(HEADS))[:, None] / (1 + torch.arange(DIM // 2))
        turns = torch.polar(torch.ones_like(angles), angles).to(self.kind)
        self.register_buffer("turns", turns[:, rank * self.heads : (rank + 1) * self.heads])

    def forward(self, x):
        y = self.project(x).float().unflatten(-1, (self.heads, -1, 2))
        y = torch.view_as_complex(y.contiguous()) * self.turns.to(torch.complex64)
        return torch.view_as_real(y).flatten(-3).to(x.dtype)

class Turned(Rotated):
    def __init__(self):
        super().__init__(dist.get_rank(), dist.get_world_size())

class Conjugated(Turned):
    def forward(self, x):
        self.turns = self.turns.conj()
        return super().forward(x)

def rotated(sharded, reference=Rotated):
    plan = {"project.weight": Shard(0), "project.bias": Shard(0), "turns": Shard(1)}
    return Case(
        name="rotated", reference=reference, sharded=sharded, plan=plan, output=Shard(-1),
        inputs=lambda g: (torch.randn(2, 8, IN, generator=g),),
    )

class Double(Rotated):
    kind = torch.complex128

class DoubleTurned(Turned):
    kind = torch.complex128

COMPLEX, COMPLEX_DOUBLE, TURNED_BACK = rotated(Turned), rotated(DoubleTurned, Double), rotated(Conjugated)
"""
RIGHT, WRONG = ("FLOAT8", "FLOAT8_WIDE", "COMPLEX", "COMPLEX_DOUBLE"), ("FIRST", "HIGH", "TURNED_BACK")


def of(record: dict[str, Any], name: str, dtype: str, tp: int) -> dict[str, Any]:
    own = ("rotated",) if name == "TURNED_BACK" else (f"scaled ({name})", f"rotated ({name})")
    [found] = [r for r in record["results"] if r["component"] in own and (r["dtype"], r["tp"]) == (dtype, tp)]
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(tmp_path_factory.mktemp("right"), CASES, RIGHT, 0, "--tp", "1,4")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(
        tmp_path_factory.mktemp("wrong"), CASES, WRONG, 1, "--tp", "4", "--dtype", "exact", "--dtype", "float32"
    )


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("name", RIGHT)
def test_it_is_the_same_function_whatever_it_is_stored_in(right: dict[str, Any], name: str, tp: int) -> None:
    statuses = [of(right, name, dtype, tp)["status"] for dtype in ("exact", "float32", "bfloat16")]
    assert statuses == ["PROVED", "PASS", "PASS"]
    assert all(control["rejected"] for control in right["controls"])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_another_function(wrong: dict[str, Any], name: str) -> None:
    assert [of(wrong, name, dtype, 4)["status"] for dtype in ("exact", "float32")] == ["DIFFERENT", "MISMATCH"]
    assert not [note for note in wrong["notes"] if "bug" in note]


def test_bytes_that_a_rank_holds_are_those_that_are_stored(right: dict[str, Any]) -> None:
    weight, packed, order, rest = 24 * 64 // 4, 24 * 32 // 4, 2 * 64 // 4, 4 + 4 * 24
    assert {r["weight_bytes"] for r in of(right, "FLOAT8", "float32", 4)["ranks"]} == {weight + packed + order + rest}
